"""A device as rollouts and reconciliation see it, and what may be said to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from cloud.domain.devices import TIME_ZONE_LABEL, Deployment, Device

__all__ = ["DeploymentIntent", "FleetDevice"]

_EVERYWHERE = frozenset(
    {"UTC", "Etc/UTC", "Etc/UCT", "Etc/Universal", "Etc/Zulu", "UCT", "Universal", "Zulu"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetDevice:
    """One registered device: the profile that it matches now ("" when none) and its newest deployment.

    ``time_zone`` is a name of the tz database, empty when it gave none; ``last_seen_s`` when it was heard of.
    """

    device_id: str
    profile: str
    connected: bool = False
    deployment: Deployment | None = None
    time_zone: str = ""
    last_seen_s: float = 0.0

    @classmethod
    def of(cls, device: Device, deployment: Deployment | None) -> Self:
        """From what the store keeps. A label says more than what the device found out by itself.

        A device that runs on UTC has said nothing of where it hangs: the window's own zone counts for it.
        """
        reported = "" if device.time_zone in _EVERYWHERE else device.time_zone
        return cls(
            device_id=device.device_id,
            profile=device.profile,
            connected=device.connected,
            deployment=deployment,
            time_zone=device.labels.get(TIME_ZONE_LABEL) or reported,
            last_seen_s=device.last_seen_s,
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
