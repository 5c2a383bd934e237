"""What a profile measures before any objective is set, once that has settled.

An objective made from a noisy first figure tells another story than the one that was planned: set while a
control plane starts, it is so generous that the profile that was to be left alone has slack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import reduce

from cloud.demo.outcome import Span, overlaps
from edgeloop.sketch import LatencySketch
from edgeloop.v1 import control_service_pb2 as pb

#: Two p95 of one model on one machine, each over some hundred requests, differ by less than this share.
TOLERANCE = 0.25


def _p95_ms(windows: Iterable[pb.Measurement]) -> float:
    sketches = (LatencySketch.from_proto(window.latency) for window in windows)
    merged = reduce(LatencySketch.merge, sketches, LatencySketch.empty())
    return merged.quantile(0.95) if merged.count else float("inf")


def calibrate(
    measurements: Iterable[pb.Measurement],
    num_devices: int,
    num_windows: int,
    busy: Sequence[Span] = (),
    *,
    tolerance: float = TOLERANCE,
) -> tuple[float | None, bool]:
    """The p95 in ms over the newest ``num_windows`` windows of each device, and whether it has settled.

    It has when the windows just before say the same within ``tolerance``. Windows in which this machine was
    building (``busy``) count for neither. None while a device has too few windows.
    """
    by_device: dict[str, list[pb.Measurement]] = defaultdict(list)
    for window in measurements:
        if not overlaps(window, busy):
            by_device[window.device_id].append(window)
    newest: list[pb.Measurement] = []
    before: list[pb.Measurement] = []
    for windows in by_device.values():
        windows.sort(key=lambda window: window.end_time.ToNanoseconds())
        newest += windows[-num_windows:]
        before += windows[-2 * num_windows : -num_windows]
    if len(newest) < num_devices * num_windows:
        return None, False
    p95_ms = _p95_ms(newest)
    if len(before) < num_devices * num_windows:
        return p95_ms, False
    earlier_ms = _p95_ms(before)
    return p95_ms, abs(p95_ms - earlier_ms) <= tolerance * max(p95_ms, earlier_ms)
