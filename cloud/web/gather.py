"""The database to what the page shows.

Rules kept here:

* A page costs the same order of work however often it is asked for, and however large the fleet is: lists are
  cut, the curve is of a few devices of each profile, and a page is made anew at most every few seconds.
* Texts of devices are cut to what a table bears, and characters that nobody sees become visible.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from itertools import groupby

from cloud.domain.devices import DeploymentState, Device
from cloud.domain.evidence import Window
from cloud.domain.fleet_device import deployments_by_host
from cloud.domain.jobs import JobState
from cloud.domain.settings import PolicySettings
from cloud.metrics import PlaneState
from cloud.services.queries import Queries
from cloud.services.summary import summarise
from cloud.store import Store, sketch_of
from cloud.web.page import BAD_VERDICTS, render
from cloud.web.values import DecisionRow, FleetView, JobRow, Notice, Point, ProfileRow, RolloutRow
from edgeloop import __version__
from edgeloop.sketch import LatencySketch
from edgeloop.v1 import control_service_pb2 as pb

_FRESH_S = 5.0
_MAX_TEXT = 400
_MAX_ROWS = 50
_NUM_DECISIONS = 20
_HISTORY_S = 1800.0
_HISTORY_STEP_S = 60.0
_HISTORY_DEVICES = 8
_FAILED_JOBS_S = 86_400.0

_REFUSALS = frozenset({DeploymentState.REJECTED, DeploymentState.ROLLED_BACK, DeploymentState.REFUSED})


class FleetPage:
    """Safe to call from any thread."""

    def __init__(
        self,
        store: Store,
        *,
        settings: PolicySettings,
        plane: Callable[[], PlaneState],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._queries = Queries(store, settings=settings, now_s=now_s)
        self._plane = plane
        self._now_s = now_s
        self._lock = threading.Lock()
        self._made_s = float("-inf")
        self._page = b""

    def html(self) -> bytes:
        """The page, a few seconds old at most. Raises TransientError while the database is away."""
        with self._lock:
            if time.monotonic() - self._made_s > _FRESH_S:
                self._page = render(self.look())
                self._made_s = time.monotonic()
            return self._page

    def look(self) -> FleetView:
        """What there is to show now."""
        now_s, store = self._now_s(), self._store
        request = pb.GetFleetSummaryRequest(num_decisions=_NUM_DECISIONS)
        summary = summarise(store, self._queries, request, now_s)
        messages = {
            item.name: item.message for item in self._queries.profiles(pb.ListProfilesRequest()).profiles
        }
        devices = store.devices()
        profiles = tuple(
            ProfileRow(
                name=_cut(item.name),
                num_devices=item.num_devices,
                num_connected=item.num_connected,
                states=dict(item.num_by_state),
                objective_p95_ms=item.objective_p95_ms,
                measured_p95_ms=item.measured_p95_ms,
                requests_per_s=item.requests_per_s,
                verdict=item.verdict,
                message=_cut(messages.get(item.name, "")),
                history=self._history(item.name, devices, now_s),
            )
            for item in summary.profiles
        )
        notices = [*_of_profiles(profiles), *self._of_jobs(now_s), *self._of_devices(devices)]
        plane = self._plane()
        return FleetView(
            time_s=now_s,
            version=__version__,
            acts=plane.acts,
            broker_connected=plane.broker_connected,
            controller_paused=summary.controller_paused,
            profiles=profiles,
            rollouts=tuple(_rollout(item) for item in summary.rollouts[:_MAX_ROWS]),
            jobs=tuple(_job(item) for item in summary.jobs[:_MAX_ROWS]),
            decisions=tuple(
                DecisionRow(
                    time_s=item.decide_time.seconds,
                    profile=_cut(item.profile),
                    action=item.action,
                    reason=_cut(item.reason),
                )
                for item in summary.decisions
            ),
            notices=tuple(notices[:_MAX_ROWS]),
            num_more_notices=max(0, len(notices) - _MAX_ROWS),
        )

    def _history(self, profile: str, devices: Iterable[Device], now_s: float) -> tuple[Point, ...]:
        """Of the devices that were heard of last: those that serve, whatever the fleet's size."""
        mine = sorted(
            (item for item in devices if profile and profile in item.profiles),
            key=lambda item: (-item.last_seen_s, item.device_id),
        )
        windows: list[Window] = []
        for device in mine[:_HISTORY_DEVICES]:
            recent = self._store.windows(device_id=device.device_id, since_s=now_s - _HISTORY_S)
            # One that hosts several workloads measures each under another profile.
            windows += [window for window in recent if device.profile_for(window.workload) == profile]
        return history(windows, now_s)

    def _of_jobs(self, now_s: float) -> Iterable[Notice]:
        for job in self._store.jobs(limit=_MAX_ROWS):
            if job.state is JobState.FAILED and job.end_time_s >= now_s - _FAILED_JOBS_S:
                yield Notice(about=f"{job.kind.value} job {job.job_id}", text=_cut(f"failed: {job.message}"))

    def _of_devices(self, devices: Iterable[Device]) -> Iterable[Notice]:
        deployments = deployments_by_host(self._store.deployments(), self._store.hosting_devices())
        for device in devices:
            said = []
            if not device.connected:
                said.append("not connected")
            if device.message:
                said.append(device.message)
            for host in device.hosts:
                desired = deployments.get((device.device_id, host.workload))
                if desired is not None and desired.state in _REFUSALS:
                    named = f"{host.workload} " if host.workload else ""
                    said.append(f"{named}{desired.state.value} ({desired.code}): {desired.message}")
            if said:
                yield Notice(about=f"device {_cut(device.device_id)}", text=_cut("; ".join(said)))


def history(windows: Iterable[Window], now_s: float) -> tuple[Point, ...]:
    """p95 of the merged windows of each minute of the last half hour, oldest first."""

    def minute(window: Window) -> int:
        return int(window.end_s // _HISTORY_STEP_S)

    points = []
    fresh = (item for item in windows if now_s - _HISTORY_S <= item.end_s <= now_s and item.latency.count)
    for number, group in groupby(sorted(fresh, key=minute), key=minute):
        merged = LatencySketch()
        for window in group:
            merged = merged.merge(sketch_of(window.latency))
        if merged.count:
            points.append(Point(time_s=(number + 0.5) * _HISTORY_STEP_S, p95_ms=merged.quantile(0.95)))
    return tuple(points)


def _of_profiles(profiles: Iterable[ProfileRow]) -> Iterable[Notice]:
    for item in profiles:
        if item.verdict in BAD_VERDICTS:
            yield Notice(about=f"profile {item.name}", text=_cut(f"{item.verdict}: {item.message}"))


def _rollout(item: pb.RolloutInfo) -> RolloutRow:
    return RolloutRow(
        rollout_id=item.rollout_id,
        profile=_cut(item.profile),
        digest=item.digest,
        state=_state(pb.RolloutState.Name(item.state), "ROLLOUT_STATE_"),
        message=_cut(item.message),
        groups=tuple(
            (_cut(group.name), group.state, group.num_active, group.num_devices) for group in item.groups
        ),
    )


def _job(item: pb.JobInfo) -> JobRow:
    return JobRow(
        job_id=item.job_id,
        kind=item.kind,
        about=_cut(" ".join(filter(None, (item.workload, item.profile)))),
        state=_state(pb.JobState.Name(item.state), "JOB_STATE_"),
        progress=min(1.0, max(0.0, item.progress)),
        message=_cut(item.message),
    )


def _state(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", "-")


def _cut(text: str) -> str:
    """Short enough for a table, and without characters that reorder or hide what stands around them."""
    cut = text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"
    return "".join(char if char.isprintable() else "\ufffd" for char in cut)
