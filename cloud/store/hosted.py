"""The workloads of devices that host several: rows beside the device's own.

Rules kept here:

- A device that runs one workload has no row, and costs nothing here.
- What is said of a workload is ordered as what is said of a device: generations never go down, and older word
  never replaces newer within one boot.
- Every function takes the connection of the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from cloud.domain.devices import Deployment, Device, HostedWorkload
from cloud.store import schema

_TABLE = schema.device_workloads


def any_hosted(connection: sa.Connection) -> bool:
    """Whether any device hosts several: else nothing of this module need be asked."""
    return connection.scalar(sa.select(_TABLE.c.device_id).limit(1)) is not None


def hosted_workloads(
    connection: sa.Connection, device_id: str | None = None
) -> dict[str, tuple[HostedWorkload, ...]]:
    """By device, in the device's own order."""
    statement = sa.select(_TABLE).order_by(_TABLE.c.device_id, _TABLE.c.position)
    if device_id is not None:
        statement = statement.where(_TABLE.c.device_id == device_id)
    found: dict[str, tuple[HostedWorkload, ...]] = {}
    for row in connection.execute(statement):
        host = HostedWorkload(
            workload=row.workload,
            generation=row.generation,
            serving_digest=row.serving_digest,
            serving_generation=row.serving_generation,
            profile=row.profile,
            message=row.message,
        )
        found[row.device_id] = (*found.get(row.device_id, ()), host)
    return found


def merged(hosted: Iterable[HostedWorkload], known: Iterable[HostedWorkload]) -> tuple[HostedWorkload, ...]:
    """What a registration says of each, with what was known before it."""
    before = {host.workload: host for host in known}
    return tuple(
        replace(
            host,
            generation=max(host.generation, old.generation if old else 0),
            serving_generation=serving_generation(host, old),
        )
        for host in hosted
        for old in (before.get(host.workload),)
    )


def serving_generation(said: Device | HostedWorkload, known: Device | HostedWorkload | None) -> int:
    """A registration names the digest that it serves, and not always the generation that brought it."""
    if not said.serving_digest:
        return 0
    if said.serving_generation:
        return said.serving_generation
    if known is not None and known.serving_digest == said.serving_digest:
        return known.serving_generation
    return said.generation


def keep_hosted(connection: sa.Connection, device: Device, *, same_boot: bool) -> None:
    """These and no others, in the place of those that were there."""
    own = _TABLE.c.device_id == device.device_id
    times = {
        row.workload: row.serving_time_s
        for row in connection.execute(sa.select(_TABLE.c.workload, _TABLE.c.serving_time_s).where(own))
    }
    if times:
        connection.execute(sa.delete(_TABLE).where(own))
    rows = [
        {
            "device_id": device.device_id,
            "workload": host.workload,
            "position": position,
            "profile": host.profile,
            "message": host.message,
            "generation": host.generation,
            "serving_digest": host.serving_digest,
            "serving_generation": host.serving_generation,
            "serving_time_s": times.get(host.workload, 0.0) if same_boot else 0.0,
        }
        for position, host in enumerate(device.hosted)
    ]
    if rows:
        connection.execute(sa.insert(_TABLE), rows)


def set_host_profile(
    connection: sa.Connection, device_id: str, workload: str, profile: str, message: str
) -> None:
    """After profiles or labels changed."""
    connection.execute(
        sa.update(_TABLE)
        .where(_TABLE.c.device_id == device_id, _TABLE.c.workload == workload)
        .values(profile=profile, message=message)
    )


def note_accepted(connection: sa.Connection, deployment: Deployment) -> None:
    """The device has said something of this deployment."""
    connection.execute(
        sa.update(_TABLE)
        .where(
            _TABLE.c.device_id == deployment.device_id,
            _TABLE.c.workload == deployment.workload,
            _TABLE.c.generation < deployment.generation,
        )
        .values(generation=deployment.generation)
    )


def note_served(connection: sa.Connection, served: list[dict[str, Any]]) -> None:
    """Newest word on what is served: ``of_device``, ``of_workload``, ``new_digest``, ``new_generation``,
    ``at_s`` by the device's clock."""
    connection.execute(
        sa.update(_TABLE)
        .where(
            _TABLE.c.device_id == sa.bindparam("of_device"),
            _TABLE.c.workload == sa.bindparam("of_workload"),
            _TABLE.c.serving_time_s <= sa.bindparam("at_s"),
        )
        .values(
            serving_digest=sa.bindparam("new_digest"),
            serving_generation=sa.bindparam("new_generation"),
            serving_time_s=sa.bindparam("at_s"),
        ),
        served,
    )


def newest_deployments(connection: sa.Connection) -> list[sa.Row[Any]]:
    """Rows of ``deployments``: for each hosted workload the newest that its device was told."""
    table = schema.deployments
    newest = (
        sa.select(table.c.device_id, sa.func.max(table.c.generation).label("generation"))
        .join(_TABLE, sa.and_(table.c.device_id == _TABLE.c.device_id, table.c.workload == _TABLE.c.workload))
        .group_by(table.c.device_id, table.c.workload)
        .subquery()
    )
    return list(
        connection.execute(
            sa.select(table).join(
                newest,
                sa.and_(table.c.device_id == newest.c.device_id, table.c.generation == newest.c.generation),
            )
        )
    )
