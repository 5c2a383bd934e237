"""Staged exposure of a new digest to a profile's devices.

Rules kept here:

- Groups go one after the other: first the canaries, then the rest, or as the plan names them. Canaries are
  devices that are connected.
- Of a group that has started, devices are told as the plan's rate and window allow (exposure.py).
- Devices that join the profile while it runs are taken into its last group.
- A group succeeds on what its devices *measured* of the digest that serves, not on "installed" (groups.py).
- Each device ends in exactly one terminal state; what it says after that changes nothing here.
- A rollout that fails or is aborted brings the previous digest back to every device that had been told the
  new one. One that is superseded brings nothing back: the newer one says what is to run.
- ``advance`` is idempotent: until something changed, asking again gives the same rollout and no new intent.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from cloud.domain.devices import DeploymentState
from cloud.domain.exposure import exposed_now, has_missed
from cloud.domain.fleet_device import DeploymentIntent, FleetDevice
from cloud.domain.groups import (
    GroupEvidence,
    RolloutDevice,
    RolloutDeviceState,
    RolloutGroup,
    RolloutGroupState,
    judge,
    new_group,
)
from cloud.domain.profiles import DeviceProfile, RolloutPlan

__all__ = [
    "DeploymentIntent",
    "FleetDevice",
    "GroupEvidence",
    "Rollout",
    "RolloutDevice",
    "RolloutDeviceState",
    "RolloutGroup",
    "RolloutGroupState",
    "RolloutPlan",
    "RolloutState",
    "abort",
    "advance",
    "intent_for",
    "pause",
    "plan_rollout",
    "resume",
    "running_group",
    "started_devices",
    "supersede",
]


class RolloutState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABORTED = "aborted"
    SUPERSEDED = "superseded"

    @property
    def is_terminal(self) -> bool:
        return self not in (RolloutState.RUNNING, RolloutState.PAUSED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    rollout_id: str
    profile: str
    workload: str
    digest: str
    manifest_digest: str
    previous_digest: str
    previous_manifest_digest: str
    plan: RolloutPlan
    groups: tuple[RolloutGroup, ...]
    state: RolloutState = RolloutState.RUNNING
    message: str = ""
    create_time_s: float = 0.0
    update_time_s: float = 0.0
    decision_id: str = ""
    #: When it was last resumed; 0 when it never was.
    resume_time_s: float = 0.0


def plan_rollout(
    *,
    rollout_id: str,
    profile: DeviceProfile,
    digest: str,
    manifest_digest: str,
    previous_digest: str,
    previous_manifest_digest: str,
    devices: Sequence[FleetDevice],
    now_s: float,
    decision_id: str = "",
    plan: RolloutPlan | None = None,
) -> Rollout:
    """A rollout over those of ``devices`` that belong to the profile; the same call gives the same groups.

    Without devices it has no groups and succeeds at once: those who join later take the digest in.
    """
    plan = plan or profile.rollout
    members = sorted(
        (device for device in devices if device.profile == profile.name),
        # Not by name: the same devices should not be the canaries of every rollout.
        key=lambda device: (
            not device.connected,
            hashlib.sha256(f"{rollout_id}/{device.device_id}".encode()).digest(),
        ),
    )
    groups = []
    for number, wanted in enumerate(plan.group_plans):
        is_last = number == len(plan.group_plans) - 1
        # Rounded: 7 % of 100 is 7, and not the 7.000000000000001 that floats make of it.
        share = len(members) * wanted.target_percentage / 100
        size = len(members) if is_last else max(1, math.ceil(round(share, 6)))
        part, members = members[:size], members[size:]
        if part:
            groups.append(new_group(wanted, (device.device_id for device in part)))
    return Rollout(
        rollout_id=rollout_id,
        profile=profile.name,
        workload=profile.workload,
        digest=digest,
        manifest_digest=manifest_digest,
        previous_digest=previous_digest,
        previous_manifest_digest=previous_manifest_digest,
        plan=plan,
        groups=tuple(groups),
        create_time_s=now_s,
        update_time_s=now_s,
        decision_id=decision_id,
    )


def advance(
    rollout: Rollout,
    devices: Sequence[FleetDevice],
    now_s: float,
    *,
    evidence: GroupEvidence | None = None,
) -> tuple[Rollout, list[DeploymentIntent]]:
    """One step. ``evidence`` is about the devices of ``running_group(rollout)``; None means no objective.

    A group that starts in this step is not judged by it.
    """
    # One that hosts several workloads stands in the fleet under several profiles.
    devices = [device for device in devices if device.profile == rollout.profile]
    by_id = {device.device_id: device for device in devices}
    after = rollout
    if not rollout.state.is_terminal:
        judged = running_group(rollout)
        after = _observe(_taken_in(after, devices), by_id, now_s)
        if after.state is RolloutState.RUNNING:
            after = _progress(after, by_id, judged.name if judged else "", evidence, now_s)
        if after != rollout:
            after = replace(after, update_time_s=now_s)
    started = started_devices(after)
    wanted = (intent for device in devices if (intent := intent_for(after, device, started)) is not None)
    return after, sorted(
        (intent for intent in wanted if not intent.is_said_to(by_id[intent.device_id])),
        key=lambda intent: intent.device_id,
    )


def started_devices(rollout: Rollout) -> frozenset[str]:
    """Devices that were told, ended or not."""
    not_in = (RolloutDeviceState.WAITING, RolloutDeviceState.REMOVED, RolloutDeviceState.MISSED)
    return frozenset(
        device.device_id for group in rollout.groups for device in group.devices if device.state not in not_in
    )


def intent_for(rollout: Rollout, device: FleetDevice, started: Collection[str]) -> DeploymentIntent | None:
    """What this rollout wants the device to run; None when it has no say (any more, or yet).

    ``started`` is ``started_devices(rollout)``, which serves for all devices.
    """
    if device.profile != rollout.profile:
        return None
    if rollout.state in (RolloutState.FAILED, RolloutState.ABORTED):
        told = device.deployment
        has_changed = (
            told is not None and told.rollout_id == rollout.rollout_id and told.digest == rollout.digest
        )
        if not has_changed or not rollout.previous_digest:
            return None
        digest, manifest_digest = rollout.previous_digest, rollout.previous_manifest_digest
    elif rollout.state.is_terminal or device.device_id not in started:
        return None
    else:
        digest, manifest_digest = rollout.digest, rollout.manifest_digest
    return DeploymentIntent(
        device_id=device.device_id,
        workload=rollout.workload,
        profile=rollout.profile,
        digest=digest,
        manifest_digest=manifest_digest,
        rollout_id=rollout.rollout_id,
        decision_id=rollout.decision_id,
    )


def running_group(rollout: Rollout) -> RolloutGroup | None:
    """The group that has started and not ended."""
    return next((group for group in rollout.groups if group.state is RolloutGroupState.RUNNING), None)


def pause(rollout: Rollout, now_s: float) -> Rollout:
    """No further device is told, and no time runs out. Raises ``ValueError`` for a rollout that has ended."""
    _refuse_ended(rollout, "paused")
    return replace(rollout, state=RolloutState.PAUSED, message="paused by an operator", update_time_s=now_s)


def resume(rollout: Rollout, now_s: float) -> Rollout:
    """Go on; the time that devices have begins anew. Raises ``ValueError`` for a rollout that has ended."""
    _refuse_ended(rollout, "resumed")
    if rollout.state is RolloutState.RUNNING:
        return rollout

    def begin_anew(record: RolloutDevice) -> RolloutDevice:
        return (
            replace(record, start_time_s=now_s) if record.state is RolloutDeviceState.IN_PROGRESS else record
        )

    groups = tuple(
        replace(group.each(begin_anew), settle_time_s=now_s if group.settle_time_s else 0.0)
        for group in rollout.groups
    )
    return replace(
        rollout,
        state=RolloutState.RUNNING,
        groups=groups,
        message="",
        update_time_s=now_s,
        resume_time_s=now_s,
    )


def abort(rollout: Rollout, now_s: float, reason: str = "aborted by an operator") -> Rollout:
    """Then ``advance`` (or ``reconcile``) gives the intents that bring the previous digest back.

    Raises ``ValueError`` for a rollout that has ended in another way; aborting twice is no error.
    """
    if rollout.state is RolloutState.ABORTED:
        return rollout
    _refuse_ended(rollout, "aborted")
    return _end(rollout, RolloutState.ABORTED, reason, now_s)


def supersede(rollout: Rollout, now_s: float, *, by_rollout_id: str) -> Rollout:
    """A newer rollout of the same profile has come: nothing is brought back."""
    if rollout.state.is_terminal:
        return rollout
    return _end(rollout, RolloutState.SUPERSEDED, f"superseded by rollout {by_rollout_id}", now_s)


def _refuse_ended(rollout: Rollout, verb: str) -> None:
    if rollout.state.is_terminal:
        raise ValueError(f"rollout {rollout.rollout_id} has ended ({rollout.state}): it cannot be {verb}")


def _taken_in(rollout: Rollout, devices: Iterable[FleetDevice]) -> Rollout:
    """With the devices that have joined the profile since, in the last group."""
    known = {record.device_id for group in rollout.groups for record in group.devices}
    joined = sorted(
        device.device_id
        for device in devices
        if device.profile == rollout.profile and device.device_id not in known
    )
    if not joined:
        return rollout
    last = rollout.plan.group_plans[-1]
    if not rollout.groups or rollout.groups[-1].name != last.name:
        return replace(rollout, groups=(*rollout.groups, new_group(last, joined)))
    group = rollout.groups[-1]
    records = (*group.devices, *(RolloutDevice(device_id=device_id) for device_id in joined))
    return _with_group(rollout, len(rollout.groups) - 1, replace(group, devices=records, settle_time_s=0.0))


def _observe(rollout: Rollout, by_id: Mapping[str, FleetDevice], now_s: float) -> Rollout:
    """Note what the devices of started groups have come to, and which devices have left."""

    def observed(group: RolloutGroup) -> RolloutGroup:
        return group.each(
            lambda record: _observed(rollout, group, record, by_id.get(record.device_id), now_s)
        )

    return replace(rollout, groups=tuple(observed(group) for group in rollout.groups))


def _observed(
    rollout: Rollout, group: RolloutGroup, record: RolloutDevice, device: FleetDevice | None, now_s: float
) -> RolloutDevice:
    if record.state.is_terminal:
        return record
    if device is None or device.profile != rollout.profile:
        return _ended(record, RolloutDeviceState.REMOVED, "it left the profile", now_s)
    if record.state is RolloutDeviceState.WAITING:
        is_due = rollout.state is RolloutState.RUNNING and group.state is RolloutGroupState.RUNNING
        since_s = max(group.start_time_s, rollout.resume_time_s)
        if is_due and has_missed(rollout.plan, device, since_s, now_s):
            return _ended(
                record, RolloutDeviceState.MISSED, "it was not connected in its maintenance window", now_s
            )
        return record
    told = device.deployment
    if told is not None and told.digest == rollout.digest:
        if told.state is DeploymentState.ACTIVE:
            return _ended(record, RolloutDeviceState.SUCCEEDED, "", now_s)
        if told.state in (DeploymentState.REJECTED, DeploymentState.ROLLED_BACK):
            return _ended(record, RolloutDeviceState.FAILED, told.message or told.code or told.state, now_s)
    if rollout.state is RolloutState.RUNNING and now_s - record.start_time_s >= rollout.plan.timeout_s:
        stage = told.state if told is not None and told.digest == rollout.digest else "not told"
        return _ended(record, RolloutDeviceState.TIMED_OUT, f"no end in time: {stage}", now_s)
    return record


def _exposed(group: RolloutGroup, device_ids: Collection[str], now_s: float) -> RolloutGroup:
    def begin(record: RolloutDevice) -> RolloutDevice:
        if record.device_id not in device_ids:
            return record
        return replace(record, state=RolloutDeviceState.IN_PROGRESS, start_time_s=now_s, expose_time_s=now_s)

    return group.each(begin)


def _ended(record: RolloutDevice, state: RolloutDeviceState, message: str, now_s: float) -> RolloutDevice:
    return replace(record, state=state, message=message, end_time_s=now_s)


def _progress(
    rollout: Rollout,
    by_id: Mapping[str, FleetDevice],
    judged: str,
    evidence: GroupEvidence | None,
    now_s: float,
) -> Rollout:
    """Judge the running group and start the next, until one has to wait for its devices."""
    for i, group in enumerate(rollout.groups):
        if group.state is RolloutGroupState.SUCCEEDED:
            continue
        if group.state is RolloutGroupState.WAITING:
            group = replace(group, state=RolloutGroupState.RUNNING, start_time_s=now_s)
        exposed = exposed_now(rollout.groups, group, rollout.plan, by_id, now_s)
        group = _exposed(group, exposed, now_s)
        if group != rollout.groups[i]:
            rollout = _observe(_with_group(rollout, i, group), by_id, now_s)
            group = rollout.groups[i]
        state, message, settle_time_s = judge(
            group,
            rollout.plan,
            evidence if group.name == judged else None,
            has_objective=evidence is not None,
            now_s=now_s,
        )
        rollout = _with_group(rollout, i, replace(group, state=state, settle_time_s=settle_time_s))
        rollout = replace(rollout, message=message)
        if state is RolloutGroupState.FAILED:
            return _end(rollout, RolloutState.FAILED, message, now_s)
        if state is RolloutGroupState.RUNNING:
            return rollout
    return _end(rollout, RolloutState.SUCCEEDED, _summary(rollout.groups), now_s)


def _summary(groups: Iterable[RolloutGroup]) -> str:
    records = [record for group in groups for record in group.devices]
    if not records:
        return "no device belonged to the profile: those that join take it in"
    num_active = sum(record.state is RolloutDeviceState.SUCCEEDED for record in records)
    return f"{num_active} of {len(records)} devices serve it"


def _with_group(rollout: Rollout, i: int, group: RolloutGroup) -> Rollout:
    return replace(rollout, groups=(*rollout.groups[:i], group, *rollout.groups[i + 1 :]))


def _end(rollout: Rollout, state: RolloutState, message: str, now_s: float) -> Rollout:
    """The end of a rollout is the end of each of its devices."""

    def end(record: RolloutDevice) -> RolloutDevice:
        if record.state.is_terminal:
            return record
        return _ended(record, RolloutDeviceState.SUPERSEDED, f"the rollout {state}", now_s)

    groups = tuple(group.each(end) for group in rollout.groups)
    return replace(rollout, state=state, groups=groups, message=message, update_time_s=now_s)
