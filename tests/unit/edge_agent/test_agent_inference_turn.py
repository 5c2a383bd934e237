"""Who runs the model: whoever brings a request where nothing waits or runs, else the inference thread."""

from __future__ import annotations

import threading
import time
from typing import cast

import numpy as np
import pytest
from inference_scene import LONG_S, SAMPLE, FakeReference, FakeRuntime, model
from machine import wait_until
from numpy.typing import NDArray

from edge_agent.inference import InferenceEngine, InferenceResult
from edge_agent.meter import LatencyMeter
from edge_agent.runtime import ReferenceKernel
from edgeloop.errors import RejectedError, TransientError


@pytest.fixture
def meter() -> LatencyMeter:
    return LatencyMeter(window_s=1e6)


@pytest.fixture
def engine(meter: LatencyMeter) -> InferenceEngine:
    return InferenceEngine(meter=meter, max_pending=8)


class WatchedRuntime(FakeRuntime):
    """Notes how many run it at once; waits at its gate on whichever thread, but the one that made it."""

    def __init__(self, factor: float, *, gate: threading.Event | None = None) -> None:
        super().__init__(factor)
        self.maker = threading.current_thread()
        self.stop = gate
        self.num_inside = 0
        self.most_inside = 0

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        self.num_inside += 1
        self.most_inside = max(self.most_inside, self.num_inside)
        try:
            if self.stop is not None and threading.current_thread() is not self.maker:
                self.begun.set()
                self.stop.wait(60)
            return super().run(inputs)
        finally:
            self.num_inside -= 1


def test_where_nothing_waits_a_request_runs_on_the_thread_that_brings_it(
    engine: InferenceEngine, meter: LatencyMeter
) -> None:
    runtime = FakeRuntime(3.0)
    engine.swap(model(runtime, generation=7))
    assert engine.serve_here(SAMPLE, wait_s=LONG_S) is None  # not started
    engine.start()
    runtime.threads.clear()
    result = engine.serve_here(np.ones((2, 2), np.float32), wait_s=LONG_S)
    assert result is not None
    np.testing.assert_array_equal(result.outputs, np.full((2, 2), 3.0))
    assert (result.digest, result.generation) == (f"{7:064x}", 7)
    assert runtime.threads == {threading.current_thread().name}
    engine.withdraw()
    assert engine.serve_here(SAMPLE, wait_s=LONG_S) is None
    engine.close()
    (window,) = meter.flush(time.time())
    assert window.latency.count == 2
    assert engine.serve_here(SAMPLE, wait_s=LONG_S) is None


def test_a_request_goes_to_the_queue_while_another_runs_or_waits(engine: InferenceEngine) -> None:
    gate = threading.Event()
    runtime = WatchedRuntime(1.0, gate=gate)
    engine.swap(model(runtime))
    engine.start()
    found: list[InferenceResult | None] = []
    other = threading.Thread(target=lambda: found.append(engine.serve_here(SAMPLE, wait_s=LONG_S)))
    other.start()
    assert runtime.begun.wait(60)
    assert engine.serve_here(SAMPLE, wait_s=LONG_S) is None
    waiting = [engine.submit(SAMPLE) for _ in range(8)]
    with pytest.raises(TransientError) as caught:
        engine.submit(SAMPLE)
    assert caught.value.code == "inference-busy"
    gate.set()
    assert all(future.result(60) for future in waiting)
    other.join(60)
    assert found[0] is not None
    engine.close()
    assert runtime.most_inside == 1


def test_however_requests_come_one_runs_at_a_time_and_each_is_answered_and_metered(
    engine: InferenceEngine, meter: LatencyMeter
) -> None:
    runtime = WatchedRuntime(1.0)
    engine.swap(model(runtime))
    engine.start()
    answered: list[InferenceResult] = []

    def ask() -> None:
        for _ in range(200):
            result = engine.serve_here(SAMPLE, wait_s=LONG_S)
            answered.append(result if result is not None else engine.submit(SAMPLE).result(60))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(120)
    engine.close()
    assert len(answered) == 800
    assert runtime.most_inside == 1
    assert sum(window.latency.count for window in meter.flush(time.time())) == 800


def test_whoever_may_not_wait_for_many_runs_is_not_made_to_run_one(engine: InferenceEngine) -> None:
    class Slow(FakeRuntime):
        def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
            time.sleep(0.01)
            return super().run(inputs)

    engine.swap(model(Slow(1.0)))
    engine.start()
    assert engine.serve_here(SAMPLE, wait_s=0.05) is None
    assert engine.serve_here(SAMPLE, wait_s=LONG_S) is not None
    engine.close()


def test_the_reference_is_timed_after_a_request_that_goes_to_the_queue_for_it(meter: LatencyMeter) -> None:
    reference = FakeReference()
    engine = InferenceEngine(
        meter=meter, reference=cast(ReferenceKernel, reference), reference_interval_s=1e6
    )
    engine.swap(model(FakeRuntime(1.0)))
    engine.start()
    assert engine.serve_here(SAMPLE, wait_s=LONG_S) is None
    engine.submit(SAMPLE).result(60)
    wait_until(lambda: engine.serve_here(SAMPLE, wait_s=LONG_S) is not None)
    engine.close()
    assert reference.num_timed == 1


@pytest.mark.parametrize("error", [RejectedError("kernel failed", code="model-run"), ValueError("what")])
def test_what_fails_on_the_callers_thread_leaves_the_turn_to_others(
    engine: InferenceEngine, error: Exception
) -> None:
    class Failing(FakeRuntime):
        def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
            if self.failing:
                raise error
            return inputs

    runtime = Failing(1.0)
    engine.swap(model(runtime))
    engine.start()
    runtime.failing = True
    with pytest.raises(RejectedError) as caught:
        engine.serve_here(SAMPLE, wait_s=LONG_S)
    assert caught.value.code == ("model-run" if isinstance(error, RejectedError) else "inference-internal")
    runtime.failing = False
    assert engine.serve_here(SAMPLE, wait_s=LONG_S) is not None
    engine.close()


def test_closing_waits_for_a_run_on_a_callers_thread(engine: InferenceEngine) -> None:
    gate = threading.Event()
    runtime = WatchedRuntime(1.0, gate=gate)
    engine.swap(model(runtime))
    engine.start()
    found: list[InferenceResult | None] = []
    other = threading.Thread(target=lambda: found.append(engine.serve_here(SAMPLE, wait_s=LONG_S)))
    other.start()
    assert runtime.begun.wait(60)
    closing = threading.Thread(target=engine.close)
    closing.start()
    closing.join(0.3)
    assert closing.is_alive()
    gate.set()
    closing.join(60)
    other.join(60)
    assert not closing.is_alive()
    assert found[0] is not None
    assert runtime.num_inside == 0
