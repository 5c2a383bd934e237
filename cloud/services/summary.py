"""The fleet in figures, for a screen that is drawn anew every few seconds."""

from __future__ import annotations

from collections import Counter

from cloud.controller import PAUSED_KEY
from cloud.domain.evidence import Window
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
    deployments = {item.device_id: item.state.value for item in store.deployments()}
    newest: dict[str, Window] = {}
    for window in store.windows(since_s=now_s - _RECENT_S):
        known = newest.get(window.device_id)
        if known is None or known.end_s <= window.end_s:
            newest[window.device_id] = window
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
    for name in sorted({device.profile for device in devices} | set(infos)):
        mine = [device for device in devices if device.profile == name]
        windows = [newest[device.device_id] for device in mine if device.device_id in newest]
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
                num_by_state=Counter(deployments.get(device.device_id, "none") for device in mine),
            )
        )
    return answer


def _rate(window: Window) -> float:
    return window.latency.count / max(window.end_s - window.start_s, 1.0)
