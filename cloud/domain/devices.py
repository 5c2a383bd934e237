"""Devices as the cloud knows them, and what each was told to run.

Everything that a device says of itself is a claim; the boundary checks its bounds before it becomes one of
these values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from cloud.domain.profiles import DeviceProfile, Hardware, match_profile

#: What operators bind to a device, or its installer gives it, to say where its clock on the wall hangs.
TIME_ZONE_LABEL = "timezone"


@dataclass(frozen=True, kw_only=True, slots=True)
class HostedWorkload:
    """One workload of a device, with the profile that the device has for it and what it serves of it.

    ``workload`` is empty for whichever workload a device runs that was not configured to host several. The
    figures are to it what those of the same name are to the device.
    """

    workload: str
    generation: int = 0
    serving_digest: str = ""
    serving_generation: int = 0
    profile: str = ""
    message: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """The first block is the device's own registration, the second what the cloud noted beside it.

    ``generation`` is the highest that the device ever said it accepted: it never goes down, and no deployment
    at or under it would be obeyed. ``serving_digest`` and ``serving_generation`` are the newest word on what
    it runs, from its registration, its deployment states or its reports.

    ``hosted`` names the workloads that the device was configured to run side by side, none for one that runs
    one, whichever. Where there are some, ``generation`` is the highest of all, the serving figures are those
    of the first, as it registered them, and ``profile`` is the first that any of them has.
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
    hosted: tuple[HostedWorkload, ...] = ()

    serving_generation: int = 0
    profile: str = ""
    message: str = ""
    connected: bool = False
    register_time_s: float = 0.0
    last_seen_s: float = 0.0

    @property
    def hosts(self) -> tuple[HostedWorkload, ...]:
        """What the device runs, one or several: never empty."""
        return self.hosted or (
            HostedWorkload(
                workload="",
                generation=self.generation,
                serving_digest=self.serving_digest,
                serving_generation=self.serving_generation,
                profile=self.profile,
                message=self.message,
            ),
        )

    @property
    def profiles(self) -> frozenset[str]:
        """Those that it belongs to; the empty name alone for a device that matches none."""
        return frozenset(host.profile for host in self.hosts if host.profile) or frozenset({""})

    def profile_for(self, workload: str) -> str:
        """The profile under which it runs a workload; empty when it has none."""
        return next((host.profile for host in self.hosts if host.workload in ("", workload)), "")

    def may_run(self, workload: str) -> bool:
        """Whether it hosts this workload, or any."""
        return any(host.workload in ("", workload) for host in self.hosts)

    def as_host(self, host: HostedWorkload) -> Device:
        """The device as if it ran nothing but this one of its workloads."""
        return replace(
            self,
            hosted=(),
            generation=host.generation,
            serving_digest=host.serving_digest,
            serving_generation=host.serving_generation,
            profile=host.profile,
            message=host.message,
        )


def matched(device: Device, profiles: Iterable[DeviceProfile]) -> Device:
    """With the profile that each of its workloads belongs to now, or the reason why it has none."""
    profiles = tuple(profiles)
    if not device.hosted:
        profile, message = match_profile(profiles, device.hardware, device.labels)
        return replace(device, profile=profile.name if profile else "", message=message)
    hosted = []
    for host in device.hosted:
        own = [profile for profile in profiles if profile.workload == host.workload]
        profile, message = match_profile(own, device.hardware, device.labels)
        hosted.append(
            replace(
                host,
                profile=profile.name if profile else "",
                message=f"workload {host.workload}: {message}" if message else "",
            )
        )
    return replace(
        device,
        hosted=tuple(hosted),
        profile=next((host.profile for host in hosted if host.profile), ""),
        message="; ".join(host.message for host in hosted if host.message),
    )


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
