"""Settings: one value, one place, and complaints that name it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.config import AgentConfig, Endpoint, load_config, parse_endpoint
from edgeloop.errors import ConfigError

KEY = "ab" * 32
FLAGS = {
    "device_id": "gw-1",
    "state_dir": "/var/lib/agent",
    "server": "cloud:50061",
    "broker": "broker:1883",
    "director_key": [KEY],
}


def load(text: str = "", *, tmp_path: Path | None = None, environment=None, flags=None) -> AgentConfig:  # type: ignore[no-untyped-def]
    file = None
    if tmp_path is not None:
        file = tmp_path / "agent.toml"
        file.write_text(text)
    return load_config(
        config_file=file,
        environment=environment or {},
        flags=FLAGS if flags is None else flags,
        working_dir=Path("/work-here"),
    )


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    text = 'rate_hz = 1\nnum_threads = 2\nlog_level = "error"\n[labels]\nsite = "north"\n'
    config = load(
        text,
        tmp_path=tmp_path,
        environment={"EDGELOOP_AGENT_NUM_THREADS": "3", "EDGELOOP_AGENT_LOG_LEVEL": "debug"},
        flags={**FLAGS, "log_level": "warning", "rate_hz": None},
    )
    assert (config.rate_hz, config.num_threads, config.log_level) == (1, 3, "warning")
    assert config.label_map == {"site": "north"}
    assert config.server == Endpoint(host="cloud", port=50061)


def test_labels_from_each_place() -> None:
    assert load(flags={**FLAGS, "labels": ["site=north", "rack=4=b"]}).labels == (
        ("rack", "4=b"),
        ("site", "north"),
    )
    assert load(environment={"EDGELOOP_AGENT_LABELS": "a=1, b=2"}).labels == (("a", "1"), ("b", "2"))


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "director.hex").write_text(f"{KEY}\n{'cd' * 32}\n")
    (tmp_path / "inputs.npz").write_bytes(b"")
    text = 'state_dir = "state"\ndirector_key = "director.hex"\nreplay = "inputs.npz"\n'
    flags = {name: value for name, value in FLAGS.items() if name not in ("state_dir", "director_key")}
    config = load(text, tmp_path=tmp_path, flags=flags)
    assert config.state_dir == tmp_path / "state"
    assert config.replay == tmp_path / "inputs.npz"
    assert config.director_keys == (bytes.fromhex(KEY), bytes.fromhex("cd" * 32))


def test_several_director_keys_count_once_each() -> None:
    other = "0f" * 32
    config = load(flags={**FLAGS, "director_key": [KEY, f"{other},{KEY.upper()}"]})
    assert config.director_keys == (bytes.fromhex(KEY), bytes.fromhex(other))


@pytest.mark.parametrize("text", ["a:1", "10.0.0.1:65535", "[::1]:50061"])
def test_endpoints_read_back_as_written(text: str) -> None:
    assert str(parse_endpoint(text)) == text


@pytest.mark.parametrize(
    "text", ["a", ":1", "a:", "a:0", "a:65536", "a:x", "::1:50061", "a:1:2", "a:+1", "a:\u0661"]
)
def test_bad_endpoints_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--server.*host:port"):
        load(flags={**FLAGS, "server": text})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("rate = 1", ["rate", "rate_hz"]),
        ('rate_hz = "fast"', ["rate_hz", "'fast'", "number"]),
        ("rate_hz = true", ["rate_hz", "True", "number"]),
        ("rate_hz = nan", ["rate_hz", "number"]),
        ("rate_hz = 0", ["rate_hz", "0.01"]),
        ("num_threads = 1.5", ["num_threads", "whole number"]),
        ("device_id = 7", ["device_id", "text"]),
        ("device_id = 'a/b'", ["device_id", "'a/b'"]),
        ("labels = 'x'", ["labels", "key=value"]),
        ("labels = {A = 'x'}", ["labels", "A=x"]),
        ("labels = {a = 1}", ["labels", "a=1"]),
        ("director_key = 'abcd'", ["director_key", "64 hex digits"]),
        ("director_key = ''", ["director_key", "64 hex digits"]),
        ("director_key = [1]", ["director_key", "64 hex digits"]),
        ("replay = 'nowhere.npz'", ["replay", "exists"]),
        ("emulate_slowdown = 0", ["emulate_slowdown", "1 to 1000"]),
        ("log_level = 'loud'", ["log_level", "debug, info"]),
        ("= 1", ["not valid TOML"]),
        ("state_dir = []", ["state_dir", "text"]),
    ],
)
def test_a_bad_file_is_named_with_its_key_and_what_was_expected(
    tmp_path: Path, text: str, names: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text, tmp_path=tmp_path, flags={})
    message = str(caught.value)
    # What is missing is said before what is wrong: fill that in, then the wrong value must be named.
    if caught.value.code == "config-missing":
        given = text.split(" ")[0]
        with pytest.raises(ConfigError) as caught:
            load(text, tmp_path=tmp_path, flags={key: value for key, value in FLAGS.items() if key != given})
        message = str(caught.value)
    assert "agent.toml" in message
    for name in names:
        assert name in message


def test_unknown_variables_of_the_prefix_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"EDGELOOP_AGENT_SERVR.*EDGELOOP_AGENT_SERVER"):
        load(environment={"EDGELOOP_AGENT_SERVR": "a:1"})
    assert load(environment={"EDGELOOP_AGENT_CONFIG": "x", "EDGELOOP_OTHER": "y"}).device_id == "gw-1"


def test_what_is_missing_is_listed_with_all_three_ways_to_give_it() -> None:
    with pytest.raises(ConfigError) as caught:
        load(flags={"device_id": "gw-1"})
    for text in ("state_dir", "EDGELOOP_AGENT_STATE_DIR", "--state-dir", "--director-key"):
        assert text in str(caught.value)
    assert "--device-id" not in str(caught.value)


def test_a_missing_file_is_said() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(config_file=Path("/nowhere/agent.toml"), environment={}, flags=FLAGS)


def test_the_local_api_is_on_loopback_unless_told_otherwise(tmp_path: Path) -> None:
    config = load()
    assert (str(config.serve_grpc), str(config.serve_rest)) == ("127.0.0.1:8001", "127.0.0.1:8000")
    text = 'serve_grpc = "unix:run/grpc.sock"\nserve_rest = "[::1]:0"\nserve_timeout_s = 0.5\n'
    config = load(text, tmp_path=tmp_path)
    assert config.serve_grpc == tmp_path / "run/grpc.sock"
    assert config.serve_rest == Endpoint(host="::1", port=0)
    assert config.serve_timeout_s == 0.5
    off = load(environment={"EDGELOOP_AGENT_SERVE_GRPC": "off", "EDGELOOP_AGENT_SERVE_REST": "off"})
    assert (off.serve_grpc, off.serve_rest) == (None, None)


def test_requests_are_not_joined_unless_told_so() -> None:
    assert (load().serve_max_batch_size, load().serve_max_queue_delay_us) == (1, 0)
    on = load(
        environment={
            "EDGELOOP_AGENT_SERVE_MAX_BATCH_SIZE": "8",
            "EDGELOOP_AGENT_SERVE_MAX_QUEUE_DELAY_US": "500",
        }
    )
    assert (on.serve_max_batch_size, on.serve_max_queue_delay_us) == (8, 500)
    with pytest.raises(ConfigError, match="serve_max_queue_delay_us is 500 but serve_max_batch_size is 1"):
        load(environment={"EDGELOOP_AGENT_SERVE_MAX_QUEUE_DELAY_US": "500"})
    with pytest.raises(ConfigError, match="from 1 to 64"):
        load(environment={"EDGELOOP_AGENT_SERVE_MAX_BATCH_SIZE": "65"})


@pytest.mark.parametrize("text", ["on", "8001", "127.0.0.1", "127.0.0.1:65536", "::1:80", "unix:"])
def test_what_is_no_address_for_the_local_api_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--serve-grpc is .*unix: and the path of a socket, or off"):
        load(flags={**FLAGS, "serve_grpc": text})
