"""What the control plane logged and what devices told, as one stream.

Rules kept here:

- Records of this process, and of the fleet what the database holds: statuses of deployments, and how a job
  began and ended. Of several control planes each tells its own records, and says which it is and which acts.
- A device's word stands at the time when it came: its own clock may be wrong.
- A name that does not exist is an error that lists those that do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from cloud.domain.devices import DeploymentState, DeploymentStatus
from cloud.domain.jobs import Job, JobState
from cloud.elector import CONTROLLER
from cloud.log_ring import LoggedRecord, LogRing
from cloud.services.convert import seconds, timestamp
from cloud.services.queries import Queries, named
from cloud.store import Store
from edgeloop.errors import RejectedError
from edgeloop.v1 import control_service_pb2 as pb

DEFAULT_LIMIT, MAX_LIMIT = 200, 5000
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_FAILURES = frozenset(
    {
        DeploymentState.REJECTED,
        DeploymentState.ROLLED_BACK,
        DeploymentState.REFUSED,
    }
)
#: A status is written in a transaction that may end after one that began later: the same stretch is read
#: again, and what was told already is left out.
_OVERLAP_S = 10.0
_NUM_OF_PROFILE = 50


@dataclass(slots=True)
class Following:
    """Where a reader is."""

    request: pb.WatchLogsRequest
    level: int
    since_s: float
    limit: int
    #: What records must be about; None for anything.
    names: frozenset[str] | None
    position: int = 0
    statuses_since_s: float = 0.0
    told: set[tuple[str, int, str, float]] = field(default_factory=set)
    job_state: JobState | None = None


class Logs:
    """Safe to call from any thread. ``plane`` names this control plane."""

    def __init__(
        self, store: Store, queries: Queries, ring: LogRing, *, plane: str, now_s: Callable[[], float]
    ) -> None:
        self._store = store
        self._queries = queries
        self._ring = ring
        self._plane = plane
        self._now_s = now_s

    def begin(self, request: pb.WatchLogsRequest) -> Following:
        """Raises ``RejectedError`` for a name that does not exist, or a level or limit that cannot be."""
        level = _LEVELS.get(request.min_level or "info")
        if level is None:
            raise RejectedError(
                f"min_level is {request.min_level[:40]!r}: give {', '.join(_LEVELS)}", code="log-level"
            )
        if sum(map(bool, (request.device_id, request.profile, request.job_id))) > 1:
            raise RejectedError("give one of device, profile and job alone", code="log-filter")
        since_s = seconds(request.since_time, field="since_time") if request.HasField("since_time") else 0.0
        return Following(
            request=request,
            level=level,
            since_s=since_s,
            limit=min(request.limit or DEFAULT_LIMIT, MAX_LIMIT),
            names=self._names(request),
            statuses_since_s=since_s,
        )

    def header(self) -> pb.WatchLogsResponse:
        """Whose records they are."""
        lease = self._store.lease(CONTROLLER)
        acting = "" if lease is None or lease.expire_s < self._now_s() else lease.holder
        return pb.WatchLogsResponse(plane=self._plane, acting_plane=acting)

    def more(self, following: Following) -> list[pb.LogRecord]:
        """Oldest first: what came since the last call; at first the newest up to the limit."""
        request = following.request
        if request.profile and following.position:
            following.names = self._names(request)  # devices, jobs and rollouts come and go
        records, following.position = self._ring.after(
            following.position, since_s=following.since_s, level=following.level, names=following.names
        )
        found = [_of_plane(record, self._plane) for record in records]
        if request.job_id:
            found += self._of_job(following)
        else:
            found += self._of_devices(following)
        found.sort(key=lambda record: record.event_time.ToNanoseconds())
        return found[-following.limit :]

    def _names(self, request: pb.WatchLogsRequest) -> frozenset[str] | None:
        if request.device_id:
            return frozenset({self._queries.device(request.device_id).device_id})
        if request.job_id:
            return _names_of(self._job(request.job_id))
        if not request.profile:
            return None
        name = self._queries.profile(request.profile).name
        names = {name} | {device.device_id for device in self._store.devices(name)}
        names |= {item.rollout_id for item in self._store.rollouts(name, limit=_NUM_OF_PROFILE)}
        for job in self._store.jobs(limit=_NUM_OF_PROFILE):
            if job.profile == name:
                names |= _names_of(job)
        return frozenset(names)

    def _job(self, job_id: str) -> Job:
        known = (job.job_id for job in self._store.jobs(limit=20))
        return named(self._store.job(job_id), "job", job_id, known)

    def _of_devices(self, following: Following) -> list[pb.LogRecord]:
        request, told = following.request, following.told
        statuses = self._store.statuses_since(
            following.statuses_since_s,
            device_id=request.device_id or None,
            profile=request.profile or None,
            limit=following.limit,
        )
        found, seen = [], set()
        for receive_time_s, status in statuses:
            key = (status.device_id, status.generation, status.state.value, receive_time_s)
            seen.add(key)
            level = logging.WARNING if status.state in _FAILURES else logging.INFO
            if key not in told and level >= following.level:
                found.append(_of_device(status, receive_time_s, level))
        following.told = seen
        if statuses:
            newest_s = max(receive_time_s for receive_time_s, _ in statuses)
            following.statuses_since_s = max(following.since_s, newest_s - _OVERLAP_S)
        return found

    def _of_job(self, following: Following) -> list[pb.LogRecord]:
        job = self._job(following.request.job_id)
        before, following.job_state = following.job_state, job.state
        following.names = _names_of(job)  # a search grows
        found: list[pb.LogRecord] = []

        def tell(time_s: float, level: int, text: str) -> None:
            if level >= following.level and time_s >= following.since_s:
                found.append(_record(time_s, level, f"job {job.job_id}", "", text))

        if before is None:
            of = f"workload {job.workload}" + (f", profile {job.profile}" if job.profile else "")
            tell(job.create_time_s, logging.INFO, f"{job.kind} asked for: {of}")
        if job.state.finished and job.state is not before:
            for trial in job.trials:
                if trial.state is JobState.FAILED:
                    tell(
                        job.end_time_s,
                        logging.WARNING,
                        f"task {trial.task_id} failed ({trial.code}): {trial.message}",
                    )
            level = logging.INFO if job.state is JobState.SUCCEEDED else logging.WARNING
            tell(job.end_time_s, level, f"{job.state}: {job.message}")
        return found


def _names_of(job: Job) -> frozenset[str]:
    return frozenset({job.job_id, *(trial.task_id for trial in job.trials)})


def _of_plane(record: LoggedRecord, plane: str) -> pb.LogRecord:
    return _record(record.time_s, record.level, f"plane {plane}", record.logger, record.text)


def _of_device(status: DeploymentStatus, receive_time_s: float, level: int) -> pb.LogRecord:
    text = f"generation {status.generation} ({status.digest[:12]}) {status.state.value}"
    why = ": ".join(part for part in (status.code, status.message) if part)
    return _record(receive_time_s, level, f"device {status.device_id}", "", f"{text}: {why}" if why else text)


def _record(time_s: float, level: int, source: str, logger: str, text: str) -> pb.LogRecord:
    name = next((name for name, floor in reversed(_LEVELS.items()) if level >= floor), "debug")
    return pb.LogRecord(event_time=timestamp(time_s), level=name, source=source, logger=logger, message=text)
