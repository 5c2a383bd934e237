"""How deployments get their generations, and their signatures.

Rules kept here:

- A device's generations only grow: a new one is above every one that was issued to it and above every one
  that it ever claimed to have accepted. Issuing reads and writes in one transaction.
- A device that hosts several workloads has one sequence of generations for all of them, and a newest
  deployment of each.
- The same wish is issued once: a controller that restarts and asks again gets the deployment that it had.
- A whole fleet takes a few statements, not a few for each device: rows of devices are held until the
  transaction ends, and the reports of these devices wait for that long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from cloud.domain.devices import Deployment, HostedWorkload
from cloud.domain.rollout import DeploymentIntent
from cloud.store import schema
from cloud.store.base import Database
from cloud.store.deployments import deployment_from
from cloud.store.hosted import any_hosted, hosted_workloads
from edgeloop.errors import RejectedError

#: Values in one IN list.
_MAX_IN_LIST: Final = 500


@dataclass(slots=True)
class _Told:
    """What one device was told so far, this transaction included."""

    reported: int
    hosted: tuple[HostedWorkload, ...]
    newest: Deployment | None = None
    of_workload: dict[str, Deployment] = field(default_factory=dict)

    def take(self, deployment: Deployment) -> None:
        self.of_workload[deployment.workload] = deployment
        if self.newest is None or deployment.generation > self.newest.generation:
            self.newest = deployment


class IssuingTables(Database):
    """New deployments."""

    def issue_deployment(self, intent: DeploymentIntent, now_s: float) -> Deployment:
        """Give the device a new generation, above every one that was issued to it or that it ever reported.

        The same (rollout_id, digest, manifest_digest) as its newest deployment returns that one, unchanged,
        as long as the device has not reported a higher generation (it would not obey it then). Where it
        hosts several workloads, newest and reported are those of the intent's.
        Raises RejectedError "device-unknown" for a device that never registered, and "workload-not-hosted".
        """
        (outcome,) = self.issue_deployments([intent], now_s)
        if isinstance(outcome, RejectedError):
            raise outcome
        return outcome

    def issue_deployments(
        self, intents: Sequence[DeploymentIntent], now_s: float
    ) -> list[Deployment | RejectedError]:
        """As ``issue_deployment`` for each, in their order, in one transaction."""
        if not intents:
            return []
        outcomes: list[Deployment | RejectedError] = []
        new: list[Deployment] = []
        with self._write() as connection:
            told = _told(connection, sorted({intent.device_id for intent in intents}))
            for intent in intents:
                outcome = _outcome(told.get(intent.device_id), intent, now_s)
                outcomes.append(outcome)
                if isinstance(outcome, Deployment):
                    if outcome is not told[intent.device_id].of_workload.get(outcome.workload):
                        new.append(outcome)
                    told[intent.device_id].take(outcome)
            if new:
                connection.execute(sa.insert(schema.deployments), [_row(deployment) for deployment in new])
        return outcomes

    def devices_ahead(self) -> set[str]:
        """Devices that say that they accepted a higher generation than they, or what they host, were told."""
        devices, hosted, table = schema.devices, schema.device_workloads, schema.deployments
        newest = (
            sa.select(table.c.device_id, sa.func.max(table.c.generation).label("generation"))
            .group_by(table.c.device_id)
            .subquery()
        )
        alone = (
            sa.select(devices.c.device_id)
            .join(newest, devices.c.device_id == newest.c.device_id)
            .where(
                devices.c.generation > newest.c.generation,
                devices.c.device_id.not_in(sa.select(hosted.c.device_id)),
            )
        )
        with self._read() as connection:
            found = set(connection.scalars(alone))
            if any_hosted(connection):
                of_workload = (
                    sa.select(table.c.device_id, table.c.workload, sa.func.max(table.c.generation).label("g"))
                    .group_by(table.c.device_id, table.c.workload)
                    .subquery()
                )
                same = sa.and_(
                    hosted.c.device_id == of_workload.c.device_id,
                    hosted.c.workload == of_workload.c.workload,
                )
                ahead = sa.select(hosted.c.device_id).join(of_workload, same)
                found.update(connection.scalars(ahead.where(hosted.c.generation > of_workload.c.g)))
        return found

    def set_signed(self, payloads: Mapping[tuple[str, int], bytes]) -> None:
        """Keep the bytes that are published, by device id and generation, all of them or none."""
        if not payloads:
            return
        table = schema.deployments
        statement = (
            sa.update(table)
            .where(
                table.c.device_id == sa.bindparam("of_device"),
                table.c.generation == sa.bindparam("of_generation"),
            )
            .values(signed=sa.bindparam("payload"))
        )
        with self._write() as connection:
            connection.execute(
                statement,
                [
                    {"of_device": device_id, "of_generation": generation, "payload": payload}
                    for (device_id, generation), payload in sorted(payloads.items())
                ],
            )


def _told(connection: sa.Connection, device_ids: Sequence[str]) -> dict[str, _Told]:
    """By device, of those that ever registered. Their rows are held until commit."""
    devices, table = schema.devices, schema.deployments
    found: dict[str, _Told] = {}
    hosted: Mapping[str, tuple[HostedWorkload, ...]] = {}
    if any_hosted(connection):
        hosted = hosted_workloads(connection, device_ids[0] if len(device_ids) == 1 else None)
    for first in range(0, len(device_ids), _MAX_IN_LIST):
        chunk = device_ids[first : first + _MAX_IN_LIST]
        # In order, as reports are written: two that lock rows of devices never wait for each other in a ring.
        held = (
            sa.select(devices.c.device_id, devices.c.generation)
            .where(devices.c.device_id.in_(chunk))
            .order_by(devices.c.device_id)
            .with_for_update()
        )
        for row in connection.execute(held):
            found[row.device_id] = _Told(row.generation, hosted.get(row.device_id, ()))
        newest = (
            sa.select(table.c.device_id, sa.func.max(table.c.generation).label("generation"))
            .where(table.c.device_id.in_(chunk))
            .group_by(table.c.device_id, table.c.workload)
            .subquery()
        )
        same = sa.and_(table.c.device_id == newest.c.device_id, table.c.generation == newest.c.generation)
        for deployment in map(deployment_from, connection.execute(sa.select(table).join(newest, same))):
            if deployment.device_id in found:
                found[deployment.device_id].take(deployment)
    return found


def _outcome(told: _Told | None, intent: DeploymentIntent, now_s: float) -> Deployment | RejectedError:
    """The deployment that says it already, or a new one."""
    if told is None:
        return RejectedError(
            f"device {intent.device_id} never registered: start its agent first", code="device-unknown"
        )
    said, accepted = told.newest, told.reported
    if told.hosted:
        host = next((host for host in told.hosted if host.workload == intent.workload), None)
        if host is None:
            return RejectedError(
                f"device {intent.device_id} does not host workload {intent.workload}: add a [[workload]] "
                "table to its settings",
                code="workload-not-hosted",
            )
        accepted = host.generation
        said = told.of_workload.get(intent.workload)
    if said is not None and said.generation >= accepted and _same_wish(said, intent):
        return said
    return Deployment(
        device_id=intent.device_id,
        workload=intent.workload,
        profile=intent.profile,
        generation=max(told.reported, told.newest.generation if told.newest else 0) + 1,
        digest=intent.digest,
        manifest_digest=intent.manifest_digest,
        rollout_id=intent.rollout_id,
        decision_id=intent.decision_id,
        issue_time_s=now_s,
        update_time_s=now_s,
    )


def _same_wish(deployment: Deployment, intent: DeploymentIntent) -> bool:
    return (deployment.rollout_id, deployment.digest, deployment.manifest_digest) == (
        intent.rollout_id,
        intent.digest,
        intent.manifest_digest,
    )


def _row(deployment: Deployment) -> dict[str, Any]:
    return {column.name: getattr(deployment, column.name) for column in schema.deployments.columns} | {
        "state": deployment.state.value
    }
