"""How long jobs took, as Prometheus counts it: a histogram by kind and by how they ended.

Rules that this module keeps:

* Counts only grow while this process runs, as a counter must: a job is counted once, when it is first seen to
  have ended, whichever control plane ran it.
* What was counted is not read again: a page costs one list of ids and the jobs that are new.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cloud.domain.jobs import Job, JobKind, JobState

#: Seconds. Rules are found in seconds, teachers of real networks take hours.
BUCKETS_S = (10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 21_600.0, 86_400.0)


class JobStore(Protocol):
    """What of the store is used here."""

    def finished_jobs(self, known: Iterable[str]) -> list[Job]: ...


@dataclass(slots=True)
class _Series:
    #: One more than there are bounds: the last is for what took longer.
    num_by_bucket: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0


class JobTimes:
    """Belongs to one thread at a time."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._counted: set[str] = set()
        ends = [state for state in JobState if state.finished]
        self._series = {(kind, state): _Series() for kind in JobKind for state in ends}

    def update(self) -> None:
        """Count what has ended since. Raises TransientError while the database is away."""
        for job in self._store.finished_jobs(self._counted):
            self._counted.add(job.job_id)
            took_s = max(0.0, job.end_time_s - job.create_time_s)
            series = self._series[job.kind, job.state]
            series.num_by_bucket[bisect.bisect_left(BUCKETS_S, took_s)] += 1
            series.sum_s += took_s

    def lines(self, name: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """Each sample as (name, labels, value)."""
        for (kind, state), series in self._series.items():
            labels = {"kind": kind.value, "state": state.value}
            num = 0
            for bound, found in zip((*BUCKETS_S, None), series.num_by_bucket, strict=True):
                num += found
                yield f"{name}_bucket", {**labels, "le": "+Inf" if bound is None else f"{bound:g}"}, num
            yield f"{name}_sum", labels, series.sum_s
            yield f"{name}_count", labels, num
