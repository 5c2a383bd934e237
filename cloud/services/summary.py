"""The fleet in figures, for a screen that is drawn anew every few seconds."""

from __future__ import annotations

from collections import Counter

from cloud.controller import PAUSED_KEY
from cloud.domain.evidence import Window
from cloud.domain.fleet_device import deployments_by_host
from cloud.services import views
from cloud.services.convert import timestamp
from cloud.services.queries import Queries
from cloud.store import Store
from edgeloop.v1 import control_service_pb2 as pb

#: A device that has not reported for longer takes no part in the rate.
_RECENT_S = 120.0
_DEFAULT_NUM_DECISIONS = 5
_MAX_NUM_DECISIONS = 100


def summarise(
    store: Store, queries: Queries, request: pb.GetFleetSummaryRequest, now_s: float
) -> pb.GetFleetSummaryResponse:
    """What ``edgeloop top`` shows."""
    devices = store.devices()
    deployments = deployments_by_host(store.deployments(), store.hosting_devices())
    newest: dict[tuple[str, str], Window] = {}
    for window in store.windows(since_s=now_s - _RECENT_S):
        for key in ((window.device_id, ""), (window.device_id, window.workload)):
            known = newest.get(key)
            if known is None or known.end_s <= window.end_s:
                newest[key] = window
    infos = {item.name: item for item in queries.profiles(pb.ListProfilesRequest()).profiles}
    answer = pb.GetFleetSummaryResponse(
        time=timestamp(now_s),
        jobs=[views.job_info(job) for job in store.jobs(unfinished_only=True)],
        rollouts=[views.rollout_info(rollout) for rollout in store.rollouts(unfinished_only=True)],
        decisions=[
            views.decision_info(entry, with_inputs=False)
            for entry in store.decisions(
                limit=min(request.num_decisions or _DEFAULT_NUM_DECISIONS, _MAX_NUM_DECISIONS),
                changes_only=True,
            )
        ],
        controller_paused=store.get_meta(PAUSED_KEY) == "1",
    )
    for name in sorted({name for device in devices for name in device.profiles} | set(infos)):
        # A device that hosts several workloads counts in the profile of each.
        mine = [device for device in devices if name in device.profiles]
        keys = [
            (device.device_id, host.workload)
            for device in mine
            for host in device.hosts
            if host.profile == name
        ]
        windows = [newest[key] for key in keys if key in newest]
        info = infos.get(name, pb.ProfileInfo())
        answer.profiles.append(
            pb.ProfileSummary(
                name=name,
                num_devices=len(mine),
                num_connected=sum(device.connected for device in mine),
                measured_p95_ms=info.measured_p95_ms,
                objective_p95_ms=info.constraints.latency_p95_ms,
                verdict=info.verdict,
                requests_per_s=sum(_rate(window) for window in windows),
                max_rss_bytes=max((window.rss_bytes for window in windows), default=0),
                num_by_state=Counter(
                    deployments[key].state.value if key in deployments else "none" for key in keys
                ),
            )
        )
    return answer


def _rate(window: Window) -> float:
    return window.latency.count / max(window.end_s - window.start_s, 1.0)
