"""Devices as the cloud knows them, and what each was told to run.

Everything that a device says of itself is a claim; the boundary checks its bounds before it becomes one of
these values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from cloud.domain.profiles import Hardware

#: What operators bind to a device, or its installer gives it, to say where its clock on the wall hangs.
TIME_ZONE_LABEL = "timezone"


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """The first block is the device's own registration, the second what the cloud noted beside it.

    ``generation`` is the highest that the device ever said it accepted: it never goes down, and no deployment
    at or under it would be obeyed. ``serving_digest`` and ``serving_generation`` are the newest word on what
    it runs, from its registration, its deployment states or its reports.
    """

    device_id: str
    hardware: Hardware
    labels: Mapping[str, str] = field(default_factory=dict)
    agent_version: str = ""
    boot_id: str = ""
    emulated_slowdown: int = 1
    generation: int = 0
    serving_digest: str = ""
    operating_system: str = ""
    python_version: str = ""
    #: Of the tz database, as the device found it; empty when it could not.
    time_zone: str = ""

    serving_generation: int = 0
    profile: str = ""
    message: str = ""
    connected: bool = False
    register_time_s: float = 0.0
    last_seen_s: float = 0.0


class DeploymentState(StrEnum):
    """How far a device has come with a deployment; the names are those of the protocol."""

    PENDING = "pending"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    TESTING = "testing"
    TRIAL = "trial"
    ACTIVE = "active"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled-back"
    SUPERSEDED = "superseded"
    #: No step of a deployment: what the device was sent was not accepted, and nothing changed.
    REFUSED = "refused"

    @property
    def terminal(self) -> bool:
        """Whether nothing follows but the crash loop of what was active; of several, the first counts."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {
        DeploymentState.ACTIVE,
        DeploymentState.REJECTED,
        DeploymentState.ROLLED_BACK,
        DeploymentState.SUPERSEDED,
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeploymentStatus:
    """What a device said about one deployment. ``progress`` is 0 to 1 while it fetches."""

    device_id: str
    generation: int
    digest: str
    state: DeploymentState
    code: str = ""
    message: str = ""
    event_time_s: float = 0.0
    progress: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """What one device was told to run, under a generation that no other deployment of it has.

    ``signed`` is the serialised SignedDeployment as it is published, empty until it was signed. ``state`` and
    what follows it come from the device.
    """

    device_id: str
    workload: str
    profile: str
    generation: int
    digest: str
    manifest_digest: str
    rollout_id: str = ""
    decision_id: str = ""
    issue_time_s: float = 0.0
    signed: bytes = b""
    state: DeploymentState = DeploymentState.PENDING
    code: str = ""
    message: str = ""
    progress: float = 0.0
    update_time_s: float = 0.0
