"""What this machine's own work did to its emulated devices says nothing about them."""

from __future__ import annotations

from cloud.domain.evidence import Window
from cloud.domain.jobs import Job, JobKind
from cloud.own_load import busy_spans, without_own_load
from edgeloop.sketch import LatencySketch


def window(start_s: float, end_s: float, *, slowdown: int) -> Window:
    return Window(
        device_id="gw-1",
        boot_id="boot",
        sequence=int(start_s),
        digest="a" * 64,
        generation=1,
        workload="digits",
        start_s=start_s,
        end_s=end_s,
        latency=LatencySketch.of([1.0]),
        reference=LatencySketch.of([1.0]),
        num_errors=0,
        rss_bytes=0,
        emulated_slowdown=slowdown,
    )


def job(create_s: float, end_s: float) -> Job:
    return Job(job_id="j", kind=JobKind.COMPRESS, workload="digits", create_time_s=create_s, end_time_s=end_s)


def test_windows_of_emulated_devices_are_set_aside_while_a_job_runs() -> None:
    windows = [window(s, s + 2, slowdown=8) for s in (0.0, 8.0, 10.0, 14.0, 18.0, 22.0)]
    spans = busy_spans([job(11.0, 17.0)], now_s=100.0)
    assert [w.start_s for w in without_own_load(windows, spans)] == [0.0, 8.0, 18.0, 22.0]


def test_an_unfinished_job_is_busy_until_now() -> None:
    spans = busy_spans([job(11.0, 0.0)], now_s=15.0)
    windows = [window(s, s + 2, slowdown=8) for s in (8.0, 12.0, 14.0)]
    assert [w.start_s for w in without_own_load(windows, spans)] == [8.0]


def test_real_devices_always_count() -> None:
    windows = [window(12.0, 14.0, slowdown=1)]
    assert without_own_load(windows, busy_spans([job(11.0, 17.0)], now_s=100.0)) == windows
