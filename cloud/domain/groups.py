"""Groups of a rollout: the devices that see a new digest together, and when that has gone well.

Rules kept here:

- A device ends in exactly one terminal state.
- A group fails when its errors reach ``error_threshold``, or when all have ended and too few serve it.
- A device that did not end in time (or was away in its maintenance window) is an error, but does not count
  against ``success_threshold``: one that is offline for good cannot stop every rollout.
- Where there is an objective, "installed" is not enough: the group waits for what its devices measure, and
  fails when that is beyond doubt above both the objective and what the previous digest measured. When nothing
  is measured within ``timeout_s`` (no traffic), nothing speaks against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from cloud.domain.profiles import GroupPlan, RolloutPlan


class RolloutGroupState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


def shown_state(state: RolloutGroupState, *, rollout_ended: bool) -> str:
    """For people: of a rollout that ended before its groups did, none of them runs or waits any more."""
    if rollout_ended and state is RolloutGroupState.RUNNING:
        return "unfinished"
    if rollout_ended and state is RolloutGroupState.WAITING:
        return "not started"
    return state.value


class RolloutDeviceState(StrEnum):
    WAITING = "waiting"  # its group has not started
    IN_PROGRESS = "in-progress"  # told; not ended
    SUCCEEDED = "succeeded"  # serves the digest, committed
    FAILED = "failed"  # refused it, or went back to what it had
    TIMED_OUT = "timed-out"  # did not end in time
    SUPERSEDED = "superseded"  # something newer came, or the rollout ended, before it ended
    REMOVED = "removed"  # left the profile or the fleet
    MISSED = "missed"  # never told: it was not connected in its maintenance window

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
    #: When it was told; unlike ``start_time_s``, a pause does not change it.
    expose_time_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutGroup:
    name: str
    devices: tuple[RolloutDevice, ...]
    state: RolloutGroupState = RolloutGroupState.WAITING
    start_time_s: float = 0.0
    #: When the last device ended; from then on the group waits for its latency only.
    settle_time_s: float = 0.0
    #: Of this group alone; None stands for the plan's.
    success_threshold: float | None = None
    error_threshold: float | None = None

    def count(self, *states: RolloutDeviceState) -> int:
        """How many of its devices are in one of these states."""
        return sum(device.state in states for device in self.devices)

    def each(self, change: Callable[[RolloutDevice], RolloutDevice]) -> RolloutGroup:
        """The group with each of its devices changed."""
        return replace(self, devices=tuple(change(device) for device in self.devices))


def new_group(plan: GroupPlan, device_ids: Iterable[str]) -> RolloutGroup:
    """A group that has not started."""
    return RolloutGroup(
        name=plan.name,
        devices=tuple(RolloutDevice(device_id=device_id) for device_id in sorted(device_ids)),
        success_threshold=plan.success_threshold,
        error_threshold=plan.error_threshold,
    )


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


def judge(
    group: RolloutGroup,
    plan: RolloutPlan,
    evidence: GroupEvidence | None,
    *,
    has_objective: bool,
    now_s: float,
) -> tuple[RolloutGroupState, str, float]:
    """(state, message, settle time) of a group that has started."""
    num_all = len(group.devices) - group.count(RolloutDeviceState.REMOVED, RolloutDeviceState.SUPERSEDED)
    num_active = group.count(RolloutDeviceState.SUCCEEDED)
    num_timed_out = group.count(RolloutDeviceState.TIMED_OUT, RolloutDeviceState.MISSED)
    error_threshold = plan.error_threshold if group.error_threshold is None else group.error_threshold
    success_threshold = plan.success_threshold if group.success_threshold is None else group.success_threshold
    num_errors = group.count(RolloutDeviceState.FAILED) + num_timed_out
    if num_all == 0:
        return RolloutGroupState.SUCCEEDED, "", now_s
    if num_errors and num_errors >= error_threshold * num_all:
        return RolloutGroupState.FAILED, f"{group.name}: {_errors(group, num_all)}", now_s
    if group.count(RolloutDeviceState.IN_PROGRESS, RolloutDeviceState.WAITING):
        return (
            RolloutGroupState.RUNNING,
            f"{group.name}: {num_active} of {num_all} serve it",
            group.settle_time_s,
        )
    if num_active < success_threshold * (num_all - num_timed_out):
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
        if record.state
        in (RolloutDeviceState.FAILED, RolloutDeviceState.TIMED_OUT, RolloutDeviceState.MISSED)
    ]
    first = failed[0]
    return f"{len(failed)} of {num_all} did not take it; {first.device_id}: {first.message or first.state}"
