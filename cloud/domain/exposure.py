"""Which devices of a started group may be told now, and why the others wait.

Rules kept here:

- At most ``max_per_minute`` devices are told within any sixty seconds, over all groups and across restarts:
  when each was told is part of the rollout.
- With a maintenance window a device is told while its window is open and it is connected, so that it does not
  come upon the deployment at another time. One that has nothing to run yet is told at once: there is nothing
  to disturb.
- A device that was not heard of from when its group started until its window had closed (and its time was up)
  is not waited for any longer.
- Devices that are connected come first, then by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cloud.domain.fleet_device import FleetDevice
from cloud.domain.groups import RolloutDevice, RolloutDeviceState, RolloutGroup
from cloud.domain.profiles import RolloutPlan
from cloud.domain.windows import opening, opening_text

__all__ = ["Wait", "exposed_now", "has_missed", "held_back", "room_text"]

_MINUTE_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """Why a device is not told yet, for people; ``until_s`` is 0 when nobody knows."""

    reason: str
    until_s: float = 0.0


def held_back(plan: RolloutPlan, device: FleetDevice, now_s: float) -> Wait | None:
    """Why the device may not be disturbed now; None when it may."""
    window = plan.maintenance_window
    if window is None or device.deployment is None:
        return None
    found = opening(window, device.time_zone, now_s)
    if now_s < found.open_s:
        return Wait(
            reason=f"window opens {opening_text(found, window, device.time_zone, now_s)}",
            until_s=found.open_s,
        )
    if not device.connected:
        return Wait(reason="its window is open, and it is not connected", until_s=found.close_s)
    return None


def has_missed(plan: RolloutPlan, device: FleetDevice, since_s: float, now_s: float) -> bool:
    """Whether its window has passed without a word from it. ``since_s``: when it could first be told."""
    window = plan.maintenance_window
    if window is None or device.connected or device.deployment is None:
        return False
    found = opening(window, device.time_zone, since_s)
    if now_s < max(found.close_s, max(found.open_s, since_s) + plan.timeout_s):
        return False
    return device.last_seen_s < max(found.open_s, since_s)


def exposed_now(
    groups: Iterable[RolloutGroup],
    group: RolloutGroup,
    plan: RolloutPlan,
    by_id: Mapping[str, FleetDevice],
    now_s: float,
) -> frozenset[str]:
    """Which waiting devices of ``group`` are told at this moment. ``groups`` are all of the rollout."""
    ready = [
        device
        for record in group.devices
        if record.state is RolloutDeviceState.WAITING
        and (device := by_id.get(record.device_id)) is not None
        and held_back(plan, device, now_s) is None
    ]
    ready.sort(key=lambda device: (not device.connected, device.device_id))
    if plan.max_per_minute is not None:
        told = sum(_told_lately(record, now_s) for other in groups for record in other.devices)
        ready = ready[: max(0, plan.max_per_minute - told)]
    return frozenset(device.device_id for device in ready)


def room_text(plan: RolloutPlan) -> str:
    """Why a device waits that nothing else holds back."""
    return (
        f"max_per_minute is {plan.max_per_minute}" if plan.max_per_minute is not None else "it is told next"
    )


def _told_lately(record: RolloutDevice, now_s: float) -> bool:
    # A clock that was set back counts everything that was told after it as told just now.
    return record.expose_time_s is not None and record.expose_time_s > now_s - _MINUTE_S
