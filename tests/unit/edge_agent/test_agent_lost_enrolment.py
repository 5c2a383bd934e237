"""What enrolment told is damaged, both times: a device with a model serves it, another one ends."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import pytest

from edge_agent import service
from edge_agent.config import ENROLMENT_COPY, ENROLMENT_FILE, AgentConfig
from edge_agent.identity import save_enrolment
from edge_agent.inbox import Post
from edge_agent.journal import Journal
from edge_agent.lost_enrolment import load_or_serve, read_again
from edge_agent.network import IDENTITY_RETRY_S, Network
from edge_agent.release_gate import Candidate, ShutGate
from edge_agent.spool import ReportSpool
from edge_agent.update_state import Slot, State, UpdateState
from edgeloop.errors import ConfigError
from edgeloop.trust import DirectorKey, sign_deployment
from edgeloop.v1 import deployment_pb2, device_pb2

KEY = DirectorKey.generate()
TOLD = {
    "device_id": "gw-1",
    "enrol_server": "127.0.0.1:1",
    "server": "127.0.0.1:2",
    "broker": "127.0.0.1:3",
    "director_key": KEY.public_bytes.hex(),
}
SLOT = Slot(
    generation=1,
    digest="a" * 64,
    manifest_digest="b" * 64,
    workload="eyes",
    profile="p",
    signed=sign_deployment(
        KEY,
        deployment_pb2.Deployment(
            device_id="gw-1",
            workload="eyes",
            profile="p",
            generation=1,
            digest="a" * 64,
            manifest_digest="b" * 64,
        ),
    ),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An enrolled one."""
    for name in ("CONFIG", "STATE_DIR", "DEVICE_ID"):
        monkeypatch.delenv(f"EDGELOOP_AGENT_{name}", raising=False)
    save_enrolment(tmp_path, b"ca", TOLD)
    return tmp_path


def serves(folder: Path) -> None:
    state = replace(UpdateState(), state=State.ACTIVE, target=SLOT, committed=SLOT)
    folder.mkdir(parents=True, exist_ok=True)
    Journal(folder).save(state)


def damage(folder: Path, content: bytes = b"\x00") -> None:
    for name in (ENROLMENT_FILE, ENROLMENT_COPY):
        (folder / name).write_bytes(content)


def load(folder: Path) -> AgentConfig:
    return load_or_serve(None, {"state_dir": str(folder)})


def test_whoever_has_a_model_serves_under_the_name_that_it_was_deployed_to(folder: Path) -> None:
    serves(folder)
    assert load(folder).enrolment_problem == ""
    damage(folder)
    config = load(folder)
    assert (config.device_id, config.state_dir, config.director_keys) == ("gw-1", folder, ())
    assert "enrol again" in config.enrolment_problem
    assert "so is its copy" in config.enrolment_problem


def test_a_model_of_one_of_several_workloads_counts(folder: Path) -> None:
    serves(folder / "workloads" / "eyes")
    damage(folder)
    assert load(folder).enrolment_problem


def test_whoever_has_none_ends_and_a_person_must_act(folder: Path) -> None:
    damage(folder)
    with pytest.raises(ConfigError) as caught:
        load(folder)
    assert service.exit_code(caught.value) == service.EXIT_USAGE


def test_whoever_was_never_enrolled_ends_whatever_it_serves(tmp_path: Path) -> None:
    serves(tmp_path)
    with pytest.raises(ConfigError, match="not set: device_id") as caught:
        load(tmp_path)
    assert service.exit_code(caught.value) == service.EXIT_USAGE


def test_a_file_that_is_gone_beside_an_identity_was_lost(folder: Path) -> None:
    serves(folder)
    (folder / ENROLMENT_FILE).unlink()
    assert "enrolment.json is gone" in load(folder).enrolment_problem


def test_a_mistake_that_somebody_wrote_still_ends_it(folder: Path) -> None:
    serves(folder)
    damage(folder)
    with pytest.raises(ConfigError, match="rate-hz"):
        load_or_serve(None, {"state_dir": str(folder), "rate_hz": "often"})


def test_what_reads_again_is_taken_up_and_nothing_else(folder: Path) -> None:
    serves(folder)
    damage(folder)
    config = replace(load(folder), trial_requests=7)
    with pytest.raises(ConfigError, match="so is its copy"):
        read_again(config, lambda: load(folder))
    save_enrolment(folder, b"ca", {**TOLD, "server": "elsewhere:9"})
    found = read_again(config, lambda: load(folder))
    assert (str(found.server), found.director_keys) == ("elsewhere:9", (KEY.public_bytes,))
    assert (found.trial_requests, found.enrolment_problem) == (7, "")


def test_an_enrolment_of_another_device_waits_for_a_restart(folder: Path) -> None:
    serves(folder)
    damage(folder)
    config = load(folder)
    save_enrolment(folder, b"ca", {**TOLD, "device_id": "gw-2"})
    with pytest.raises(ConfigError, match="restart it"):
        read_again(config, lambda: load(folder))


def test_until_it_is_known_whether_there_is_a_root_nothing_new_is_released() -> None:
    gate = ShutGate()
    gate.begin(Candidate(slot=SLOT, size_bytes=1))
    assert (gate.on_message("t", b"x"), gate.on_tick(), gate.deadline_s) == (None, None, None)


class Wired:
    """A network whose broker and control plane are nowhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = load(folder)
        self.taken_up: list[AgentConfig] = []
        inbox: SimpleQueue[Post] = SimpleQueue()
        self.spool = ReportSpool(folder / "spool.db", boot_id="b", max_bytes=1 << 20)
        self.network = Network(
            self.config,
            inbox,
            reload=lambda: load(folder),
            on_config=self.taken_up.append,
            rng=random.Random(0),
        )

    def connect(self, now_s: float) -> None:
        self.network.connect(self.spool, device_pb2.Registration, ["topic"], now_s)


@pytest.fixture
def wired(folder: Path) -> Iterator[Wired]:
    serves(folder)
    damage(folder)
    wired = Wired(folder)
    yield wired
    wired.network.close()
    wired.spool.close()


def test_it_is_read_every_half_minute_said_once_and_connects_to_what_it_says(
    wired: Wired, caplog: pytest.LogCaptureFixture
) -> None:
    for now_s in (0.0, IDENTITY_RETRY_S):
        wired.connect(now_s)
        assert "so is its copy" in wired.network.identity_problem
        assert not wired.network.is_due(now_s + IDENTITY_RETRY_S - 1)
        assert wired.network.is_due(now_s + IDENTITY_RETRY_S)
    assert len([one for one in caplog.records if "no connection" in one.message]) == 1
    # What was told is back, and the key beside it is not: no connection without it.
    save_enrolment(wired.folder, b"ca", TOLD)
    wired.connect(100.0)
    assert "identity" in wired.network.identity_problem
    assert "so is its copy" not in wired.network.identity_problem
    assert wired.taken_up == []
    (wired.folder / ENROLMENT_FILE).write_text(json.dumps(TOLD))
    assert wired.network.is_due(130.0)


def test_an_identity_that_a_disk_does_not_give_is_damaged_and_not_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serves(folder)

    def fail(path: Path, **kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", fail)
        patched.setattr(Path, "read_text", fail)
        patched.setattr(Path, "glob", lambda path, pattern: iter(()))
        config = load(folder)
    assert config.enrolment_problem
