"""What each device should run, and what must be said to it so that it does.

Rules kept here:

- Level-triggered: from the whole of profiles, rollouts, targets and devices, every time. Applying the intents
  and asking again gives none.
- A device whose group has started in an open rollout should run that rollout's digest; every other device of
  the profile, late joiners included, its target.
- A device that changed profile gets its new profile's digest. A device that matches no profile, or whose
  profile has nothing to serve yet, keeps what it has: no device is ever told to run nothing.
- Where a profile has a maintenance window, its devices are brought up to date within it (exposure.py). What a
  rollout brought that failed or was aborted is taken back at once.
- A device that hosts several workloads is told of each by itself: what one of them should run says nothing
  about another.
- What a device already should run is not said again, whatever it answered: a device that refused a digest is
  not asked a second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cloud.domain.exposure import held_back
from cloud.domain.profiles import DeviceProfile
from cloud.domain.rollout import (
    DeploymentIntent,
    FleetDevice,
    Rollout,
    RolloutState,
    intent_for,
    started_devices,
)


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
    now_s: float = 0.0,
) -> list[DeploymentIntent]:
    """What must be told to which device so that each runs what it should.

    ``targets`` is by profile name; ``now_s`` matters only where a profile has a maintenance window.
    """
    rollouts = tuple(rollouts)
    taken_back = {
        rollout.rollout_id
        for rollout in rollouts
        if rollout.state in (RolloutState.FAILED, RolloutState.ABORTED)
    }
    by_name = {profile.name: profile for profile in profiles}
    open_rollouts: dict[str, Rollout] = {}
    for rollout in sorted(rollouts, key=lambda rollout: (rollout.create_time_s, rollout.rollout_id)):
        if not rollout.state.is_terminal:
            open_rollouts[rollout.profile] = rollout  # the newest, should two be open
    started = {name: started_devices(rollout) for name, rollout in open_rollouts.items()}
    intents = []
    for device in sorted(devices, key=lambda device: (device.device_id, device.workload)):
        profile = by_name.get(device.profile)
        if profile is None:
            continue
        target = targets.get(profile.name)
        rollout_now = open_rollouts.get(profile.name)
        wanted = intent_for(rollout_now, device, started[profile.name]) if rollout_now is not None else None
        if wanted is None and target is not None and target.digest:
            wanted = DeploymentIntent(
                device_id=device.device_id,
                workload=profile.workload,
                profile=profile.name,
                digest=target.digest,
                manifest_digest=target.manifest_digest,
                rollout_id=target.rollout_id,
                decision_id=target.decision_id,
            )
            told = device.deployment
            is_taken_back = told is not None and told.rollout_id in taken_back
            if not is_taken_back and held_back(profile.rollout, device, now_s) is not None:
                continue
        if wanted is not None and not wanted.is_said_to(device):
            intents.append(wanted)
    return intents
