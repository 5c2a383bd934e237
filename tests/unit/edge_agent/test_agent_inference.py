"""The inference thread: who served, what it cost, and that a swap loses nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future
from typing import cast

import numpy as np
import pytest
from inference_scene import SAMPLE, FakeReference, FakeRuntime, model
from machine import wait_until
from numpy.typing import NDArray

from edge_agent.inference import MAX_BATCH, InferenceEngine, InferenceResult
from edge_agent.meter import LatencyMeter
from edge_agent.runtime import ReferenceKernel
from edgeloop.errors import EdgeloopError, RejectedError, TransientError


@pytest.fixture
def meter() -> LatencyMeter:
    return LatencyMeter(window_s=1e6)


@pytest.fixture
def engine(meter: LatencyMeter) -> InferenceEngine:
    return InferenceEngine(meter=meter, max_pending=8)


def code_of(future: Future[InferenceResult]) -> str:
    return cast(EdgeloopError, future.exception(60)).code


def test_a_result_carries_outputs_digest_and_cost(engine: InferenceEngine, meter: LatencyMeter) -> None:
    engine.start()
    engine.swap(model(FakeRuntime(3.0), generation=7))
    result = engine.submit(SAMPLE).result(60)
    engine.close()
    np.testing.assert_array_equal(result.outputs, SAMPLE * 3)
    assert (result.digest, result.generation) == (f"{7:064x}", 7)
    (window,) = meter.flush(time.time())
    assert window.latency.count == 1
    assert window.latency.max_ms == pytest.approx(result.service_ms)
    assert (window.key.generation, window.key.workload) == (7, "digits")


def test_requests_run_on_the_one_thread_that_owns_the_runtime(engine: InferenceEngine) -> None:
    runtime = FakeRuntime(1.0)
    engine.swap(model(runtime))
    runtime.threads.clear()
    engine.start()
    for _ in range(5):
        engine.submit(SAMPLE).result(60)
    engine.close()
    assert runtime.threads == {"inference"}


def test_a_swap_under_load_loses_no_request_and_mixes_no_window(meter: LatencyMeter) -> None:
    engine = InferenceEngine(meter=meter, max_pending=10_000)
    engine.swap(model(FakeRuntime(1.0), generation=1))
    engine.start()
    futures: list[Future[InferenceResult]] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            futures.append(engine.submit(SAMPLE))
            time.sleep(0.0002)

    loader = threading.Thread(target=load)
    loader.start()
    for generation in range(2, 30):
        engine.swap(model(FakeRuntime(float(generation)), generation=generation))
        # Load between any two swaps, however the threads take turns.
        num_before = len(futures)
        wait_until(lambda num_before=num_before: len(futures) > num_before, "a request after the swap")
    stop.set()
    loader.join()
    engine.close()
    served: Counter[int] = Counter()
    for future in futures:
        result = future.result(0)
        # What it computed is what its digest computes.
        assert result.outputs[0, 0] == result.generation
        assert result.digest == f"{result.generation:064x}"
        served[result.generation] += 1
    assert len(served) > 10, served
    reported: Counter[int] = Counter()
    for window in meter.flush(time.time()):
        reported[window.key.generation] += window.latency.count
    assert reported == served


def test_the_old_model_serves_while_the_new_one_warms_up(engine: InferenceEngine) -> None:
    engine.swap(model(FakeRuntime(1.0), generation=1))
    engine.start()
    answers: list[InferenceResult] = []

    class Probing(FakeRuntime):
        def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
            if threading.current_thread().name != "inference":
                answers.append(engine.submit(SAMPLE).result(60))
            return super().run(inputs)

    engine.swap(model(Probing(2.0), generation=2))
    assert {answer.generation for answer in answers} == {1}
    assert engine.submit(SAMPLE).result(60).generation == 2
    engine.close()


def test_a_model_that_does_not_run_is_not_swapped_in(engine: InferenceEngine) -> None:
    engine.swap(model(FakeRuntime(1.0), generation=1))
    engine.start()
    broken = FakeRuntime(2.0)
    broken.failing = True
    with pytest.raises(RejectedError):
        engine.swap(model(broken, generation=2))
    assert engine.submit(SAMPLE).result(60).generation == 1
    engine.close()


def test_without_a_model_requests_are_refused_for_now(engine: InferenceEngine) -> None:
    engine.start()
    with pytest.raises(TransientError) as caught:
        engine.submit(SAMPLE)
    assert caught.value.code == "no-model"
    engine.swap(model(FakeRuntime(1.0)))
    engine.submit(SAMPLE).result(60)
    engine.withdraw()
    assert engine.serving is None
    with pytest.raises(TransientError):
        engine.submit(SAMPLE)
    engine.close()


def test_a_full_queue_refuses_at_once_and_accepted_requests_are_served(engine: InferenceEngine) -> None:
    gate = threading.Event()
    runtime = FakeRuntime(1.0, gate=gate)
    engine.swap(model(runtime))
    engine.start()
    accepted = [engine.submit(SAMPLE)]
    assert runtime.begun.wait(60)  # the first is under way, the queue is empty
    accepted += [engine.submit(SAMPLE) for _ in range(8)]
    with pytest.raises(TransientError) as caught:
        engine.submit(SAMPLE)
    assert caught.value.code == "inference-busy"
    gate.set()
    assert all(future.result(60) for future in accepted)
    engine.close()


def test_closing_serves_what_was_accepted_and_refuses_the_rest(engine: InferenceEngine) -> None:
    engine.swap(model(FakeRuntime(1.0)))
    waiting = [engine.submit(SAMPLE) for _ in range(4)]
    engine.start()
    engine.close()
    assert all(future.result(0).generation == 1 for future in waiting)
    with pytest.raises(TransientError) as caught:
        engine.submit(SAMPLE)
    assert caught.value.code == "inference-stopped"
    engine.close()  # twice is no harm


def test_closing_an_engine_that_never_started_answers_its_requests(engine: InferenceEngine) -> None:
    engine.swap(model(FakeRuntime(1.0)))
    waiting = engine.submit(SAMPLE)
    engine.close()
    assert code_of(waiting) == "inference-stopped"


def test_a_failing_model_is_counted_and_the_thread_lives(
    engine: InferenceEngine, meter: LatencyMeter
) -> None:
    runtime = FakeRuntime(1.0)
    engine.swap(model(runtime))
    engine.start()
    runtime.failing = True
    assert code_of(engine.submit(SAMPLE)) == "model-run"
    runtime.failing = False
    engine.submit(SAMPLE).result(60)
    engine.close()
    (window,) = meter.flush(time.time())
    assert (window.num_errors, window.latency.count) == (1, 1)


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        (np.ones((1, 3), np.float32), "input-shape"),
        (np.ones((0, 2), np.float32), "input-shape"),
        (np.ones((MAX_BATCH + 1, 2), np.float32), "input-shape"),
        (np.ones((1, 2), np.float64), "input-type"),
        (np.float32(1).reshape(()), "input-shape"),
    ],
)
def test_a_bad_input_is_the_senders_error_not_the_models(
    engine: InferenceEngine, meter: LatencyMeter, inputs: NDArray[np.float32], code: str
) -> None:
    engine.swap(model(FakeRuntime(1.0)))
    engine.start()
    assert code_of(engine.submit(inputs)) == code
    assert engine.submit(SAMPLE).result(60)
    engine.close()
    (window,) = meter.flush(time.time())
    assert (window.num_errors, window.latency.count) == (0, 1)


def test_an_input_of_another_kind_does_not_end_the_thread(engine: InferenceEngine) -> None:
    engine.swap(model(FakeRuntime(1.0)))
    engine.start()
    nonsense = cast(NDArray[np.float32], [[1.0, 2.0]])
    assert code_of(engine.submit(nonsense)) == "inference-internal"
    assert engine.submit(SAMPLE).result(60)
    engine.close()


def test_a_batch_is_metered_sample_by_sample(engine: InferenceEngine, meter: LatencyMeter) -> None:
    engine.swap(model(FakeRuntime(2.0)))
    engine.start()
    inputs = np.arange(10, dtype=np.float32).reshape(5, 2)
    result = engine.submit(inputs).result(60)
    single = engine.submit(inputs[3]).result(60)
    engine.close()
    np.testing.assert_array_equal(result.outputs, inputs * 2)
    np.testing.assert_array_equal(single.outputs, inputs[3:4] * 2)
    assert meter.flush(time.time())[0].latency.count == 6


def test_an_emulated_slowdown_really_runs_model_and_reference_that_often(meter: LatencyMeter) -> None:
    runtime, reference = FakeRuntime(1.0), FakeReference()
    engine = InferenceEngine(
        meter=meter,
        emulated_slowdown=5,
        reference=cast(ReferenceKernel, reference),
        reference_interval_s=0.0,
    )
    engine.swap(model(runtime))
    runtime.num_runs = 0
    engine.start()
    for _ in range(3):
        engine.submit(SAMPLE).result(60)
    engine.close()
    assert runtime.num_runs == 15
    assert reference.num_timed == 15
    (window,) = meter.flush(time.time())
    assert (window.latency.count, window.reference.count) == (3, 3)
    assert window.reference.max_ms == pytest.approx(1.25)


def test_the_reference_is_not_timed_more_often_than_asked(meter: LatencyMeter) -> None:
    reference = FakeReference()
    engine = InferenceEngine(
        meter=meter, reference=cast(ReferenceKernel, reference), reference_interval_s=60.0
    )
    engine.swap(model(FakeRuntime(1.0)))
    engine.start()
    for _ in range(20):
        engine.submit(SAMPLE).result(60)
    engine.close()
    assert reference.num_timed == 1


def test_a_cancelled_request_is_not_run(engine: InferenceEngine) -> None:
    runtime = FakeRuntime(1.0)
    engine.swap(model(runtime))
    runtime.num_runs = 0
    future = engine.submit(SAMPLE)
    assert future.cancel()
    engine.start()
    engine.close()
    assert runtime.num_runs == 0


# --- on the thread that brings the request -------------------------------------------------------------
