"""Staged exposure of a new digest to a profile's devices.

Rules kept here:

- Groups go one after the other: first the canaries, then the rest. Canaries are devices that are connected.
- A group succeeds on what its devices *measured* of the digest that serves, not on "installed": it fails when
  p95 is beyond doubt above both the objective and what the previous digest measured.
- Each device ends in exactly one terminal state; what it says after that changes nothing here.
- A device that does not answer within ``timeout_s`` counts as an error against ``error_threshold``, but does not
  count against ``success_threshold``: one that is offline for good cannot stop every rollout.
- A rollout that fails or is aborted brings the previous digest back to every device that had been told the new
  one. One that is superseded brings nothing back: the newer one says what is to run.
- ``advance`` is idempotent: until something changed, asking again gives the same rollout and no new intent.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from cloud.domain.devices import Deployment, DeploymentState, Device
from cloud.domain.profiles import DeviceProfile, RolloutPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetDevice:
    """One registered device: the profile that it matches now ("" when none) and its newest deployment."""

    device_id: str
    profile: str
    connected: bool = False
    deployment: Deployment | None = None

    @classmethod
    def of(cls, device: Device, deployment: Deployment | None) -> Self:
        """From what the store keeps."""
        return cls(
            device_id=device.device_id,
            profile=device.profile,
            connected=device.connected,
            deployment=deployment,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DeploymentIntent:
    """What one device shall be told to run next; whoever applies it gives it the device's next generation."""

    device_id: str
    workload: str
    profile: str
    digest: str
    manifest_digest: str
    rollout_id: str = ""
    decision_id: str = ""

    def is_said_to(self, device: FleetDevice) -> bool:
        """Whether the device's newest deployment already says this, whoever asked for it."""
        told = device.deployment
        return told is not None and (told.workload, told.profile, told.digest, told.manifest_digest) == (
            self.workload,
            self.profile,
            self.digest,
            self.manifest_digest,
        )


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


class RolloutGroupState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class RolloutDeviceState(StrEnum):
    WAITING = "waiting"  # its group has not started
    IN_PROGRESS = "in-progress"  # told; not ended
    SUCCEEDED = "succeeded"  # serves the digest, committed
    FAILED = "failed"  # refused it, or went back to what it had
    TIMED_OUT = "timed-out"  # did not end in time
    SUPERSEDED = "superseded"  # something newer came, or the rollout ended, before it ended
    REMOVED = "removed"  # left the profile or the fleet

    @property
    def is_terminal(self) -> bool:
        return self not in (RolloutDeviceState.WAITING, RolloutDeviceState.IN_PROGRESS)


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutDevice:
    device_id: str
    state: RolloutDeviceState = RolloutDeviceState.WAITING
    start_time_s: float = 0.0
    end_time_s: float = 0.0
    message: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutGroup:
    name: str
    devices: tuple[RolloutDevice, ...]
    state: RolloutGroupState = RolloutGroupState.WAITING
    start_time_s: float = 0.0
    #: When the last device ended; from then on the group waits for its latency only.
    settle_time_s: float = 0.0

    def count(self, *states: RolloutDeviceState) -> int:
        """How many of its devices are in one of these states."""
        return sum(device.state in states for device in self.devices)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupEvidence:
    """What a group's devices measured of the rollout's digest; 0 stands for not measured (yet).

    ``previous_p95_ms`` is what the previous digest measured on the profile, ``objective_p95_ms`` what the
    profile must meet; each 0 when there is none.
    """

    p95_ms: float = 0.0
    lower_p95_ms: float = 0.0
    num_samples: int = 0
    previous_p95_ms: float = 0.0
    objective_p95_ms: float = 0.0


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
    num_canaries = min(len(members), max(1, math.ceil(plan.canary_share * len(members))))
    groups = tuple(
        RolloutGroup(
            name=name,
            devices=tuple(
                RolloutDevice(device_id=device.device_id)
                for device in sorted(part, key=lambda device: device.device_id)
            ),
        )
        for name, part in (("canary", members[:num_canaries]), ("rest", members[num_canaries:]))
        if part
    )
    return Rollout(
        rollout_id=rollout_id,
        profile=profile.name,
        workload=profile.workload,
        digest=digest,
        manifest_digest=manifest_digest,
        previous_digest=previous_digest,
        previous_manifest_digest=previous_manifest_digest,
        plan=plan,
        groups=groups,
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

    Give the evidence to the step that it was gathered for: a group that starts in this step is not judged by it.
    """
    by_id = {device.device_id: device for device in devices}
    after = rollout
    if not rollout.state.is_terminal:
        judged = running_group(rollout)
        after = _observe(after, by_id, now_s)
        if after.state is RolloutState.RUNNING:
            after = _progress(after, by_id, judged.name if judged else "", evidence, now_s)
        if after != rollout:
            after = replace(after, update_time_s=now_s)
    wanted = (intent for device in devices if (intent := intent_for(after, device)) is not None)
    return after, sorted(
        (intent for intent in wanted if not intent.is_said_to(by_id[intent.device_id])),
        key=lambda intent: intent.device_id,
    )


def intent_for(rollout: Rollout | None, device: FleetDevice) -> DeploymentIntent | None:
    """What this rollout wants the device to run; None when it has no say (any more, or yet)."""
    if rollout is None or device.profile != rollout.profile:
        return None
    if rollout.state in (RolloutState.FAILED, RolloutState.ABORTED):
        told = device.deployment
        has_changed = (
            told is not None and told.rollout_id == rollout.rollout_id and told.digest == rollout.digest
        )
        if not has_changed or not rollout.previous_digest:
            return None
        digest, manifest_digest = rollout.previous_digest, rollout.previous_manifest_digest
    elif rollout.state.is_terminal or not _has_started(rollout, device.device_id):
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
    """No further group starts, and no time runs out. Raises ``ValueError`` for a rollout that has ended."""
    _refuse_ended(rollout, "paused")
    return replace(rollout, state=RolloutState.PAUSED, message="paused by an operator", update_time_s=now_s)


def resume(rollout: Rollout, now_s: float) -> Rollout:
    """Go on; the time that devices have begins anew. Raises ``ValueError`` for a rollout that has ended."""
    _refuse_ended(rollout, "resumed")
    if rollout.state is RolloutState.RUNNING:
        return rollout
    groups = tuple(
        replace(
            group,
            settle_time_s=now_s if group.settle_time_s else 0.0,
            devices=tuple(
                replace(device, start_time_s=now_s)
                if device.state is RolloutDeviceState.IN_PROGRESS
                else device
                for device in group.devices
            ),
        )
        for group in rollout.groups
    )
    return replace(rollout, state=RolloutState.RUNNING, groups=groups, message="", update_time_s=now_s)


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


def _has_started(rollout: Rollout, device_id: str) -> bool:
    return any(
        device.device_id == device_id and device.state is not RolloutDeviceState.WAITING
        for group in rollout.groups
        for device in group.devices
    )


def _observe(rollout: Rollout, by_id: Mapping[str, FleetDevice], now_s: float) -> Rollout:
    """Note what the devices of started groups have come to, and which devices have left."""
    groups = tuple(
        replace(
            group,
            devices=tuple(
                _observed(rollout, record, by_id.get(record.device_id), now_s) for record in group.devices
            ),
        )
        for group in rollout.groups
    )
    return replace(rollout, groups=groups)


def _observed(
    rollout: Rollout, record: RolloutDevice, device: FleetDevice | None, now_s: float
) -> RolloutDevice:
    if record.state.is_terminal:
        return record
    if device is None or device.profile != rollout.profile:
        return _ended(record, RolloutDeviceState.REMOVED, "it left the profile", now_s)
    if record.state is RolloutDeviceState.WAITING:
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
            started = (
                replace(record, state=RolloutDeviceState.IN_PROGRESS, start_time_s=now_s)
                if record.state is RolloutDeviceState.WAITING
                else record
                for record in group.devices
            )
            group = replace(
                group, state=RolloutGroupState.RUNNING, start_time_s=now_s, devices=tuple(started)
            )
            rollout = _observe(_with_group(rollout, i, group), by_id, now_s)
            group = rollout.groups[i]
        state, message, settle_time_s = _judge(
            rollout, group, evidence if group.name == judged else None, evidence is not None, now_s
        )
        rollout = _with_group(rollout, i, replace(group, state=state, settle_time_s=settle_time_s))
        rollout = replace(rollout, message=message)
        if state is RolloutGroupState.FAILED:
            return _end(rollout, RolloutState.FAILED, message, now_s)
        if state is RolloutGroupState.RUNNING:
            return rollout
    return _end(rollout, RolloutState.SUCCEEDED, _summary(rollout.groups), now_s)


def _judge(
    rollout: Rollout,
    group: RolloutGroup,
    evidence: GroupEvidence | None,
    has_objective: bool,
    now_s: float,
) -> tuple[RolloutGroupState, str, float]:
    """(state, message, settle time) of a group that has started."""
    plan = rollout.plan
    num_all = len(group.devices) - group.count(RolloutDeviceState.REMOVED, RolloutDeviceState.SUPERSEDED)
    num_active = group.count(RolloutDeviceState.SUCCEEDED)
    num_timed_out = group.count(RolloutDeviceState.TIMED_OUT)
    num_errors = group.count(RolloutDeviceState.FAILED) + num_timed_out
    if num_all == 0:
        return RolloutGroupState.SUCCEEDED, "", now_s
    if num_errors and num_errors >= plan.error_threshold * num_all:
        return RolloutGroupState.FAILED, f"{group.name}: {_errors(group, num_all)}", now_s
    if group.count(RolloutDeviceState.IN_PROGRESS):
        return (
            RolloutGroupState.RUNNING,
            f"{group.name}: {num_active} of {num_all} serve it",
            group.settle_time_s,
        )
    if num_active < plan.success_threshold * (num_all - num_timed_out):
        return RolloutGroupState.FAILED, f"{group.name}: {_errors(group, num_all)}", now_s
    settle_time_s = group.settle_time_s or now_s
    if num_active == 0 or not has_objective:
        return RolloutGroupState.SUCCEEDED, "", settle_time_s
    if evidence is None or evidence.p95_ms <= 0:
        if now_s - settle_time_s < plan.timeout_s:
            return (
                RolloutGroupState.RUNNING,
                f"{group.name}: all serve it, waiting for latency",
                settle_time_s,
            )
        return RolloutGroupState.SUCCEEDED, "", settle_time_s  # no traffic: nothing speaks against it
    sure_ms = evidence.lower_p95_ms or evidence.p95_ms
    if evidence.objective_p95_ms and evidence.previous_p95_ms:
        bound_ms = max(evidence.objective_p95_ms, evidence.previous_p95_ms)
        if sure_ms > bound_ms:
            return (
                RolloutGroupState.FAILED,
                f"{group.name}: p95 {evidence.p95_ms:.3g} ms is over the objective "
                f"({evidence.objective_p95_ms:.3g} ms) and over what served before "
                f"({evidence.previous_p95_ms:.3g} ms)",
                settle_time_s,
            )
    return RolloutGroupState.SUCCEEDED, "", settle_time_s


def _errors(group: RolloutGroup, num_all: int) -> str:
    failed = [
        record
        for record in group.devices
        if record.state in (RolloutDeviceState.FAILED, RolloutDeviceState.TIMED_OUT)
    ]
    first = failed[0]
    return f"{len(failed)} of {num_all} did not take it; {first.device_id}: {first.message or first.state}"


def _summary(groups: Iterable[RolloutGroup]) -> str:
    records = [record for group in groups for record in group.devices]
    if not records:
        return "no device belongs to the profile yet: those that join will take it in"
    num_active = sum(record.state is RolloutDeviceState.SUCCEEDED for record in records)
    return f"{num_active} of {len(records)} devices serve it"


def _with_group(rollout: Rollout, i: int, group: RolloutGroup) -> Rollout:
    return replace(rollout, groups=(*rollout.groups[:i], group, *rollout.groups[i + 1 :]))


def _end(rollout: Rollout, state: RolloutState, message: str, now_s: float) -> Rollout:
    """The end of a rollout is the end of each of its devices."""
    groups = tuple(
        replace(
            group,
            devices=tuple(
                record
                if record.state.is_terminal
                else _ended(record, RolloutDeviceState.SUPERSEDED, f"the rollout {state}", now_s)
                for record in group.devices
            ),
        )
        for group in rollout.groups
    )
    return replace(rollout, state=state, groups=groups, message=message, update_time_s=now_s)
