"""Which windows say nothing about a device, because this machine was busy building students.

Emulated devices run where the developer is, and with a local Ray that is also where students are built: while
a job runs, their latency tells of the job. Such windows are set aside; those of real devices never are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cloud.domain.evidence import Window
from cloud.domain.jobs import Job

#: Workers start and end a little outside of what the job's row says.
MARGIN_S = 0.5


def busy_spans(jobs: Iterable[Job], now_s: float) -> list[tuple[float, float]]:
    """Begin and end of each job, in seconds since the epoch; an unfinished one is busy until now."""
    return [(job.create_time_s - MARGIN_S, (job.end_time_s or now_s) + MARGIN_S) for job in jobs]


def without_own_load(windows: Sequence[Window], spans: Sequence[tuple[float, float]]) -> list[Window]:
    """The windows that count: those of real devices, and those of emulated ones outside of the spans."""
    return [
        window
        for window in windows
        if window.emulated_slowdown <= 1
        or not any(window.start_s < end and begin < window.end_s for begin, end in spans)
    ]
