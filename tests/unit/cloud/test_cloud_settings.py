"""Settings of ``edgeloop serve``: who wins, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloud.settings import ServeSettings, settings_from
from edgeloop.errors import ConfigError


def test_flags_win_over_the_environment_and_that_over_the_defaults() -> None:
    settings = settings_from(
        {"fleet_port": 7001, "control_port": None, "policy_min_samples": 7},
        {
            "EDGELOOP_FLEET_PORT": "8001",
            "EDGELOOP_CONTROL_PORT": "8002",
            "EDGELOOP_POLICY_COOL_DOWN_S": "1.5",
        },
    )
    assert (settings.fleet_port, settings.control_port, settings.broker_port) == (7001, 8002, 1883)
    assert (settings.policy.min_samples, settings.policy.cool_down_s) == (7, 1.5)


def test_pages_are_off_unless_asked_for() -> None:
    assert (settings_from({}, {}).web_port, settings_from({}, {}).metrics_port) == (None, None)
    assert settings_from({}, {"EDGELOOP_WEB_PORT": "8443"}).web_port == 8443
    with pytest.raises(ConfigError, match="--web-port"):
        settings_from({"web_port": 70_000}, {})


def test_database_and_registry_lie_in_the_state_folder_unless_said_otherwise(tmp_path: Path) -> None:
    settings = settings_from({"state_dir": tmp_path}, {})
    assert settings.database == f"sqlite:///{tmp_path.resolve()}/edgeloop.db"
    assert settings.registry == f"{tmp_path.resolve()}/registry"
    other = settings_from(
        {"state_dir": tmp_path, "registry_url": "s3://b/p", "database_url": "postgresql://x"}, {}
    )
    assert (other.registry, other.database) == ("s3://b/p", "postgresql://x")


@pytest.mark.parametrize(
    ("broker", "address"),
    [
        ("broker.example.org:1883", ("broker.example.org", 1883)),
        ("127.0.0.1:8883", ("127.0.0.1", 8883)),
        ("[::1]:1883", ("::1", 1883)),
    ],
)
def test_a_broker_is_host_and_port(broker: str, address: tuple[str, int]) -> None:
    assert ServeSettings(state_dir=Path("x"), broker=broker).broker_address() == address


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"fleet_port": 70_000}, "--fleet-port"),
        ({"fleet_port": 5000, "control_port": 5000}, "--control-port"),
        ({"broker": "nohost"}, "--broker"),
        ({"broker": "host:0"}, "--broker"),
        ({"broker": "ho st:1"}, "--broker"),
        ({"host": "a b"}, "--host"),
        ({"compute": "slurm"}, "--compute"),
        ({"num_cpus": 0}, "--num-cpus"),
        ({"step_interval_s": 0.0}, "--step-interval-s"),
        ({"step_interval_s": float("nan")}, "--step-interval-s"),
        ({"report_interval_s": 0}, "--report-interval-s"),
        ({"log_level": "LOUD"}, "--log-level"),
        ({"policy_slack_ratio": 3.0}, "slack_ratio"),
    ],
    ids=str,
)
def test_a_wrong_value_names_its_flag(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings_from(values, {})


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="EDGELOOP_FLEET_PORT is 'x'"):
        settings_from({}, {"EDGELOOP_FLEET_PORT": "x"})


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"host": "0.0.0.0"}, "--tls-dir"),
        ({"host": "gw.example.org", "broker": "b:1883"}, "--insecure"),
        ({"host": "0.0.0.0", "tls_dir": Path("keys")}, "--broker"),
    ],
)
def test_nothing_without_proof_is_offered_to_a_network_by_accident(flags: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        settings_from(flags, {})
    assert caught.value.code == "settings-exposed"


def test_exposure_is_a_decision() -> None:
    assert settings_from({"host": "0.0.0.0"}, {"EDGELOOP_INSECURE": "1"}).insecure
    assert settings_from({"host": "0.0.0.0", "broker": "b:8883", "tls_dir": Path("k")}, {}).tls_dir == Path(
        "k"
    )
    assert settings_from({"host": "127.0.0.2"}, {}).tls_dir is None
    with pytest.raises(ConfigError, match="EDGELOOP_INSECURE"):
        settings_from({}, {"EDGELOOP_INSECURE": "perhaps"})
