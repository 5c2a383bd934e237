"""What Prometheus reads of a control plane: the fleet by profile, rollouts, jobs, queues, who acts.

Rules that this module keeps:

* Figures come from the database when they are asked for; of several control planes each says the same of the
  fleet, and its own of itself.
* Labels are names of profiles and values of closed sets. Devices are counted, not named: a fleet has many.
* The page is built anew at most every few seconds, however often it is asked for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cloud.domain.jobs import JobKind, JobState
from cloud.domain.rollout import RolloutState
from cloud.domain.settings import PolicySettings
from cloud.job_times import JobTimes
from cloud.services.queries import Queries
from cloud.store import Store
from edgeloop import __version__
from edgeloop.errors import ConfigError, EdgeloopError
from edgeloop.v1 import control_service_pb2 as pb

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FRESH_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaneState:
    """This control plane, not the fleet."""

    acts: bool
    broker_connected: bool
    #: Reports that agents sent and that are not in the database yet; and those that are, since it began.
    num_queued_reports: int = 0
    num_stored_reports: int = 0
    #: Changes that the broker does not hold yet; 0 where another control plane acts.
    publisher_backlog: int = 0


class FleetMetrics:
    """Renders the page. Safe to call from any thread."""

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
        self._job_times = JobTimes(store)
        self._lock = threading.Lock()
        self._made_s = float("-inf")
        self._page = b""

    def page(self) -> bytes:
        """The whole page. Raises TransientError while the database is away."""
        with self._lock:
            if time.monotonic() - self._made_s > _FRESH_S:
                self._page = ("\n".join([*self._of_plane(), *self._of_fleet()]) + "\n").encode()
                self._made_s = time.monotonic()
            return self._page

    def _of_plane(self) -> list[str]:
        plane = self._plane()
        return [
            *_family("edgeloop_info", "Which edgeloop this is.", [({"version": __version__}, 1)]),
            *_family("edgeloop_controller_acts", "1 on the control plane that acts.", [({}, plane.acts)]),
            *_family(
                "edgeloop_broker_connected",
                "1 while the broker answers the control plane that acts.",
                [({}, plane.broker_connected)],
            ),
            *_family(
                "edgeloop_report_queue_reports",
                "Reports that agents sent to this control plane and that the database does not hold yet.",
                [({}, plane.num_queued_reports)],
            ),
            *_family(
                "edgeloop_reports_stored_total",
                "Reports that this control plane stored.",
                [({}, plane.num_stored_reports)],
                kind="counter",
            ),
            *_family(
                "edgeloop_publisher_backlog",
                "Changes that the broker does not hold yet; 0 where another control plane acts.",
                [({}, plane.publisher_backlog)],
            ),
        ]

    def _of_fleet(self) -> Iterable[str]:
        profiles = self._queries.profiles(pb.ListProfilesRequest()).profiles
        devices: Counter[tuple[str, str]] = Counter(
            (profile, "connected" if device.connected else "away")
            for device in self._store.devices()
            for profile in device.profiles
        )
        names = sorted({profile.name for profile in profiles} | {name for name, _ in devices})
        yield from _family(
            "edgeloop_devices",
            "Devices that ever registered; profile is empty for those that match none.",
            [
                ({"profile": name, "state": state}, devices[name, state])
                for name in names
                for state in ("connected", "away")
            ],
        )
        for name, text, value in _OF_PROFILE:
            yield from _family(name, text, [({"profile": item.name}, value(item)) for item in profiles])
        verdicts = [({"profile": item.name, "verdict": item.verdict}, 1) for item in profiles]
        yield from _family("edgeloop_profile_verdict_info", "The controller's last word.", verdicts)
        yield from self._of_rollouts()
        yield from self._of_jobs()

    def _of_rollouts(self) -> Iterable[str]:
        rollouts = self._store.rollouts(unfinished_only=True)
        states = Counter(rollout.state.value for rollout in rollouts)
        yield from _family(
            "edgeloop_rollouts",
            "Rollouts that have not ended.",
            [({"state": item.value}, states[item.value]) for item in RolloutState if not item.is_terminal],
        )
        told = [(rollout, [d for group in rollout.groups for d in group.devices]) for rollout in rollouts]
        newest = self._store.deployments() if told else []
        deployments = {(item.device_id, item.profile): item for item in newest}
        shares: dict[str, float] = {}
        for rollout, members in told:
            done = sum(
                (found := deployments.get((member.device_id, rollout.profile))) is not None
                and found.rollout_id == rollout.rollout_id
                and found.state.terminal
                for member in members
            )
            shares.setdefault(rollout.profile, done / len(members) if members else 1.0)
        yield from _family(
            "edgeloop_rollout_progress_ratio",
            "Share of a rollout's devices that have ended their deployment.",
            [({"profile": name}, share) for name, share in shares.items()],
        )

    def _of_jobs(self) -> Iterable[str]:
        jobs = self._store.jobs(unfinished_only=True)
        count = Counter((job.kind.value, job.state.value) for job in jobs)
        yield from _family(
            "edgeloop_jobs",
            "Jobs that have not ended.",
            [
                ({"kind": kind.value, "state": state.value}, count[kind.value, state.value])
                for kind in JobKind
                for state in JobState
                if not state.finished
            ],
        )
        tasks = Counter((job.kind.value, _queued(trial.state)) for job in jobs for trial in job.trials)
        yield from _family(
            "edgeloop_job_tasks",
            "Tasks of jobs that have not ended.",
            [
                ({"kind": kind.value, "state": state}, tasks[kind.value, state])
                for kind in JobKind
                for state in ("waiting", "running", "ended")
            ],
        )
        oldest_s = max((self._now_s() - job.create_time_s for job in jobs), default=0.0)
        yield from _family(
            "edgeloop_oldest_job_seconds", "Age of the oldest job that has not ended.", [({}, oldest_s)]
        )
        name = "edgeloop_job_duration_seconds"
        yield from _head(name, "From when a job was asked for to its end, by how it ended.", "histogram")
        self._job_times.update()
        yield from (_sample(*sample) for sample in self._job_times.lines(name))


_OF_PROFILE: tuple[tuple[str, str, Callable[[pb.ProfileInfo], float]], ...] = (
    (
        "edgeloop_profile_p95_seconds",
        "Measured p95 of what serves; 0 without evidence.",
        lambda item: item.measured_p95_ms / 1000,
    ),
    (
        "edgeloop_profile_objective_p95_seconds",
        "What p95 must stay under; 0 without an objective.",
        lambda item: item.constraints.latency_p95_ms / 1000,
    ),
    ("edgeloop_profile_samples", "Requests that the p95 rests on.", lambda item: item.num_samples),
)


class MetricsServer:
    """``GET /metrics`` on a port of its own; without proof, so keep it where only Prometheus reaches it."""

    def __init__(self, metrics: FleetMetrics, *, host: str, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.partition("?")[0] != "/metrics":
                    self.send_error(404, "ask for /metrics")
                    return
                try:
                    page = metrics.page()
                except EdgeloopError as error:
                    self.send_error(503, error.code)
                    return
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base's
                logger.debug(format, *args)

        Handler.timeout = 10
        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ConfigError(
                f"metrics_port {port} on {host} cannot be listened on ({error.strerror}): choose another with"
                " --metrics-port",
                code="port-in-use",
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _queued(state: JobState) -> str:
    if state.finished:
        return "ended"
    return "waiting" if state is JobState.PENDING else "running"


def _family(
    name: str, text: str, series: Iterable[tuple[Mapping[str, str], float]], *, kind: str = "gauge"
) -> list[str]:
    return [*_head(name, text, kind), *(_sample(name, labels, value) for labels, value in series)]


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    said = ",".join(f'{key}="{_escaped(found)}"' for key, found in labels.items())
    return f"{name}{{{said}}} {float(value):.10g}" if said else f"{name} {float(value):.10g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
