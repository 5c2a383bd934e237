"""``edgeloop serve``."""

from __future__ import annotations

import asyncio
import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from cloud.domain.policy import PolicySettings
from edgeloop.errors import ConfigError

POLICY_KEYS: dict[str, type[int] | type[float]] = {
    item.name: float if isinstance(item.default, float) else int for item in fields(PolicySettings)
}


def serve(
    state_dir: Annotated[
        Path | None,
        typer.Option(help="folder for database, registry, keys and logs", show_default=".edgeloop"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on", show_default="127.0.0.1")] = None,
    fleet_port: Annotated[
        int | None, typer.Option(help="for agents; 0 takes a free one", show_default="50061")
    ] = None,
    control_port: Annotated[
        int | None, typer.Option(help="for this control script; 0 takes a free one", show_default="50062")
    ] = None,
    broker: Annotated[
        str | None, typer.Option(help="MQTT broker that runs already, HOST:PORT", show_default="embedded")
    ] = None,
    broker_port: Annotated[
        int | None, typer.Option(help="of the embedded broker; 0 takes a free one", show_default="1883")
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL", show_default="SQLite in the state folder")
    ] = None,
    registry_url: Annotated[
        str | None, typer.Option(help="fsspec URL for artifacts", show_default="a folder in the state folder")
    ] = None,
    director_dir: Annotated[
        Path | None,
        typer.Option(help="folder of the keys that sign deployments", show_default="the state folder"),
    ] = None,
    compute: Annotated[
        str | None, typer.Option(help="ray, or none to serve without building", show_default="ray")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="cluster to join", show_default="a local one")
    ] = None,
    num_cpus: Annotated[int | None, typer.Option(help="for the local Ray", show_default="all")] = None,
    step_interval_s: Annotated[
        float | None, typer.Option(help="seconds between controller steps", show_default="2")
    ] = None,
    report_interval_s: Annotated[
        int | None, typer.Option(help="seconds of a report window, told to agents", show_default="30")
    ] = None,
    deployment_lifetime_s: Annotated[
        float | None,
        typer.Option(help="seconds for which devices may accept a deployment", show_default="30 days"),
    ] = None,
    tuf_timestamp_lifetime_s: Annotated[
        float | None,
        typer.Option(
            help="seconds for which devices believe that no release is held back", show_default="3 days"
        ),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="for Prometheus; 0 takes a free one", show_default="none")
    ] = None,
    web_port: Annotated[
        int | None,
        typer.Option(help="page of the fleet for people; 0 takes a free one", show_default="none"),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR", show_default="INFO")
    ] = None,
    tls_dir: Annotated[
        Path | None,
        typer.Option(
            help="keys and certificates of 'edgeloop keys init'", show_default="no TLS, loopback only"
        ),
    ] = None,
    enrol_port: Annotated[
        int | None, typer.Option(help="where agents enrol (with --tls-dir)", show_default="50063")
    ] = None,
    control_index: Annotated[
        int | None, typer.Option(help="1 to 9: which of several control planes this is", show_default="1")
    ] = None,
    advertise_fleet: Annotated[
        str | None,
        typer.Option(help="HOST:PORT that enrolled agents are told", show_default="where they enrolled"),
    ] = None,
    advertise_broker: Annotated[
        str | None, typer.Option(help="HOST:PORT of the broker as agents reach it", show_default="--broker")
    ] = None,
    certificate_ttl_s: Annotated[
        float | None, typer.Option(help="life of a device's certificate", show_default="7 days")
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option(
            "--insecure", help="serve others without TLS: anybody can do anything", show_default="no"
        ),
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="a policy setting, such as slack_ratio=0.5; may be repeated")
    ] = None,
) -> None:
    """Run the control plane. Every flag may also be given as EDGELOOP_<FLAG> in the environment."""
    # Imported here: the other commands need neither the database nor the servers.
    from cloud.serve import serve as run_control_plane
    from cloud.settings import settings_from

    flags = {
        "state_dir": state_dir,
        "host": host,
        "fleet_port": fleet_port,
        "control_port": control_port,
        "broker": broker,
        "broker_port": broker_port,
        "database_url": database_url,
        "registry_url": registry_url,
        "director_dir": director_dir,
        "compute": compute,
        "ray_address": ray_address,
        "num_cpus": num_cpus,
        "step_interval_s": step_interval_s,
        "report_interval_s": report_interval_s,
        "deployment_lifetime_s": deployment_lifetime_s,
        "tuf_timestamp_lifetime_s": tuf_timestamp_lifetime_s,
        "metrics_port": metrics_port,
        "web_port": web_port,
        "log_level": log_level,
        "tls_dir": tls_dir,
        "enrol_port": enrol_port,
        "control_index": control_index,
        "advertise_fleet": advertise_fleet,
        "advertise_broker": advertise_broker,
        "certificate_ttl_s": certificate_ttl_s,
        "insecure": insecure,
    }
    asyncio.run(run_control_plane(settings_from({**flags, **_policy_flags(policy or [])}, os.environ)))


def _policy_flags(texts: list[str]) -> dict[str, float | int]:
    found: dict[str, float | int] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if key not in POLICY_KEYS:
            raise ConfigError(
                f"--policy {text}: known are {', '.join(sorted(POLICY_KEYS))}", code="settings-policy"
            )
        try:
            found[f"policy_{key}"] = POLICY_KEYS[key](value)
        except ValueError:
            raise ConfigError(f"--policy {text}: {value!r} is no number", code="settings-policy") from None
    return found
