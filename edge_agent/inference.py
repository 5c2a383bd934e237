"""Serves the model: one request at a time, each in its turn.

Rules that this module keeps:

- Whoever has the turn runs the model: the inference thread, for all that is submitted to it; or, by
  ``serve_here``, the thread that brings a request and would wait for it anyway, where nothing else waits or
  runs. The second saves two changes of threads, each of which may be kept waiting by whatever else the agent
  does meanwhile.
- ``submit`` never blocks: a full queue refuses at once, so that overload shows where it arises.
- A swap loses no request. The new model is loaded and warmed up by whoever swaps, while the old one goes on
  serving; then each request that has not begun goes to the new one.
- Every result names the digest that computed it, and its latency is recorded under that digest alone.
- The latency of a request is what the model costs: from the check of its input to its outputs, without the
  wait for its turn. Each sample of a batch is a run and a record of its own, so
  latencies of any traffic compare.
- An input that does not fit the model is its sender's fault and no error of the model: else any local
  application could have a good model rolled back.
- With batching on (see ``edge_agent.batching``), requests that wait side by side share one run. Each is then
  recorded with what it waited for on this thread: the whole run, and the time from when the first of the
  batch was taken and held for others. An input that does not fit is refused by itself; when a shared run
  fails, each of its requests runs once more on its own, so that none fails for another's sake.
- With ``emulated_slowdown`` F, the graph really runs F times for each sample, and so does the reference
  kernel; nothing is slept or multiplied.
- The reference kernel is timed beside the requests, on the inference thread, at most once each
  ``reference_interval_s``, and only after a request: an idle device does not burn power for it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.batching import BatchCounts, BatchSettings, Gatherer, Request, num_samples_of
from edge_agent.config import MAX_BATCH as MAX_BATCH
from edge_agent.meter import LatencyMeter, WindowKey
from edge_agent.runtime import ReferenceKernel, Runtime
from edgeloop.errors import EdgeloopError, RejectedError, TransientError

logger = logging.getLogger(__name__)

_NUM_WARMUP: Final = 3
# A deadline is for whoever waits; whoever runs the model cannot leave. So it must be so many runs away.
_MIN_RUNS_TO_DEADLINE: Final = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceResult:
    """Outputs, and which model gave them."""

    outputs: NDArray[np.float32]
    digest: str
    generation: int
    #: What the model is judged by, as its manifest says: "accuracy" (also when empty), or another.
    metric: str = ""
    #: What the request cost once it had its turn, all samples and emulated runs together; in a batch, the run
    #: that it shared and the time that it was held for it.
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
    #: Samples that may share a run; more than 1 only for a model that was seen to answer each as if alone.
    max_batch_size: int = 1
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
        batching: BatchSettings | None = None,
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
        self.batching = batching or BatchSettings()
        self.batch_counts = BatchCounts()
        self._queue: SimpleQueue[Request | None] = SimpleQueue()
        self._gatherer = Gatherer(self._queue, self.batching)
        self._lock = threading.Lock()
        # Held by whoever runs the model.
        self._turn = threading.Lock()
        # Submitted and not begun yet.
        self._num_waiting = 0
        # Of one sample, as it was when the model was warmed up.
        self._run_s = 0.0
        self._started = False
        self._closed = False
        self._thread = threading.Thread(target=self._serve_all, name="inference", daemon=True)

    def start(self) -> None:
        """Begins to serve; requests wait until then."""
        self._started = True
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
        with self._turn:
            pass  # whoever runs the model on a thread of its own has ended

    @property
    def serving(self) -> ServedModel | None:
        """The model that the next request goes to."""
        return self._model

    def submit(self, inputs: NDArray[np.float32], *, deadline_s: float = math.inf) -> Future[InferenceResult]:
        """Queues one request: a sample, or a batch [n, ...] of at most ``MAX_BATCH``.

        ``deadline_s``, by the monotonic clock, bounds how long it is held for others; whoever waits for the
        future cancels it then.
        Raises ``TransientError`` (``no-model``, ``inference-busy``, ``inference-stopped``). The future
        raises ``RejectedError``, for the input (``input-...``) or for a model that fails (``model-run``).
        """
        if self._model is None and not self._closed:
            raise TransientError("no model is installed yet; try again later", code="no-model")
        future: Future[InferenceResult] = Future()
        with self._lock:
            if self._closed:
                raise TransientError("the agent is stopping", code="inference-stopped")
            if self._num_waiting >= self._max_pending:
                raise TransientError(
                    f"{self._max_pending} requests wait already; send fewer or wait for results",
                    code="inference-busy",
                )
            self._num_waiting += 1
            self._queue.put(Request(inputs, future, deadline_s))
        return future

    def serve_here(self, inputs: NDArray[np.float32], *, wait_s: float) -> InferenceResult | None:
        """Runs one batch [n, ...] on the calling thread, now; None where it must be submitted instead.

        That is so while anything else waits or runs, where requests share runs, when the reference is due,
        and where ``wait_s`` is not many times what the model takes. Raises what the future raises.
        """
        if (
            not self._started
            or self._num_waiting
            or self.batching.max_batch_size > 1
            or wait_s < _MIN_RUNS_TO_DEADLINE * self._run_s * len(inputs)
            or self._is_reference_due()
            or not self._turn.acquire(blocking=False)
        ):
            return None
        try:
            begin_ns = time.perf_counter_ns()
            model = self._model
            if model is None or self._closed:
                return None
            return self._served(model, inputs, begin_ns)
        finally:
            self._turn.release()

    def swap(self, model: ServedModel) -> None:
        """Warms ``model`` up on this thread, then gives it every request that has not begun.

        Raises ``RejectedError`` (``model-run``) for one that does not run; the old one goes on then.
        """
        run_s = math.inf
        for _ in range(_NUM_WARMUP):
            begin_ns = time.perf_counter_ns()
            model.runtime.run(np.zeros(model.one_shape, np.float32))
            # The least: one that stood still must not keep requests off their threads until the next swap.
            run_s = min(run_s, (time.perf_counter_ns() - begin_ns) / 1e9)
        self._run_s = run_s * self._num_repeats
        self._model = model
        logger.info("serving %s of generation %d", model.digest[:12], model.generation)

    def withdraw(self) -> None:
        """Serves nothing until the next swap."""
        self._model = None

    def _serve_all(self) -> None:
        while (request := self._gatherer.next()) is not None:
            with self._turn:
                self._serve_taken(request)
        self._refuse_pending()

    def _begin(self, num_requests: int) -> None:
        with self._lock:
            self._num_waiting -= num_requests

    def _serve_taken(self, request: Request) -> None:
        """This request, and those that join it."""
        self._begin(1)
        begin_ns = time.perf_counter_ns()
        model, taken = self._model, [request]
        if model is not None and model.max_batch_size > 1:
            taken = self._gatherer.gather(request, model.max_batch_size, model.one_shape[1:])
            self._begin(len(taken) - 1)
            model = self._model  # a swap may have come in between
        batch = [one for one in taken if one.future.set_running_or_notify_cancel()]
        if model is None:
            for one in batch:
                one.future.set_exception(TransientError("the model was withdrawn", code="no-model"))
        elif batch:
            if not self._serve_together(model, batch, begin_ns):
                for one in batch:
                    self._answer(model, one, begin_ns)
                    begin_ns = time.perf_counter_ns()
            try:
                self._time_reference(model.key)
            except Exception:
                # Nobody else answers requests when this thread has ended.
                logger.exception("the reference kernel failed in an unforeseen way")

    def _answer(self, model: ServedModel, request: Request, begin_ns: int) -> None:
        try:
            result = self._served(model, request.inputs, begin_ns)
        except EdgeloopError as error:
            request.future.set_exception(error)
        else:
            request.future.set_result(result)

    def _served(self, model: ServedModel, inputs: NDArray[np.float32], begin_ns: int) -> InferenceResult:
        """Raises nothing but our own errors: no request may end the thread that serves others."""
        try:
            return self.serve(model, inputs, begin_ns=begin_ns)
        except EdgeloopError:
            raise
        except Exception as error:
            logger.exception("a request failed in an unforeseen way")
            raise RejectedError(f"inference failed: {error!r}", code="inference-internal") from error

    def _serve_together(self, model: ServedModel, batch: list[Request], begin_ns: int) -> bool:
        """One run for all; False, with nothing answered, where each must run on its own."""
        if model.max_batch_size == 1:
            return False
        sample_shape = model.one_shape[1:]
        sizes = [num_samples_of(request.inputs, sample_shape) for request in batch]
        num_samples = sum(sizes)
        if not 1 < num_samples <= model.max_batch_size or not all(sizes):
            return False
        run, shape = model.runtime.run, (-1, *sample_shape)
        try:
            inputs = np.concatenate([request.inputs.reshape(shape) for request in batch])
            for _ in range(self._num_repeats):
                outputs = run(inputs)
        except Exception as error:  # noqa: BLE001 - each runs on its own next, and what fails then is recorded
            logger.debug("a batch of %d failed: %s", num_samples, error)
            return False
        service_ms = (time.perf_counter_ns() - begin_ns) / 1e6
        now_s, start = self._clock(), 0
        self.batch_counts.add(num_samples)
        for request, size in zip(batch, sizes, strict=True):
            for _ in range(size):
                self._meter.record(model.key, service_ms, now_s)
            result = InferenceResult(
                outputs=outputs[start : start + size],
                digest=model.digest,
                generation=model.generation,
                metric=model.metric,
                service_ms=service_ms,
            )
            start += size
            request.future.set_result(result)
        return True

    def serve(
        self, model: ServedModel, inputs: NDArray[np.float32], *, begin_ns: int | None = None
    ) -> InferenceResult:
        """One request on this thread. Only whoever has the turn, and the benchmark, call it.

        ``begin_ns`` is when it was taken, if that is not now.
        """
        if begin_ns is None:
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
        if self.batching.max_batch_size > 1:
            self.batch_counts.add(1)
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

    def _is_reference_due(self) -> bool:
        return self._reference is not None and time.monotonic() >= self._next_reference_s

    def _time_reference(self, key: WindowKey) -> None:
        reference = self._reference
        if reference is None or not self._is_reference_due():
            return
        self._next_reference_s = time.monotonic() + self._reference_interval_s
        elapsed_ms = 0.0
        for _ in range(self._num_repeats):
            elapsed_ms += reference.time_once()
        self._meter.record_reference(key, elapsed_ms, self._clock())

    def _refuse_pending(self) -> None:
        while not self._queue.empty():
            request = self._queue.get()
            if request is not None and request.future.set_running_or_notify_cancel():
                request.future.set_exception(
                    TransientError("the agent is stopping", code="inference-stopped")
                )
