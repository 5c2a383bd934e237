"""skeleton; rules follow"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from cloud.domain.devices import Deployment, Device
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
    """A rollout over those of ``devices`` that belong to the profile. Idempotent by ``rollout_id``."""
    raise NotImplementedError


def advance(
    rollout: Rollout,
    devices: Sequence[FleetDevice],
    now_s: float,
    *,
    evidence: GroupEvidence | None = None,
) -> tuple[Rollout, list[DeploymentIntent]]:
    """One step. ``evidence`` is about the devices of ``running_group(rollout)``; None means no objective."""
    raise NotImplementedError


def running_group(rollout: Rollout) -> RolloutGroup | None:
    raise NotImplementedError


def pause(rollout: Rollout, now_s: float) -> Rollout:
    raise NotImplementedError


def resume(rollout: Rollout, now_s: float) -> Rollout:
    raise NotImplementedError


def abort(rollout: Rollout, now_s: float, reason: str = "aborted by an operator") -> Rollout:
    """Then ``advance`` (or ``reconcile``) gives the intents that bring the previous digest back."""
    raise NotImplementedError


def supersede(rollout: Rollout, now_s: float, *, by_rollout_id: str) -> Rollout:
    """A newer rollout of the same profile has come: nothing is brought back."""
    raise NotImplementedError
