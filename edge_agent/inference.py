"""Serves the model: one thread owns the runtime, everybody else submits to it.

Rules that this module keeps:

- ``submit`` never blocks: a full queue refuses at once, so that overload shows where it arises.
- A swap loses no request. The new model is loaded and warmed up by whoever swaps, while the old one goes on
  serving; then each request that has not begun goes to the new one.
- Every result names the digest that computed it, and its latency is recorded under that digest alone.
- The latency of a request is what the model costs: from the check of its input on the inference thread to
  its outputs, without the wait in the queue. Each sample of a batch is a run and a record of its own, so
  latencies of any traffic compare.
- An input that does not fit the model is its sender's fault and no error of the model: else any local
  application could have a good model rolled back.
- With ``emulated_slowdown`` F, the graph really runs F times for each sample, and so does the reference
  kernel; nothing is slept or multiplied.
- The reference kernel is timed beside the requests, in the same thread, at most once each
  ``reference_interval_s``, and only after a request: an idle device does not burn power for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.meter import LatencyMeter, WindowKey
from edge_agent.runtime import ReferenceKernel, Runtime
from edgeloop.errors import EdgeloopError, RejectedError, TransientError

logger = logging.getLogger(__name__)

#: More samples than this in one request would hold up the others for too long.
MAX_BATCH: Final = 64
_NUM_WARMUP: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceResult:
    """Outputs, and which model gave them."""

    outputs: NDArray[np.float32]
    digest: str
    generation: int
    #: What the model is judged by, as its manifest says: "accuracy" (also when empty), or another.
    metric: str = ""
    #: What the request cost on the inference thread, all samples and emulated runs together.
    service_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A runtime with the identity that its results carry."""

    runtime: Runtime
    digest: str
    generation: int
    workload: str
    #: See ``InferenceResult``.
    metric: str = ""
    #: What its latencies are recorded under.
    key: WindowKey = field(init=False)
    #: Shape of a batch of one.
    one_shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        key = WindowKey(digest=self.digest, generation=self.generation, workload=self.workload)
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "one_shape", (1, *self.runtime.sample_shape))


class InferenceEngine:
    """``start()``, ``swap()`` a model in, ``submit()`` to it, ``close()``."""

    def __init__(
        self,
        *,
        meter: LatencyMeter,
        emulated_slowdown: int = 1,
        reference: ReferenceKernel | None = None,
        reference_interval_s: float = 0.25,
        max_pending: int = 64,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if emulated_slowdown < 1:
            raise ValueError("emulated_slowdown must be at least 1")
        self._meter = meter
        self._num_repeats = emulated_slowdown
        self._reference = reference
        self._reference_interval_s = reference_interval_s
        self._next_reference_s = 0.0
        self._max_pending = max_pending
        self._clock = clock
        self._model: ServedModel | None = None
        self._queue: SimpleQueue[tuple[NDArray[np.float32], Future[InferenceResult]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve_all, name="inference", daemon=True)

    def start(self) -> None:
        """Begins to serve; requests wait until then."""
        self._thread.start()

    def close(self) -> None:
        """Serves what was accepted, then stops; whatever comes later is refused."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()
        else:  # never started: nobody else will answer
            self._refuse_pending()

    @property
    def serving(self) -> ServedModel | None:
        """The model that the next request goes to."""
        return self._model

    def submit(self, inputs: NDArray[np.float32]) -> Future[InferenceResult]:
        """Queues one request: a sample, or a batch [n, ...] of at most ``MAX_BATCH``.

        Raises ``TransientError`` (``no-model``, ``inference-busy``, ``inference-stopped``). The future
        raises ``RejectedError``, for the input (``input-...``) or for a model that fails (``model-run``).
        """
        if self._model is None and not self._closed:
            raise TransientError("no model is installed yet; try again later", code="no-model")
        future: Future[InferenceResult] = Future()
        with self._lock:
            if self._closed:
                raise TransientError("the agent is stopping", code="inference-stopped")
            if self._queue.qsize() >= self._max_pending:
                raise TransientError(
                    f"{self._max_pending} requests wait already; send fewer or wait for results",
                    code="inference-busy",
                )
            self._queue.put((inputs, future))
        return future

    def swap(self, model: ServedModel) -> None:
        """Warms ``model`` up on this thread, then gives it every request that has not begun.

        Raises ``RejectedError`` (``model-run``) for one that does not run; the old one goes on then.
        """
        for _ in range(_NUM_WARMUP):
            model.runtime.run(np.zeros(model.one_shape, np.float32))
        self._model = model
        logger.info("serving %s of generation %d", model.digest[:12], model.generation)

    def withdraw(self) -> None:
        """Serves nothing until the next swap."""
        self._model = None

    def _serve_all(self) -> None:
        while (request := self._queue.get()) is not None:
            inputs, future = request
            if not future.set_running_or_notify_cancel():
                continue
            model = self._model
            if model is None:
                future.set_exception(TransientError("the model was withdrawn", code="no-model"))
                continue
            try:
                result = self.serve(model, inputs)
            except EdgeloopError as error:
                future.set_exception(error)
            except Exception as error:
                # One request must not end the thread that serves all the others.
                logger.exception("a request failed in an unforeseen way")
                future.set_exception(RejectedError(f"inference failed: {error!r}", code="inference-internal"))
            else:
                future.set_result(result)
            self._time_reference(model.key)
        self._refuse_pending()

    def serve(self, model: ServedModel, inputs: NDArray[np.float32]) -> InferenceResult:
        """One request on this thread. Only the inference thread and the benchmark call it."""
        begin_ns = time.perf_counter_ns()
        if inputs.shape != model.one_shape:
            return self._serve_batch(model, inputs)
        if inputs.dtype != np.float32:
            raise RejectedError(f"inputs are {inputs.dtype}, the model takes float32", code="input-type")
        run = model.runtime.run
        try:
            outputs = run(inputs)
            for _ in range(self._num_repeats - 1):
                outputs = run(inputs)
        except RejectedError:
            self._meter.record_error(model.key, self._clock())
            raise
        service_ms = (time.perf_counter_ns() - begin_ns) / 1e6
        self._meter.record(model.key, service_ms, self._clock())
        return InferenceResult(
            outputs=outputs,
            digest=model.digest,
            generation=model.generation,
            metric=model.metric,
            service_ms=service_ms,
        )

    def _serve_batch(self, model: ServedModel, inputs: NDArray[np.float32]) -> InferenceResult:
        sample_shape = model.one_shape[1:]
        if inputs.shape == sample_shape:
            return self.serve(model, inputs[np.newaxis])
        if inputs.shape[1:] != sample_shape or not 0 < len(inputs) <= MAX_BATCH:
            raise RejectedError(
                f"inputs have shape {list(inputs.shape)}; send {list(sample_shape)}, or a batch of 1 to "
                f"{MAX_BATCH} of these",
                code="input-shape",
            )
        results = [self.serve(model, inputs[n : n + 1]) for n in range(len(inputs))]
        return InferenceResult(
            outputs=np.concatenate([result.outputs for result in results]),
            digest=model.digest,
            generation=model.generation,
            metric=model.metric,
            service_ms=sum(result.service_ms for result in results),
        )

    def _time_reference(self, key: WindowKey) -> None:
        reference = self._reference
        if reference is None:
            return
        monotonic_s = time.monotonic()
        if monotonic_s < self._next_reference_s:
            return
        self._next_reference_s = monotonic_s + self._reference_interval_s
        elapsed_ms = 0.0
        for _ in range(self._num_repeats):
            elapsed_ms += reference.time_once()
        self._meter.record_reference(key, elapsed_ms, self._clock())

    def _refuse_pending(self) -> None:
        while not self._queue.empty():
            request = self._queue.get()
            if request is not None and request[1].set_running_or_notify_cancel():
                request[1].set_exception(TransientError("the agent is stopping", code="inference-stopped"))
