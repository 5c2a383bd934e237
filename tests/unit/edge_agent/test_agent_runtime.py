"""What the runtime port loads, refuses, computes and measures."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from runtime_graphs import WEIGHT, code_of, dense

from edge_agent.runtime import (
    ReferenceKernel,
    load_onnx,
    measure,
    measure_interleaved,
    measure_latency,
    peak_rss_bytes,
    rss_bytes,
)
from edge_agent.runtime.reference import reference_graph
from edgeloop.errors import RejectedError


class TestRun:
    @pytest.mark.parametrize("batch", [1, "n"], ids=["batch-1", "free-batch"])
    @pytest.mark.parametrize("num_samples", [1, 5])
    def test_computes_the_graph_for_any_number_of_samples(self, batch: int | str, num_samples: int) -> None:
        runtime = load_onnx(dense(batch=batch).SerializeToString())
        inputs = np.random.default_rng(0).standard_normal((num_samples, 3)).astype(np.float32)
        np.testing.assert_allclose(runtime.run(inputs), inputs @ WEIGHT, rtol=1e-6)

    def test_an_output_is_never_overwritten_by_a_later_call(self) -> None:
        runtime = load_onnx(dense().SerializeToString())
        first = runtime.run(np.ones((1, 3), np.float32))
        kept = first.copy()
        runtime.run(np.zeros((1, 3), np.float32))
        np.testing.assert_array_equal(first, kept)

    def test_inputs_that_are_not_contiguous_are_read_right(self) -> None:
        runtime = load_onnx(dense().SerializeToString())
        wide = np.arange(12, dtype=np.float32).reshape(2, 6)
        np.testing.assert_allclose(runtime.run(wide[:, ::2]), wide[:, ::2] @ WEIGHT)
        np.testing.assert_allclose(runtime.run(wide[:1, ::2]), wide[:1, ::2] @ WEIGHT)

    def test_shapes_are_told(self) -> None:
        runtime = load_onnx(dense().SerializeToString())
        assert (runtime.input_shape, runtime.sample_shape, runtime.output_shape) == ((0, 3), (3,), (0, 2))
        assert load_onnx(dense(batch=1).SerializeToString()).input_shape == (1, 3)

    @pytest.mark.parametrize(
        ("inputs", "code"),
        [
            (np.ones((1, 4), np.float32), "input-shape"),
            (np.ones(3, np.float32), "input-shape"),
            (np.ones((0, 3), np.float32), "input-shape"),
            (np.float32(1).reshape(()), "input-shape"),
            (np.ones((1, 3), np.float64), "input-type"),
        ],
    )
    def test_inputs_that_do_not_fit_are_refused(self, inputs: np.ndarray, code: str) -> None:
        runtime = load_onnx(dense().SerializeToString())
        assert code_of(lambda: runtime.run(inputs)) == code

    def test_a_graph_whose_output_outgrows_its_declared_shape_fails_and_harms_nothing(self) -> None:
        # NonZero's size depends on the data: the declared [1, 2] holds only sometimes.
        nodes = [
            helper.make_node("Reshape", ["x", "shape"], ["flat"]),
            helper.make_node("NonZero", ["flat"], ["where"]),
            helper.make_node("Cast", ["where"], ["y"], to=TensorProto.FLOAT),
        ]
        graph = helper.make_graph(
            nodes,
            "grows",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
            [numpy_helper.from_array(np.array([-1], np.int64), "shape")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        runtime = load_onnx(model.SerializeToString())
        two = np.zeros((1, 64), np.float32)
        two[0, [3, 9]] = 1
        np.testing.assert_array_equal(runtime.run(two), [[3, 9]])
        assert code_of(lambda: runtime.run(np.ones((1, 64), np.float32))) == "model-run"
        np.testing.assert_array_equal(runtime.run(two), [[3, 9]])


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "code"),
        [
            (dense(num_inputs=2), "multi-input"),
            (dense(num_outputs=2), "multi-output"),
            (dense(element=TensorProto.DOUBLE), "input-type"),
            (dense(batch=4), "fixed-batch"),
            (dense(features="f"), "dynamic-shape"),
        ],
        ids=["two-inputs", "two-outputs", "float64", "batch-4", "free-features"],
    )
    def test_models_that_cannot_be_served_are_named(self, model: onnx.ModelProto, code: str) -> None:
        assert code_of(lambda: load_onnx(model.SerializeToString())) == code

    @pytest.mark.parametrize(
        "data", [b"", b"\0" * 64, b"not a model", b"ORTM" * 40, b"\x3a\xff\xff\xff\xff\x0f"]
    )
    def test_bytes_that_are_no_model_are_refused(self, data: bytes) -> None:
        assert code_of(lambda: load_onnx(data)) == "model-load"

    def test_an_unknown_operator_is_refused_at_load(self) -> None:
        model = dense()
        model.graph.node[0].op_type = "NoSuchOperator"
        assert code_of(lambda: load_onnx(model.SerializeToString())) == "model-load"

    def test_every_truncation_is_refused(self) -> None:
        data = dense().SerializeToString()
        for size in range(len(data)):
            with pytest.raises(RejectedError):
                load_onnx(data[:size])

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_altered_bytes_load_or_are_rejected_and_raise_nothing_else(self, data: st.DataObject) -> None:
        raw = bytearray(dense().SerializeToString())
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        with contextlib.suppress(RejectedError):
            load_onnx(bytes(raw))


class _Clock:
    """Stands for the module ``time``; passes only where a fake works."""

    now_ns = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns


class _Fake:
    """A runtime that takes so many milliseconds in turn, by a clock of the test's."""

    def __init__(
        self, log: list[str], name: str, clock: _Clock | None = None, takes_ms: Sequence[int] = (0,)
    ) -> None:
        self.log, self.name = log, name
        self.clock, self.takes_ms = clock or _Clock(), itertools.cycle(takes_ms)
        self.input_shape, self.sample_shape, self.output_shape = (1, 3), (3,), (1, 2)

    def run(self, inputs: np.ndarray) -> np.ndarray:
        self.log.append(self.name)
        self.clock.now_ns += next(self.takes_ms) * 1_000_000
        return inputs


class TestMeasure:
    def test_each_round_runs_each_once_in_varying_order(self) -> None:
        log: list[str] = []
        fakes = [_Fake(log, name) for name in "abc"]
        stats = measure_interleaved(fakes, np.ones((1, 3), np.float32), num_warmup=0, num_rounds=40)
        rounds = [tuple(log[n : n + 3]) for n in range(0, len(log), 3)]
        assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
        assert len(set(rounds)) == 6
        assert [one.num_runs for one in stats] == [40] * 3

    def test_each_is_charged_with_its_own_time_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = _Clock()
        slow, fast = _Fake([], "", clock, [70]), _Fake([], "", clock, [2, 2, 2, 9])
        monkeypatch.setattr(measure, "time", clock)
        sample = np.ones((1, 3), np.float32)
        slowly, quickly = measure_interleaved([slow, fast], sample, num_warmup=4, num_rounds=40)
        assert (slowly.p50_ms, slowly.p95_ms) == (70, 70)
        assert (quickly.p50_ms, quickly.p95_ms) == (2, 9)

    def test_a_real_graph_takes_time(self) -> None:
        small = load_onnx(dense().SerializeToString())
        found = measure_latency(small, np.ones((1, 3), np.float32), num_runs=30)
        assert found.num_runs == 30
        assert found.p95_ms >= found.p50_ms > 0

    def test_memory_is_read(self) -> None:
        held = rss_bytes()
        # The kernel counts the pages of each processor apart, and adds them up from time to time.
        assert 1 << 20 < held < peak_rss_bytes() + (4 << 20) < 1 << 36

    def test_peak_memory_of_a_child_is_its_own(self) -> None:
        ballast = np.ones(30_000_000)  # 240 MB that a child must not be charged with
        script = "from edge_agent.runtime.measure import peak_rss_bytes; print(peak_rss_bytes())"
        child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert int(child.stdout) < ballast.nbytes


class TestReference:
    def test_it_is_the_same_work_as_when_version_1_was_set(self) -> None:
        # A change here means a new REFERENCE_VERSION.
        onnx.checker.check_model(reference_graph(), full_check=True)
        model = onnx.ModelProto.FromString(reference_graph())
        assert [node.op_type for node in model.graph.node] == ["Conv", "Relu"] * 6
        outputs = ReferenceKernel().outputs
        assert outputs.shape == (1, 16, 24, 24)
        assert float(outputs.mean()) == pytest.approx(EXPECTED_MEAN, rel=1e-4)

    def test_it_is_timed_and_takes_one_core(self) -> None:
        # In a process of its own, which has no other threads than it needs.
        script = (
            "import os; from edge_agent.runtime import ReferenceKernel; "
            "threads = lambda: set(os.listdir('/proc/self/task')); before = threads(); "
            "kernel = ReferenceKernel(); elapsed_ms = [kernel.time_once() for _ in range(50)]; "
            "print(min(elapsed_ms) > 0, len(threads() - before))"
        )
        child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert child.stdout.split() == ["True", "0"]


EXPECTED_MEAN = 0.108365685


def test_the_package_imports_nothing_else_of_the_agent_and_no_onnx_package() -> None:
    script = (
        "import sys; import edge_agent.runtime; "
        "print(sorted(m for m in sys.modules if m.startswith('edge_agent.') "
        "and not m.startswith('edge_agent.runtime') or m in ('onnx', 'torch', 'ray', 'cloud', 'grpc')))"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"
