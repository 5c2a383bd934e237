from __future__ import annotations

from typing import Protocol

from cloud.domain.devices import Deployment, DeploymentStatus, Device
from cloud.store.base import Database


class Intent(Protocol):
    """What the rollout asks for on one device (cloud.domain.rollout.DeploymentIntent satisfies it)."""

    @property
    def device_id(self) -> str: ...
    @property
    def workload(self) -> str: ...
    @property
    def profile(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def manifest_digest(self) -> str: ...
    @property
    def rollout_id(self) -> str: ...
    @property
    def decision_id(self) -> str: ...


class FleetTables(Database):
    def register_device(self, device: Device, profile: str | None, message: str, now_s: float) -> Device:
        """Insert or replace; `generation` never goes down. Returns what is stored. Marks it connected."""
        raise NotImplementedError

    def devices(self, profile: str | None = None) -> list[Device]:
        """By id. `profile=""` gives those that match none."""
        raise NotImplementedError

    def device(self, device_id: str) -> Device | None:
        raise NotImplementedError

    def set_device_profile(self, device_id: str, profile: str | None, message: str) -> None:
        """After profiles changed: which one the device belongs to now."""
        raise NotImplementedError

    def set_presence(self, device_id: str, connected: bool, now_s: float) -> bool:
        """False when the device is unknown."""
        raise NotImplementedError

    def touch(self, device_id: str, now_s: float) -> None:
        """It was heard of."""
        raise NotImplementedError

    def issue_deployment(self, intent: Intent, now_s: float) -> Deployment:
        """Give the device a new generation, above every one that was issued to it or that it ever reported.

        The same (rollout_id, digest, manifest_digest) as its newest deployment returns that one, unchanged,
        as long as the device has not reported a higher generation than it (it would not obey it then).
        Raises RejectedError "device-unknown" for a device that never registered.
        """
        raise NotImplementedError

    def deployments(self, profile: str | None = None) -> list[Deployment]:
        """The newest of each device, by device id."""
        raise NotImplementedError

    def deployment(self, device_id: str) -> Deployment | None:
        """The newest."""
        raise NotImplementedError

    def set_signed(self, device_id: str, generation: int, signed: bytes) -> None:
        raise NotImplementedError

    def record_status(self, status: DeploymentStatus, now_s: float) -> bool:
        """False when it was known already, or came after a terminal state of the same generation."""
        raise NotImplementedError

    def history(self, device_id: str, limit: int = 100) -> list[DeploymentStatus]:
        """Newest first."""
        raise NotImplementedError

    def set_current(
        self, profile: str, digest: str, *, manifest_digest: str, rollout_id: str, now_s: float
    ) -> None:
        """What the profile's devices should run from now on, late joiners included."""
        raise NotImplementedError

    def current_digest(self, profile: str) -> str:
        """Empty when none was rolled out."""
        raise NotImplementedError

    def current_digests(self) -> dict[str, str]:
        raise NotImplementedError
