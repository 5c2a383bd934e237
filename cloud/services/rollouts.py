"""A rollout for people who follow it: its funnel, what it measured, and what it waits for."""

from __future__ import annotations

from collections import Counter

from cloud.controller import fleet
from cloud.domain.funnel import Standing, standings, waits, what_next
from cloud.domain.rollout import Rollout, started_devices
from cloud.services import views
from cloud.services.convert import timestamp
from cloud.services.queries import named
from cloud.store import Store, sketch_of
from edgeloop.sketch import LatencySketch
from edgeloop.v1 import control_service_pb2 as pb


def rollout_of(store: Store, rollout_id: str) -> Rollout:
    """Raises ``RejectedError`` for an unknown id."""
    return named(
        store.rollout(rollout_id),
        "rollout",
        rollout_id,
        (other.rollout_id for other in store.rollouts(limit=20)),
    )


def followed(store: Store, rollout: Rollout, now_s: float, *, with_devices: bool) -> pb.RolloutInfo:
    """Everything about a rollout; its devices one by one only where they are asked for."""
    found = standings(rollout, fleet(store), now_s)
    info = views.rollout_info(rollout)
    stages = Counter((standing.group, standing.stage) for standing in found)
    for group in info.groups:
        for (name, stage), number in stages.items():
            if name == group.name:
                group.num_by_stage[stage] = number
    profile = store.profile(rollout.profile)
    info.objective_p95_ms = (profile.constraints.latency_p95_ms if profile else None) or 0.0
    measured = _measured(store, rollout)
    if measured.count:
        info.measured_p95_ms, info.num_samples = measured.quantile(0.95), measured.count
    info.next = what_next(rollout, found)
    for wait, number in waits(found):
        until = timestamp(wait.until_s) if wait.until_s else None
        info.waits.append(pb.RolloutWaitInfo(reason=wait.reason, num_devices=number, until_time=until))
    if with_devices:
        info.devices.extend(_device(standing) for standing in found)
    return info


def _measured(store: Store, rollout: Rollout) -> LatencySketch:
    told = started_devices(rollout)
    merged = LatencySketch.empty()
    for window in store.windows(profile=rollout.profile, since_s=rollout.create_time_s):
        if window.digest == rollout.digest and window.device_id in told:
            merged = merged.merge(sketch_of(window.latency))
    return merged


def _device(standing: Standing) -> pb.RolloutDeviceInfo:
    wait = standing.wait
    return pb.RolloutDeviceInfo(
        device_id=standing.device_id,
        group=standing.group,
        stage=standing.stage,
        message=standing.message,
        wait_reason=wait.reason if wait is not None else "",
        until_time=timestamp(wait.until_s) if wait is not None and wait.until_s else None,
    )
