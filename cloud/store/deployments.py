"""What each device was told to run, and what it said of it.

Rules kept here:

- How a device's generations grow is said in ``cloud.store.issuing``; what it accepted never goes down.
- A deployment ends in the first terminal state that was reported; what is said of it later changes nothing.
- What a device serves is ordered by the device's own clock within one boot: old word never replaces newer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from cloud.domain.devices import Deployment, DeploymentState, DeploymentStatus
from cloud.store import schema
from cloud.store.base import Database
from cloud.store.hosted import (
    any_hosted,
    hosted_workloads,
    newest_deployments,
    note_accepted,
    note_served,
)
from edgeloop.errors import RejectedError

#: What a device may fill with statuses of generations that nobody issued.
MAX_HISTORY_PER_DEVICE = 1000

_SERVING = frozenset({DeploymentState.TRIAL, DeploymentState.ACTIVE})
_TERMINAL = [state.value for state in DeploymentState if state.terminal]


class DeploymentTables(Database):
    """Deployments and what became of each."""

    def deployments(self, profile: str | None = None) -> list[Deployment]:
        """The newest of each device, by device id; of each of its workloads where it hosts several."""
        table = schema.deployments
        newest = (
            sa.select(table.c.device_id, sa.func.max(table.c.generation).label("generation"))
            .group_by(table.c.device_id)
            .subquery()
        )
        statement = (
            sa.select(table)
            .join(
                newest,
                sa.and_(table.c.device_id == newest.c.device_id, table.c.generation == newest.c.generation),
            )
            .order_by(table.c.device_id)
        )
        if profile is not None:
            statement = statement.where(table.c.profile == profile)
        with self._read() as connection:
            found = [deployment_from(row) for row in connection.execute(statement)]
            if not any_hosted(connection):
                return found
            hosting = hosted_workloads(connection).keys()
            found = [deployment for deployment in found if deployment.device_id not in hosting]
            found += [
                deployment
                for deployment in map(deployment_from, newest_deployments(connection))
                if profile is None or deployment.profile == profile
            ]
        return sorted(found, key=lambda deployment: (deployment.device_id, deployment.workload))

    def deployment(self, device_id: str, workload: str | None = None) -> Deployment | None:
        """The newest, of one workload or of all; None when it was never told to run anything."""
        with self._read() as connection:
            return _newest(connection, device_id, workload)

    def record_status(self, status: DeploymentStatus, now_s: float) -> bool:
        """False when it was known already, or came after a terminal state of the same generation.

        Raises RejectedError "device-unknown" for a device that never registered, and "deployment-digest" when
        the generation was issued with another digest.
        """
        history = schema.deployment_history.c
        with self._write() as connection:
            device = device_row_for_update(connection, status.device_id)
            if device is None:
                raise RejectedError(
                    f"device {status.device_id} is not registered: register first", code="device-unknown"
                )
            if status.state is DeploymentState.REFUSED:
                # Nothing that the device runs or accepted changes by it: the newest of a generation is kept.
                refused = connection.scalar(
                    sa.select(history.event_time_s).where(
                        history.device_id == status.device_id,
                        history.generation == status.generation,
                        history.state == status.state.value,
                    )
                )
                if refused is not None and refused >= status.event_time_s:
                    return False
                self._upsert(connection, schema.deployment_history, _history_row(status, now_s))
                _trim_history(connection, status.device_id)
                return True
            deployment = _one_deployment(connection, status.device_id, status.generation)
            if deployment is not None and deployment.digest != status.digest:
                raise RejectedError(
                    f"generation {status.generation} of {status.device_id} is {deployment.digest[:12]}, not "
                    f"{status.digest[:12]}: report the digest that was deployed",
                    code="deployment-digest",
                )
            of_generation = sa.and_(
                history.device_id == status.device_id,
                history.generation == status.generation,
                history.state != DeploymentState.REFUSED.value,
            )
            known = {
                row.state: row.progress
                for row in connection.execute(sa.select(history.state, history.progress).where(of_generation))
            }
            if not _may_follow(status, known):
                return False
            if known.get(status.state.value, -1.0) >= status.progress:
                return False
            self._upsert(connection, schema.deployment_history, _history_row(status, now_s))
            _trim_history(connection, status.device_id)
            if deployment is not None and _comes_after(status.state, known):
                _update_deployment(connection, status, now_s)
            self._note_serving(connection, device, status, deployment, now_s)
        return True

    def history(self, device_id: str, limit: int = 100) -> list[DeploymentStatus]:
        """Newest first."""
        table = schema.deployment_history
        statement = (
            sa.select(table)
            .where(table.c.device_id == device_id)
            .order_by(table.c.receive_time_s.desc(), table.c.generation.desc(), table.c.event_time_s.desc())
            .limit(limit)
        )
        with self._read() as connection:
            return [_status(row) for row in connection.execute(statement)]

    def statuses_since(
        self, since_s: float, *, device_id: str | None = None, profile: str | None = None, limit: int
    ) -> list[tuple[float, DeploymentStatus]]:
        """With the time when each was received, newest first, at most ``limit``."""
        table = schema.deployment_history
        statement = sa.select(table).where(table.c.receive_time_s >= since_s)
        if device_id is not None:
            statement = statement.where(table.c.device_id == device_id)
        if profile is not None:
            statement = statement.where(_said_under(profile))
        statement = statement.order_by(table.c.receive_time_s.desc()).limit(limit)
        with self._read() as connection:
            return [(row.receive_time_s, _status(row)) for row in connection.execute(statement)]

    def _note_serving(
        self,
        connection: sa.Connection,
        device: sa.Row[Any],
        status: DeploymentStatus,
        deployment: Deployment | None,
        now_s: float,
    ) -> None:
        """A status proves that the device accepted its generation, and maybe that it serves it."""
        values: dict[str, Any] = {
            "generation": max(device.generation, status.generation),
            "last_seen_s": max(device.last_seen_s, now_s),
        }
        is_hosting = bool(hosted_workloads(connection, status.device_id))
        if is_hosting and deployment is not None:
            note_accepted(connection, deployment)
            if status.state in _SERVING:
                served = {
                    "of_device": status.device_id,
                    "of_workload": deployment.workload,
                    "new_digest": status.digest,
                    "new_generation": status.generation,
                    "at_s": status.event_time_s,
                }
                note_served(connection, [served])
        if not is_hosting and status.state in _SERVING and status.event_time_s >= device.serving_time_s:
            values |= {
                "serving_digest": status.digest,
                "serving_generation": status.generation,
                "serving_time_s": status.event_time_s,
            }
        table = schema.devices
        connection.execute(sa.update(table).where(table.c.device_id == status.device_id).values(**values))


def device_row_for_update(connection: sa.Connection, device_id: str) -> sa.Row[Any] | None:
    """Held until commit, so that two writers take turns."""
    table = schema.devices
    statement = sa.select(table).where(table.c.device_id == device_id).with_for_update()
    return connection.execute(statement).one_or_none()


_ORDER = {state.value: position for position, state in enumerate(DeploymentState)}


def _may_follow(status: DeploymentStatus, known: Iterable[str]) -> bool:
    """A deployment ends once. Only what the device gave up in a crash loop may have been active before."""
    ends = {other for other in map(DeploymentState, known) if other.terminal}
    return not ends or (_gave_up(status) and ends == {DeploymentState.ACTIVE})


def _gave_up(status: DeploymentStatus) -> bool:
    return status.state is DeploymentState.ROLLED_BACK and status.code == "crash-loop"


def _comes_after(state: DeploymentState, known: Iterable[str]) -> bool:
    """Statuses may arrive out of order: a deployment never goes back to an earlier state."""
    return all(_ORDER[state.value] >= _ORDER[other] for other in known)


def _newest(connection: sa.Connection, device_id: str, workload: str | None = None) -> Deployment | None:
    table = schema.deployments
    statement = sa.select(table).where(table.c.device_id == device_id)
    if workload is not None:
        statement = statement.where(table.c.workload == workload)
    row = connection.execute(statement.order_by(table.c.generation.desc()).limit(1)).one_or_none()
    return None if row is None else deployment_from(row)


def _one_deployment(connection: sa.Connection, device_id: str, generation: int) -> Deployment | None:
    table = schema.deployments
    row = connection.execute(
        sa.select(table).where(table.c.device_id == device_id, table.c.generation == generation)
    ).one_or_none()
    return None if row is None else deployment_from(row)


def _update_deployment(connection: sa.Connection, status: DeploymentStatus, now_s: float) -> None:
    table = schema.deployments
    ended = _TERMINAL if not _gave_up(status) else [end for end in _TERMINAL if end != "active"]
    connection.execute(
        sa.update(table)
        .where(
            table.c.device_id == status.device_id,
            table.c.generation == status.generation,
            table.c.state.not_in(ended),
        )
        .values(
            state=status.state.value,
            code=status.code,
            message=status.message,
            progress=status.progress,
            update_time_s=now_s,
        )
    )


def _trim_history(connection: sa.Connection, device_id: str) -> None:
    table = schema.deployment_history
    cut = connection.scalar(
        sa.select(table.c.generation)
        .where(table.c.device_id == device_id)
        .order_by(table.c.generation.desc())
        .offset(MAX_HISTORY_PER_DEVICE)
        .limit(1)
    )
    if cut is not None:
        connection.execute(sa.delete(table).where(table.c.device_id == device_id, table.c.generation <= cut))


def deployment_from(row: sa.Row[Any]) -> Deployment:
    """From a whole row of the table."""
    return Deployment(**{**row._mapping, "state": DeploymentState(row.state), "signed": bytes(row.signed)})


def _said_under(profile: str) -> sa.ColumnElement[bool]:
    """All of the profile's devices; of those that host several workloads what they said of this profile's."""
    said, devices, told = schema.deployment_history.c, schema.devices.c, schema.deployments.c
    hosting = sa.select(schema.device_workloads.c.device_id)
    alone = sa.select(devices.device_id).where(devices.profile == profile, devices.device_id.not_in(hosting))
    of_it = sa.exists().where(
        told.device_id == said.device_id, told.generation == said.generation, told.profile == profile
    )
    return sa.or_(said.device_id.in_(alone), sa.and_(said.device_id.in_(hosting), of_it))


def _status(row: sa.Row[Any]) -> DeploymentStatus:
    return DeploymentStatus(
        device_id=row.device_id,
        generation=row.generation,
        digest=row.digest,
        state=DeploymentState(row.state),
        code=row.code,
        message=row.message,
        event_time_s=row.event_time_s,
        progress=row.progress,
    )


def _history_row(status: DeploymentStatus, now_s: float) -> dict[str, Any]:
    return {
        "device_id": status.device_id,
        "generation": status.generation,
        "state": status.state.value,
        "digest": status.digest,
        "code": status.code,
        "message": status.message,
        "progress": status.progress,
        "event_time_s": status.event_time_s,
        "receive_time_s": now_s,
    }
