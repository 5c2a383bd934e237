"""skeleton; rules follow"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cloud.domain.profiles import DeviceProfile
from cloud.domain.rollout import DeploymentIntent, FleetDevice, Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileTarget:
    """The digest that a profile's devices should run when no rollout says otherwise.

    It is set to a rollout's digest when that rollout succeeds, and not before.
    """

    digest: str
    manifest_digest: str
    rollout_id: str = ""
    decision_id: str = ""


def reconcile(
    *,
    profiles: Iterable[DeviceProfile],
    devices: Iterable[FleetDevice],
    rollouts: Iterable[Rollout],
    targets: Mapping[str, ProfileTarget],
) -> list[DeploymentIntent]:
    """What must be told to which device so that each runs what it should. ``targets`` is by profile name."""
    raise NotImplementedError
