"""A device as rollouts and reconciliation see it, and what may be said to it.

A device that hosts several workloads is seen once for each, under the profile that it has for it, so that
nothing that one of them is told touches another. Within one profile it is there once.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Self

from cloud.domain.devices import TIME_ZONE_LABEL, Deployment, Device, HostedWorkload

__all__ = ["DeploymentIntent", "FleetDevice", "deployments_by_host", "fleet_devices"]

_EVERYWHERE = frozenset(
    {"UTC", "Etc/UTC", "Etc/UCT", "Etc/Universal", "Etc/Zulu", "UCT", "Universal", "Zulu"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetDevice:
    """One registered device: the profile that it matches now ("" when none) and its newest deployment.

    ``workload`` is which of several it hosts, empty for a device that runs one.
    ``time_zone`` is a name of the tz database, empty when it gave none; ``last_seen_s`` when it was heard of.
    """

    device_id: str
    workload: str = ""
    profile: str
    connected: bool = False
    deployment: Deployment | None = None
    time_zone: str = ""
    last_seen_s: float = 0.0

    @classmethod
    def of(cls, device: Device, host: HostedWorkload, deployment: Deployment | None) -> Self:
        """From what the store keeps. A label says more than what the device found out by itself.

        A device that runs on UTC has said nothing of where it hangs: the window's own zone counts for it.
        """
        reported = "" if device.time_zone in _EVERYWHERE else device.time_zone
        return cls(
            device_id=device.device_id,
            workload=host.workload,
            profile=host.profile,
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


def deployments_by_host(
    deployments: Iterable[Deployment], hosting: Container[str]
) -> dict[tuple[str, str], Deployment]:
    """By device and ``HostedWorkload.workload``; of several the one with the highest generation.

    ``hosting`` holds the ids of the devices that host several.
    """
    found: dict[tuple[str, str], Deployment] = {}
    for deployment in sorted(deployments, key=lambda deployment: deployment.generation):
        workload = deployment.workload if deployment.device_id in hosting else ""
        found[deployment.device_id, workload] = deployment
    return found


def fleet_devices(devices: Iterable[Device], deployments: Iterable[Deployment]) -> list[FleetDevice]:
    """One for each device and workload that it hosts."""
    devices = tuple(devices)
    newest = deployments_by_host(deployments, {device.device_id for device in devices if device.hosted})
    return [
        FleetDevice.of(device, host, newest.get((device.device_id, host.workload)))
        for device in devices
        for host in device.hosts
    ]
