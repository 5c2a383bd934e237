"""Times models, and says how much memory the process holds.

Timing rules: what is compared is timed interleaved, in one process, because on a busy machine two runs
minutes apart differ by more than the models do. Times are what a caller waits for
(wall clock, monotonic), since that is what a device reports.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.runtime.onnx import Runtime


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyStats:
    """Latency of single-sample calls."""

    p50_ms: float
    p95_ms: float
    num_runs: int


def measure_latency(
    runtime: Runtime, sample: NDArray[np.float32], *, num_warmup: int = 20, num_runs: int = 200
) -> LatencyStats:
    """Latency of ``runtime`` on ``sample`` ([1, ...])."""
    return measure_interleaved([runtime], sample, num_warmup=num_warmup, num_rounds=num_runs)[0]


def measure_interleaved(
    runtimes: Sequence[Runtime],
    sample: NDArray[np.float32],
    *,
    num_warmup: int = 20,
    num_rounds: int = 200,
) -> list[LatencyStats]:
    """Latency of each runtime, in the order given, from rounds in which each runs once.

    Each round has its own random order, so that none always runs behind the same neighbour and what that
    left in the caches. The same seed each time: a measurement can be repeated.
    """
    if num_rounds < 1:
        raise ValueError("num_rounds must be at least 1")
    for runtime in runtimes:
        for _ in range(num_warmup):
            runtime.run(sample)
    count = len(runtimes)
    elapsed_ns = np.empty((count, num_rounds), np.int64)
    rng = np.random.default_rng(0)
    for turn in range(num_rounds):
        for index in rng.permutation(count):
            run = runtimes[index].run
            begin = time.perf_counter_ns()
            run(sample)
            elapsed_ns[index, turn] = time.perf_counter_ns() - begin
    return [_stats(row) for row in elapsed_ns]


def _stats(elapsed_ns: NDArray[np.int64]) -> LatencyStats:
    p50, p95 = np.percentile(elapsed_ns / 1e6, (50, 95))
    return LatencyStats(p50_ms=float(p50), p95_ms=float(p95), num_runs=len(elapsed_ns))


def rss_bytes() -> int:
    """Memory that this process holds now."""
    return _status_bytes("VmRSS") or peak_rss_bytes()


def peak_rss_bytes() -> int:
    """The most memory that this process has held.

    Read from the process's own status first: the figure of getrusage() starts at what the *parent* held
    when it forked, which makes a small child of a large parent look large.
    """
    return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status_bytes(field: str) -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0
