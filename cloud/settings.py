"""What ``edgeloop serve`` may be told: flags over ``EDGELOOP_*`` in the environment over the defaults.

Every value is checked when the settings are built, and the error names the flag: a control plane that starts
has settings that hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cloud.domain.policy import PolicySettings
from edgeloop.errors import ConfigError

ENV_PREFIX = "EDGELOOP_"
DEFAULT_FLEET_PORT = 50061
DEFAULT_CONTROL_PORT = 50062
DEFAULT_ENROL_PORT = 50063
DEFAULT_BROKER_PORT = 1883

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:_-]{0,252}[A-Za-z0-9])?|::1?|\[[0-9a-fA-F:]+\]")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """One control plane. Ports of 0 take a free one, and the same one again after a restart.

    ``broker`` is ``HOST:PORT`` of one that runs already; None starts the embedded one on ``broker_port``.
    ``registry_url``, ``database_url`` and ``director_dir`` (the folder of the director's keys, made when
    there are none) default to the state folder; control planes that share a database must share all three.
    ``report_interval_s`` is what agents are told. ``deployment_lifetime_s`` is how long a signed deployment
    may be accepted; what is still wanted is signed again at half of it. ``tuf_timestamp_lifetime_s`` is how
    long devices believe that no newer release was held back from them; it is renewed at half. ``compute`` is
    "ray", or "none" for a control plane that serves but builds nothing.

    ``tls_dir`` is what ``edgeloop keys init`` made; without it there is neither TLS nor token, and ``host``
    must be loopback unless ``insecure``. ``advertise_*`` is where enrolled agents find the rest, if not
    where they enrolled. ``control_index`` tells control planes of one broker apart.

    ``metrics_port`` is for Prometheus, ``web_port`` for the page that people look at; None for no such page.

    Raises ``ConfigError`` that names the field and the flag.
    """

    state_dir: Path
    host: str = "127.0.0.1"
    fleet_port: int = DEFAULT_FLEET_PORT
    control_port: int = DEFAULT_CONTROL_PORT
    broker: str | None = None
    broker_port: int = DEFAULT_BROKER_PORT
    database_url: str = ""
    registry_url: str = ""
    director_dir: Path | None = None
    compute: str = "ray"
    ray_address: str = ""
    num_cpus: int | None = None
    step_interval_s: float = 2.0
    report_interval_s: int = 30
    deployment_lifetime_s: float = 30 * 86_400.0
    tuf_timestamp_lifetime_s: float = 3 * 86_400.0
    metrics_port: int | None = None
    web_port: int | None = None
    log_level: str = "INFO"
    tls_dir: Path | None = None
    enrol_port: int = DEFAULT_ENROL_PORT
    control_index: int = 1
    advertise_fleet: str = ""
    advertise_broker: str = ""
    certificate_ttl_s: float = 7 * 86_400.0
    insecure: bool = False
    policy: PolicySettings = field(default_factory=PolicySettings)

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise _bad("host", self.host, "an address or a host name to listen on")
        for name in ("fleet_port", "control_port", "broker_port", "enrol_port"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65_535:
                raise _bad(name, value, "0 (a free one) to 65535")
        for name in ("metrics_port", "web_port"):
            page_port = getattr(self, name)
            if page_port is not None and not 0 <= page_port <= 65_535:
                raise _bad(name, page_port, "0 (a free one) to 65535")
        if self.fleet_port and self.fleet_port == self.control_port:
            raise _bad("control_port", self.control_port, "another than fleet_port")
        if (
            self.tls_dir is not None
            and self.enrol_port
            and self.enrol_port
            in (
                self.fleet_port,
                self.control_port,
            )
        ):
            raise _bad("enrol_port", self.enrol_port, "another than fleet_port and control_port")
        if self.broker is not None:
            self.broker_address()
        self._check_exposure()
        for name in ("advertise_fleet", "advertise_broker"):
            if getattr(self, name):
                self.advertised(name)
        if not 1 <= self.control_index <= 9:
            raise _bad("control_index", self.control_index, "1 to 9")
        if not 1 <= self.certificate_ttl_s <= 3650 * 86_400:
            raise _bad("certificate_ttl_s", self.certificate_ttl_s, "1 second to ten years, in seconds")
        if self.compute not in ("ray", "none"):
            raise _bad("compute", self.compute, '"ray" or "none"')
        if self.num_cpus is not None and not 1 <= self.num_cpus <= 4096:
            raise _bad("num_cpus", self.num_cpus, "1 to 4096")
        if not 0.05 <= self.step_interval_s <= 3600:
            raise _bad("step_interval_s", self.step_interval_s, "0.05 to 3600 seconds")
        if not 1 <= self.report_interval_s <= 3600:
            raise _bad("report_interval_s", self.report_interval_s, "1 to 3600 whole seconds")
        if not 60 <= self.deployment_lifetime_s <= 10 * 365 * 86_400:
            raise _bad("deployment_lifetime_s", self.deployment_lifetime_s, "60 seconds to ten years")
        if not 60 <= self.tuf_timestamp_lifetime_s <= 365 * 86_400:
            raise _bad("tuf_timestamp_lifetime_s", self.tuf_timestamp_lifetime_s, "60 seconds to a year")
        if self.log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise _bad("log_level", self.log_level, "DEBUG, INFO, WARNING or ERROR")

    def _check_exposure(self) -> None:
        """Nothing that anybody could use without proof is offered to a network by accident."""
        if is_loopback(self.host) or self.insecure:
            return
        if self.tls_dir is None:
            raise ConfigError(
                f"host is {self.host}, which others can reach, and there are no keys: make them with "
                "'edgeloop keys init DIR --server-name NAME' and give --tls-dir DIR (EDGELOOP_TLS_DIR), or "
                "say --insecure to serve everybody without TLS",
                code="settings-exposed",
            )
        if self.broker is None:
            raise ConfigError(
                f"host is {self.host}, which others can reach, and the embedded broker takes everybody: give "
                "one that asks for certificates (--broker HOST:8883; deploy/mosquitto has its configuration)",
                code="settings-exposed",
            )

    def broker_address(self) -> tuple[str, int] | None:
        """Host and port of the given broker, or None for the embedded one."""
        if self.broker is None:
            return None
        return _address("broker", self.broker, "HOST:PORT, such as broker.example.org:1883")

    def advertised(self, name: str) -> tuple[str, int] | None:
        """Host and port that agents are told for ``advertise_fleet`` or ``advertise_broker``, if any."""
        text = getattr(self, name)
        return _address(name, text, "HOST:PORT, as agents reach it") if text else None

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite:///{self.state_dir.resolve() / 'edgeloop.db'}"

    @property
    def director(self) -> Path:
        """The folder of the keys that sign deployments."""
        return self.director_dir or self.state_dir.resolve()

    @property
    def registry(self) -> str:
        """URL of the artifact registry."""
        return self.registry_url or str(self.state_dir.resolve() / "registry")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    return host in ("localhost", "::1", "[::1]") or host.startswith("127.")


def reachable(host: str) -> str:
    """Where a client on this machine finds what listens on ``host``."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}  # noqa: S104 - compared, not bound
    return everywhere.get(host, host)


def spelled_address(host: str, port: int) -> str:
    """``HOST:PORT``, with the brackets that an IPv6 address wants."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _address(name: str, text: str, wanted: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not _HOST.fullmatch(host) or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65_535:
        raise _bad(name, text, wanted)
    return host.strip("[]"), int(port)


_KINDS: Mapping[str, type] = {
    "enrol_port": int,
    "control_index": int,
    "certificate_ttl_s": float,
    "insecure": bool,
    "tls_dir": Path,
    "fleet_port": int,
    "control_port": int,
    "broker_port": int,
    "metrics_port": int,
    "web_port": int,
    "num_cpus": int,
    "report_interval_s": int,
    "step_interval_s": float,
    "deployment_lifetime_s": float,
    "tuf_timestamp_lifetime_s": float,
    "state_dir": Path,
    "director_dir": Path,
}


def settings_from(flags: Mapping[str, Any], environ: Mapping[str, str]) -> ServeSettings:
    """Settings from flags (None means not given), then ``EDGELOOP_<FIELD>``, then the defaults.

    A policy setting is ``policy_<field>`` among the flags, or ``EDGELOOP_POLICY_<FIELD>``.
    Raises ``ConfigError`` naming the field.
    """
    values: dict[str, Any] = {}
    for item in fields(ServeSettings):
        if item.name == "policy":
            continue
        variable = ENV_PREFIX + item.name.upper()
        if flags.get(item.name) is not None:
            values[item.name] = flags[item.name]
        elif environ.get(variable):
            values[item.name] = _converted(variable, environ[variable], _KINDS.get(item.name, str))
    values.setdefault("state_dir", Path(".edgeloop"))
    policy: dict[str, Any] = {}
    for item in fields(PolicySettings):
        name = f"policy_{item.name}"
        variable = ENV_PREFIX + name.upper()
        if flags.get(name) is not None:
            policy[item.name] = flags[name]
        elif environ.get(variable):
            kind = float if isinstance(item.default, float) else int
            policy[item.name] = _converted(variable, environ[variable], kind)
    try:
        return ServeSettings(**values, policy=PolicySettings(**policy))
    except ValueError as error:
        raise ConfigError(f"policy setting {error}", code="settings-policy") from None


def _converted(variable: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("1", "true", "yes", "0", "false", "no"):
            raise ConfigError(f"{variable} is {text!r}: it must be 1 or 0", code="settings-field")
        return text.lower() in ("1", "true", "yes")
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{variable} is {text!r}: it must be {wanted}", code="settings-field") from None


def _bad(name: str, value: object, wanted: str) -> ConfigError:
    flag = "--" + name.replace("_", "-")
    return ConfigError(
        f"{name} is {value!r}: give {wanted} ({flag} or {ENV_PREFIX}{name.upper()})", code="settings-field"
    )
