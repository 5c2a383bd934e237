"""Requests that share a run: each gets its own answer, in time, and nobody pays for a neighbour's fault."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.batching import BatchSettings, prove_batches, render_batches
from edge_agent.inference import InferenceEngine, InferenceResult, ServedModel
from edge_agent.meter import LatencyMeter
from edge_agent.runtime import load_onnx
from edgeloop.errors import EdgeloopError, RejectedError

NUM_INPUTS = 2


class GatedRuntime:
    """Doubles; the first run on the inference thread waits, so that others gather behind it."""

    input_name, output_name = "x", "y"
    input_shape, sample_shape, output_shape = (0, NUM_INPUTS), (NUM_INPUTS,), (0, NUM_INPUTS)

    def __init__(self) -> None:
        self.gate, self.begun = threading.Event(), threading.Event()
        self.sizes: list[int] = []
        self.poison: float | None = None
        self.failure: Exception = RejectedError("kernel failed", code="model-run")

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        if threading.current_thread().name == "inference":
            self.sizes.append(len(inputs))
            self.begun.set()
            assert self.gate.wait(60)
        if self.poison is not None and (inputs == self.poison).any():
            raise self.failure
        return inputs * np.float32(2)


def sample(value: float, count: int = 1) -> NDArray[np.float32]:
    return np.full((count, NUM_INPUTS), value, np.float32)


class Batching:
    """An engine that batches, held at its first request."""

    def __init__(self, max_batch_size: int, *, max_queue_delay_us: int = 0, proven: bool = True) -> None:
        self.meter, self.runtime = LatencyMeter(window_s=1e6), GatedRuntime()
        self.engine = InferenceEngine(
            meter=self.meter,
            batching=BatchSettings(max_batch_size=max_batch_size, max_queue_delay_us=max_queue_delay_us),
        )
        self.engine.swap(
            ServedModel(
                runtime=self.runtime,
                digest="a" * 64,
                generation=1,
                workload="digits",
                max_batch_size=max_batch_size if proven else 1,
            )
        )
        self.engine.start()

    def hold(self) -> Future[InferenceResult]:
        first = self.engine.submit(sample(100))
        assert self.runtime.begun.wait(60)
        return first

    def close(self) -> None:
        self.runtime.gate.set()
        self.engine.close()


@pytest.fixture
def four() -> Iterator[Batching]:
    held = Batching(4)
    yield held
    held.close()


def test_what_waits_shares_runs_and_each_caller_gets_its_own_answer(four: Batching) -> None:
    first = four.hold()
    waiting = [four.engine.submit(sample(n)) for n in range(9)]
    four.runtime.gate.set()
    for n, future in enumerate(waiting):
        np.testing.assert_array_equal(future.result(60).outputs, sample(2 * n))
    np.testing.assert_array_equal(first.result(60).outputs, sample(200))
    assert four.runtime.sizes == [1, 4, 4, 1]


def test_requests_of_several_samples_join_whole_and_in_order(four: Batching) -> None:
    four.hold()
    waiting = [four.engine.submit(sample(n, count)) for n, count in enumerate((2, 1, 3, 1, 5))]
    flat = four.engine.submit(sample(9)[0])
    four.runtime.gate.set()
    for n, (future, count) in enumerate(zip(waiting, (2, 1, 3, 1, 5), strict=True)):
        np.testing.assert_array_equal(future.result(60).outputs, sample(2 * n, count))
    np.testing.assert_array_equal(flat.result(60).outputs, sample(18))
    # What is larger than any batch runs sample by sample, as it does without batching.
    assert four.runtime.sizes == [1, 3, 4, 1, 1, 1, 1, 1, 1]


def test_every_sample_is_metered_with_the_whole_run_that_it_waited_for(four: Batching) -> None:
    first = four.hold()
    waiting = [four.engine.submit(sample(n)) for n in range(4)]
    four.runtime.gate.set()
    alone = first.result(60).service_ms
    (together,) = {future.result(60).service_ms for future in waiting}
    four.close()
    (window,) = four.meter.flush(time.time())
    assert window.latency.count == 5
    assert window.latency.sum_ms == pytest.approx(alone + 4 * together)
    assert window.latency.min_ms == pytest.approx(min(alone, together))
    assert window.latency.max_ms == pytest.approx(max(alone, together))


def test_a_bad_input_fails_alone(four: Batching) -> None:
    four.hold()
    good = [four.engine.submit(sample(1))]
    bad = [
        four.engine.submit(np.ones((1, 3), np.float32)),
        four.engine.submit(np.ones((1, 2), np.float64)),  # type: ignore[arg-type]
        four.engine.submit(cast(NDArray[np.float32], [[1.0, 2.0]])),
    ]
    good.append(four.engine.submit(sample(2)))
    four.runtime.gate.set()
    codes = [cast(EdgeloopError, future.exception(60)).code for future in bad]
    assert codes == ["input-shape", "input-type", "inference-internal"]
    assert [future.result(60).outputs[0, 0] for future in good] == [2, 4]


def test_when_a_batch_fails_only_the_request_that_makes_it_fail_is_refused_and_counted(
    four: Batching,
) -> None:
    four.runtime.poison = 13
    four.hold()
    waiting = [four.engine.submit(sample(n)) for n in (1, 13, 3)]
    four.runtime.gate.set()
    assert cast(EdgeloopError, waiting[1].exception(60)).code == "model-run"
    assert [waiting[n].result(60).outputs[0, 0] for n in (0, 2)] == [2, 6]
    four.close()
    (window,) = four.meter.flush(time.time())
    assert (window.num_errors, window.latency.count) == (1, 3)


def test_an_unforeseen_failure_of_a_shared_run_ends_neither_the_thread_nor_the_others(
    four: Batching,
) -> None:
    four.runtime.poison, four.runtime.failure = 13, MemoryError()
    four.hold()
    waiting = [four.engine.submit(sample(n)) for n in (1, 13, 3)]
    four.runtime.gate.set()
    assert cast(EdgeloopError, waiting[1].exception(60)).code == "inference-internal"
    assert [waiting[n].result(60).outputs[0, 0] for n in (0, 2)] == [2, 6]
    assert four.engine.submit(sample(4)).result(60).outputs[0, 0] == 8


def test_who_gave_up_while_waiting_takes_no_place_in_a_run(four: Batching) -> None:
    four.hold()
    waiting = [four.engine.submit(sample(n)) for n in range(4)]
    assert waiting[1].cancel()
    four.runtime.gate.set()
    waiting[3].result(60)
    assert four.runtime.sizes == [1, 3]


def test_a_model_that_is_not_proven_is_served_one_by_one() -> None:
    unproven = Batching(4, proven=False)
    unproven.hold()
    waiting = [unproven.engine.submit(sample(n)) for n in range(3)]
    unproven.runtime.gate.set()
    for future in waiting:
        future.result(60)
    unproven.close()
    assert unproven.runtime.sizes == [1, 1, 1, 1]
    assert "edgeloop_serving_max_batch_size 1" in render_batches({"": unproven.engine})


def test_a_first_request_waits_for_others_no_longer_than_it_is_told() -> None:
    # A minute is more than any batch waits here: the second one ends the wait by filling the batch.
    held = Batching(2, max_queue_delay_us=60_000_000)
    held.runtime.gate.set()
    first = held.engine.submit(sample(1))
    time.sleep(0.05)
    assert not first.done()
    second = held.engine.submit(sample(2))
    assert [future.result(60).outputs[0, 0] for future in (first, second)] == [2, 4]
    # And one whose caller waits for a fifth of a second only is answered before that.
    hurried = held.engine.submit(sample(3), deadline_s=time.monotonic() + 0.2)
    assert hurried.result(60).outputs[0, 0] == 6
    held.close()
    assert held.runtime.sizes == [2, 1]


def test_closing_serves_a_request_that_was_held_for_others() -> None:
    held = Batching(2, max_queue_delay_us=60_000_000)
    held.runtime.gate.set()
    waiting = held.engine.submit(sample(1))
    held.close()
    assert waiting.result(0).outputs[0, 0] == 2


def test_a_swap_to_a_model_that_is_not_batched_answers_what_was_gathered(four: Batching) -> None:
    four.hold()
    waiting = [four.engine.submit(sample(n)) for n in range(3)]
    single = GatedRuntime()
    single.gate.set()
    four.engine.swap(ServedModel(runtime=single, digest="b" * 64, generation=2, workload="digits"))
    four.runtime.gate.set()
    assert {future.result(60).generation for future in waiting} == {2}
    assert single.sizes == [1, 1, 1]


def test_sizes_are_shown_as_a_histogram_and_only_where_batching_is_on(four: Batching) -> None:
    four.hold()
    waiting = [four.engine.submit(sample(n)) for n in range(3)]
    four.runtime.gate.set()
    for future in waiting:
        future.result(60)
    four.close()
    lines = render_batches({"": four.engine})
    for line in (
        'edgeloop_serving_batch_size_bucket{le="1"} 1',
        'edgeloop_serving_batch_size_bucket{le="4"} 2',
        'edgeloop_serving_batch_size_bucket{le="+Inf"} 2',
        "edgeloop_serving_batch_size_sum 4",
        "edgeloop_serving_batch_size_count 2",
        "edgeloop_serving_max_batch_size 4",
    ):
        assert line in lines
    assert 'edgeloop_serving_batch_size_count{workload="digits"} 2' in render_batches({"digits": four.engine})
    assert render_batches({"": InferenceEngine(meter=LatencyMeter(window_s=1))}) == []


# --- the proof --------------------------------------------------------------------------------------------


def graph(operator: str, *, batch: str | int = "n") -> bytes:
    """ "dense" answers each sample alone; "mixed" takes the mean over the batch away; "halved" drops rows."""
    weights = np.random.default_rng(0).normal(size=(NUM_INPUTS, 3)).astype(np.float32)
    axes, half = np.array([0], np.int64), np.array([1], np.int64)
    nodes = {
        "dense": [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "mixed": [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("ReduceMean", ["h"], ["mean"], axes=[0]),
            helper.make_node("Sub", ["h", "mean"], ["y"]),
        ],
        "halved": [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Slice", ["h", "zero", "one", "axes"], ["y"]),
        ],
    }[operator]
    initializers = [numpy_helper.from_array(weights, "w")]
    if operator == "halved":
        initializers += [
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
            numpy_helper.from_array(half, "one"),
            numpy_helper.from_array(axes, "axes"),
        ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, NUM_INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch if batch == 1 else "m", 3])],
        initializers,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("operator", "batch", "code"),
    [
        ("dense", "n", ""),
        ("dense", 1, "batch-fixed"),
        ("mixed", "n", "batch-differs"),
        ("halved", "n", "batch-differs"),
    ],
)
@pytest.mark.parametrize("num_golden", [1, 5])
def test_only_a_graph_that_answers_each_sample_as_if_alone_is_batched(
    operator: str, batch: str | int, code: str, num_golden: int
) -> None:
    runtime = load_onnx(graph(operator, batch=batch))
    inputs = np.random.default_rng(1).normal(size=(num_golden, NUM_INPUTS)).astype(np.float32)
    found = ""
    try:
        prove_batches(runtime, inputs, max_batch_size=8, absolute_tolerance=1e-4)
    except RejectedError as error:
        found = error.code
    assert found == code
