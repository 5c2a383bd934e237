"""Where each device of a rollout stands, why those wait that were not told yet, and what comes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cloud.domain.exposure import Wait, held_back, room_text
from cloud.domain.fleet_device import FleetDevice
from cloud.domain.groups import RolloutDevice, RolloutDeviceState, RolloutGroup, RolloutGroupState
from cloud.domain.rollout import Rollout, RolloutState, running_group

__all__ = ["Standing", "standings", "waits", "what_next"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """``stage``: "waiting" until the device is told, then the state of its deployment, then how it ended."""

    device_id: str
    group: str
    stage: str
    message: str = ""
    wait: Wait | None = None


def standings(rollout: Rollout, devices: Iterable[FleetDevice], now_s: float) -> list[Standing]:
    """Every device of the rollout, group by group."""
    # One that hosts several workloads stands in the fleet under several profiles: this rollout's counts.
    ordered = sorted(devices, key=lambda device: device.profile == rollout.profile)
    by_id = {device.device_id: device for device in ordered}
    found = []
    for number, group in enumerate(rollout.groups):
        before = rollout.groups[number - 1].name if number else ""
        for record in group.devices:
            device = by_id.get(record.device_id)
            found.append(
                Standing(
                    device_id=record.device_id,
                    group=group.name,
                    stage=_stage(rollout, record, device),
                    message=record.message,
                    wait=_wait(rollout, group, record, device, before, now_s),
                )
            )
    return found


def waits(found: Iterable[Standing]) -> list[tuple[Wait, int]]:
    """Each reason with the number of devices that it holds back, the soonest to end first."""
    counted = Counter(standing.wait for standing in found if standing.wait is not None)
    return sorted(counted.items(), key=lambda item: (item[0].until_s or float("inf"), item[0].reason))


def what_next(rollout: Rollout, found: Sequence[Standing]) -> str:
    """One sentence for people; empty for a rollout that has ended."""
    if rollout.state.is_terminal:
        return ""
    if rollout.state is RolloutState.PAUSED:
        return f"nothing until 'edgeloop rollout resume {rollout.rollout_id}'"
    group = running_group(rollout)
    if group is None:
        return "the first group starts"
    names = [other.name for other in rollout.groups]
    position = names.index(group.name)
    then = f"{names[position + 1]} starts" if position + 1 < len(names) else "the rollout has succeeded"
    num_open = sum(not record.state.is_terminal for record in group.devices)
    if not num_open:
        return f"{then} once {group.name} has measured its latency"
    held = waits(standing for standing in found if standing.group == group.name)
    if held and sum(number for _, number in held) == num_open:
        return f"{group.name}: {held[0][0].reason}"
    return f"{then} once {num_open} more of {group.name} have ended"


def _stage(rollout: Rollout, record: RolloutDevice, device: FleetDevice | None) -> str:
    told = device.deployment if device is not None else None
    state = told.state.value if told is not None and told.digest == rollout.digest else ""
    stages: Mapping[RolloutDeviceState, str] = {
        RolloutDeviceState.IN_PROGRESS: state or "pending",
        RolloutDeviceState.SUCCEEDED: "active",
        RolloutDeviceState.FAILED: state if state in ("rejected", "rolled-back") else "failed",
    }
    return stages.get(record.state, record.state.value)


def _wait(
    rollout: Rollout,
    group: RolloutGroup,
    record: RolloutDevice,
    device: FleetDevice | None,
    before: str,
    now_s: float,
) -> Wait | None:
    if record.state is not RolloutDeviceState.WAITING or device is None:
        return None
    if rollout.state is RolloutState.PAUSED:
        return Wait(reason="the rollout is paused")
    if group.state is RolloutGroupState.WAITING:
        return Wait(reason=f"group {group.name} starts after {before}" if before else "its group starts next")
    return held_back(rollout.plan, device, now_s) or Wait(reason=room_text(rollout.plan))
