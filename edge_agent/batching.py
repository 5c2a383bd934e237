"""Micro-batching: requests that wait side by side share one run of the model. Off unless it is set.

Rules that this module keeps:

- Only a model whose batch is free takes part, and only after it gave, here, the same answers together as one
  by one: a graph that mixes its samples would answer one caller with another's data.
- A request is held for others at most ``max_queue_delay_us``, and at most half of what is left of its time.
- Requests keep their order. One that does not fit in begins the next batch; one that cannot join is served on
  its own.
- What comes out is counted by size, so that it can be seen whether batching happens at all.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.runtime import Runtime
from edgeloop.errors import RejectedError

if TYPE_CHECKING:
    from edge_agent.inference import InferenceResult

_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSettings:
    """The words are those of Triton's dynamic batching."""

    #: Samples in one run at most; 1: requests are never joined.
    max_batch_size: int = 1
    #: How long the first of a batch is held for others; 0: only those that wait already join it.
    max_queue_delay_us: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One caller's samples, and where its answer goes."""

    inputs: NDArray[np.float32]
    future: Future[InferenceResult]
    #: By the monotonic clock: when the caller waits no longer.
    deadline_s: float = math.inf


class Gatherer:
    """What the inference thread takes its requests from. ``None`` in the queue is its end."""

    def __init__(self, queue: SimpleQueue[Request | None], settings: BatchSettings) -> None:
        self._queue = queue
        self._delay_s = settings.max_queue_delay_us / 1e6
        self._held: Request | None = None

    def next(self) -> Request | None:
        """Waits for one."""
        request, self._held = self._held, None
        return request or self._queue.get()

    def gather(self, first: Request, max_batch_size: int, sample_shape: tuple[int, ...]) -> list[Request]:
        """``first``, and those behind it that join its run."""
        num_samples = num_samples_of(first.inputs, sample_shape)
        batch = [first]
        if not num_samples:
            return batch
        until_s = self._held_until(first, math.inf)
        while num_samples < max_batch_size:
            try:
                request = self._queue.get(timeout=max(until_s - time.monotonic(), 0.0))
            except Empty:
                break
            if request is None:
                self._queue.put(None)
                break
            more = num_samples_of(request.inputs, sample_shape)
            if not more or num_samples + more > max_batch_size:
                self._held = request
                break
            batch.append(request)
            num_samples += more
            until_s = self._held_until(request, until_s)
        return batch

    def _held_until(self, request: Request, until_s: float) -> float:
        if not self._delay_s:
            return 0.0
        now_s = time.monotonic()
        return min(until_s, now_s + self._delay_s, now_s + (request.deadline_s - now_s) / 2)


def num_samples_of(inputs: NDArray[np.float32], sample_shape: tuple[int, ...]) -> int:
    """How many samples a request brings into a batch; 0 for one that cannot join any."""
    if not isinstance(inputs, np.ndarray) or inputs.dtype != np.float32:
        return 0
    if inputs.shape == sample_shape:
        return 1
    return len(inputs) if inputs.ndim and inputs.shape[1:] == sample_shape else 0


def prove_batches(
    runtime: Runtime, inputs: NDArray[np.float32], *, max_batch_size: int, absolute_tolerance: float
) -> None:
    """Runs ``inputs`` [n, ...] one by one and among others in the largest batch, and compares.

    The others are zeros and the inputs themselves with the sign turned, so that one golden sample is enough
    to notice a model whose answer depends on its neighbours. Raises ``RejectedError``: ``batch-fixed``,
    ``batch-differs``, or what a run raises.
    """
    if runtime.input_shape[0] != 0:
        raise RejectedError(
            "the model takes one sample at a time: export it with a free batch dimension to have requests "
            "batched",
            code="batch-fixed",
        )
    among = np.concatenate([inputs, np.zeros_like(inputs[:1]), -inputs])
    alone = np.concatenate([runtime.run(among[n : n + 1]) for n in range(min(len(among), max_batch_size))])
    for size in (2, max_batch_size):
        chosen = np.arange(size) % len(alone)
        together = runtime.run(np.ascontiguousarray(among[chosen]))
        if together.shape != (size, *alone.shape[1:]):
            raise RejectedError(
                f"a batch of {size} gives {list(together.shape)}: the answers cannot be told apart",
                code="batch-differs",
            )
        error = float(np.abs(together - alone[chosen]).max())
        # Written so that NaN fails too.
        if not error <= absolute_tolerance:
            raise RejectedError(
                f"in a batch of {size}, answers differ by {error:.3g} from those to single samples; "
                f"{absolute_tolerance:.3g} is allowed",
                code="batch-differs",
            )


class BatchCounts:
    """Sizes of the runs of one engine; the inference thread adds, others read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets = [0] * (len(_BUCKETS) + 1)
        self._num_samples = 0

    def add(self, num_samples: int) -> None:
        with self._lock:
            self._buckets[bisect_left(_BUCKETS, num_samples)] += 1
            self._num_samples += num_samples

    def read(self) -> tuple[list[int], int]:
        """Runs by bucket, and samples in all."""
        with self._lock:
            return list(self._buckets), self._num_samples


class Batched(Protocol):
    """What the page of metrics asks of an engine."""

    @property
    def batching(self) -> BatchSettings: ...
    @property
    def batch_counts(self) -> BatchCounts: ...
    @property
    def serving(self) -> Any: ...


def render_batches(engines: Mapping[str, Batched]) -> list[str]:
    """Prometheus lines, by workload where a device has several; nothing while batching is off."""
    on = {name: engine for name, engine in engines.items() if engine.batching.max_batch_size > 1}
    if not on:
        return []
    name, lines = "edgeloop_serving_batch_size", []
    for workload, engine in on.items():
        label = f'workload="{workload}"' if workload else ""
        buckets, num_samples = engine.batch_counts.read()
        total = 0
        for bound, count in zip((*map(str, _BUCKETS), "+Inf"), buckets, strict=True):
            total += count
            lines.append(f'{name}_bucket{{{label}{"," if label else ""}le="{bound}"}} {total}')
        labels = f"{{{label}}}" if label else ""
        lines += [f"{name}_sum{labels} {num_samples}", f"{name}_count{labels} {total}"]
    most = "edgeloop_serving_max_batch_size"
    sizes = [f"# HELP {most} Samples that may share a run of what serves; 1: it is not batched."]
    sizes.append(f"# TYPE {most} gauge")
    for workload, engine in on.items():
        model = engine.serving
        labels = f'{{workload="{workload}"}}' if workload else ""
        sizes.append(f"{most}{labels} {model.max_batch_size if model is not None else 1}")
    return [f"# HELP {name} Samples in one run of the model.", f"# TYPE {name} histogram", *lines, *sizes]
