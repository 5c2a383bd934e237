"""Scores artifacts through the agent's own runtime, so that what is scored is what ships.

Rules: this is the only module of the cloud that imports the agent, and of it the runtime alone; accuracy and
golden outputs come from the runtime, never from torch; latencies that are compared are measured
interleaved in one process, beside the reference kernel. Memory is the peak of a fresh process that loads and
runs the artifact and does nothing else. The module imports no torch: that process is this module.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud.domain.losses import Loss
from cloud.training.scores import score
from edge_agent.runtime import (
    LatencyStats,
    ReferenceKernel,
    Runtime,
    load_onnx,
    load_rules,
    measure_interleaved,
    peak_rss_bytes,
)
from edgeloop import packed
from edgeloop.errors import RejectedError, TransientError
from edgeloop.rules import is_rules

__all__ = [
    "GoldenSamples",
    "Runtime",
    "Timing",
    "accuracy",
    "golden_samples",
    "load",
    "measure_peak_rss",
    "predict",
    "score_outputs",
    "time_artifacts",
]

Array = NDArray[np.float32]

NUM_CHUNKS = 8
ROUNDS_A_CHUNK = 40
EVALUATION_BATCH = 64
MAX_GOLDEN_SAMPLES = 8
MAX_GOLDEN_BYTES = 64 * 1024
#: Share of the outputs' range that other processors may differ by: rounding, not saturation, fits within.
GOLDEN_TOLERANCE_RATIO = {"fp32": 1e-3, "int8": 2e-2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """``chunks`` is one entry a chunk, each with one an artifact; the reference was timed between them."""

    chunks: tuple[tuple[LatencyStats, ...], ...]
    reference_p50_ms: float

    def p50_ms(self, index: int) -> float:
        """Median over the chunks, so that a burst of other work does not decide."""
        return statistics.median(chunk[index].p50_ms for chunk in self.chunks)

    def p95_ms(self, index: int) -> float:
        """Median over the chunks of their p95."""
        return statistics.median(chunk[index].p95_ms for chunk in self.chunks)

    def slowdown_ratio(self, index: int, other: int) -> float:
        """How many times slower ``index`` is than ``other``, at least: exceeded in three chunks of four."""
        ratios = [chunk[index].p50_ms / chunk[other].p50_ms for chunk in self.chunks]
        return float(np.percentile(ratios, 25))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GoldenSamples:
    inputs: Array
    outputs: Array
    absolute_tolerance: float


def load(data: bytes, *, num_threads: int = 1) -> Runtime:
    """The artifact, as the agent would load it. A packed one vouches for its size: it was built here."""
    if is_rules(data):
        return load_rules(data)
    if packed.is_packed(data):
        data = packed.unpack(data, executable_bytes=packed.executable_bytes(data))
    return load_onnx(data, num_threads=num_threads)


def predict(runtime: Runtime, inputs: Array) -> Array:
    """Outputs for all ``inputs``."""
    starts = range(0, len(inputs), EVALUATION_BATCH)
    return np.concatenate([runtime.run(inputs[start : start + EVALUATION_BATCH]) for start in starts])


def accuracy(runtime: Runtime, inputs: Array, labels: NDArray[Any], loss: Loss = Loss.CROSS_ENTROPY) -> float:
    """How good the runtime is, 0 to 1, by the loss's metric.

    Raises ``RejectedError`` when an output is not finite.
    """
    return score_outputs(predict(runtime, inputs), labels, loss)


def score_outputs(outputs: Array, labels: NDArray[Any], loss: Loss) -> float:
    """How good outputs are, 0 to 1, by the loss's metric. Raises ``RejectedError`` when one is not finite."""
    if not np.isfinite(outputs).all():
        raise RejectedError(
            "the artifact gives NaN or infinity on the validation data", code="output-not-finite"
        )
    return score(loss, outputs, labels)


def time_artifacts(runtimes: Sequence[Runtime], sample: Array) -> Timing:
    """Latency at batch 1 of each, interleaved in short chunks with the reference kernel between."""
    kernel = ReferenceKernel()
    chunks: list[tuple[LatencyStats, ...]] = []
    reference: list[float] = []
    for chunk in range(NUM_CHUNKS):
        warmup = 20 if chunk == 0 else 2
        stats = measure_interleaved(runtimes, sample, num_warmup=warmup, num_rounds=ROUNDS_A_CHUNK)
        chunks.append(tuple(stats))
        reference += [kernel.time_once() for _ in range(ROUNDS_A_CHUNK // 2)]
    return Timing(chunks=tuple(chunks), reference_p50_ms=statistics.median(reference))


def golden_samples(runtime: Runtime, inputs: Array, precision: str) -> GoldenSamples:
    """A few inputs with what the runtime gives for them here; all together at most 64 KiB."""
    outputs = predict(runtime, inputs[:MAX_GOLDEN_SAMPLES])
    sample_bytes = inputs[0].nbytes + outputs[0].nbytes
    count = max(1, min(len(outputs), MAX_GOLDEN_BYTES // sample_bytes))
    outputs = outputs[:count]
    scale = float(outputs.max() - outputs.min())
    return GoldenSamples(
        inputs=inputs[:count],
        outputs=outputs,
        absolute_tolerance=max(1e-4, scale * GOLDEN_TOLERANCE_RATIO[precision]),
    )


def measure_peak_rss(data: bytes) -> int:
    """Most memory that a process needs to load and run ``data``. ``TransientError`` when it dies."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        finished = subprocess.run(
            [sys.executable, "-P", "-m", __spec__.name],
            input=data,
            capture_output=True,
            timeout=120,
            check=True,
            env=environment,
        )
        return int(finished.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        detail = getattr(error, "stderr", b"") or b""
        raise TransientError(
            f"the process that measures memory failed: {error} {detail.decode(errors='replace')[-300:]}",
            code="measure-memory",
        ) from error


def _child() -> None:
    runtime = load(sys.stdin.buffer.read())
    sample = np.zeros((1, *runtime.input_shape[1:]), dtype=np.float32)
    for _ in range(10):
        runtime.run(sample)
    sys.stdout.write(f"{peak_rss_bytes()}\n")


if __name__ == "__main__":
    _child()
