"""What a LatencyReport must be before it is stored.

Rules kept here:

- One bad report is refused alone, with a stable code; the rest of its batch is kept.
- Refused is what no honest device can send: times in the future or reversed, a window that is too long, more
  requests than it has room for, numbers outside any machine, a sketch that is none.
- Too old is refused as well: old reports are pruned, and one that was pruned may not be counted again.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloud.services.convert import (
    MAX_EMULATED_SLOWDOWN,
    MAX_GENERATION,
    MAX_MEMORY_BYTES,
    check_boot_id,
    check_workload,
    seconds,
    within,
)
from cloud.store import ReportRow
from edgeloop import topics
from edgeloop.errors import RejectedError
from edgeloop.sketch import MAX_COUNT, LatencySketch
from edgeloop.v1 import telemetry_pb2

_MAX_SEQUENCE = 2**62
_MAX_REQUESTS_PER_S = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportBounds:
    """``max_clock_skew_s`` is how far a device's clock may be ahead of this one.

    ``max_age_s`` may not exceed the time for which the controller keeps reports.
    """

    max_window_s: float = 3600.0
    max_clock_skew_s: float = 300.0
    max_age_s: float = 7 * 86400.0


def check_report(report: telemetry_pb2.LatencyReport, bounds: ReportBounds, now_s: float) -> ReportRow:
    """The row to store. Raises RejectedError with a code that the agent counts by."""
    start_s = seconds(report.start_time, field="start_time")
    end_s = seconds(report.end_time, field="end_time")
    if end_s < start_s:
        raise RejectedError(
            f"end_time is {start_s - end_s:g} s before start_time: check the device's clock",
            code="report-reversed",
        )
    if end_s - start_s > bounds.max_window_s:
        raise RejectedError(
            f"the window is {end_s - start_s:g} s long: report at least every {bounds.max_window_s:g} s",
            code="report-too-long",
        )
    if end_s > now_s + bounds.max_clock_skew_s:
        raise RejectedError(
            f"end_time is {end_s - now_s:g} s in the future: set the device's clock", code="report-future"
        )
    if end_s < now_s - bounds.max_age_s:
        raise RejectedError(
            f"end_time is {now_s - end_s:g} s ago: reports older than {bounds.max_age_s:g} s are not kept",
            code="report-too-old",
        )
    latency = LatencySketch.from_proto(report.latency)
    if latency.count > _MAX_REQUESTS_PER_S * max(1.0, end_s - start_s):
        raise RejectedError(
            f"{latency.count} requests in {end_s - start_s:g} s: a device serves at most "
            f"{_MAX_REQUESTS_PER_S} a second",
            code="report-rate",
        )
    LatencySketch.from_proto(report.reference)
    return ReportRow(
        topics.check_device_id(report.device_id),
        check_boot_id(report.boot_id),
        within("sequence", report.sequence, 0, _MAX_SEQUENCE),
        topics.check_digest(report.digest),
        within("generation", report.generation, 0, MAX_GENERATION),
        check_workload(report.workload),
        start_s,
        end_s,
        latency.count,
        report.latency.SerializeToString(),
        report.reference.SerializeToString(),
        within("num_errors", report.num_errors, 0, MAX_COUNT),
        within("rss_bytes", report.rss_bytes, 0, MAX_MEMORY_BYTES),
        within("emulated_slowdown", report.emulated_slowdown, 1, MAX_EMULATED_SLOWDOWN),
        within("num_dropped_reports", report.num_dropped_reports, 0, _MAX_SEQUENCE),
    )
