"""ONNX files over the wire: exact, and smaller by what each method of compression saved."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cloud.compression import evaluate
from cloud.compression.pack import executable_of, pack_onnx, ship

Array = NDArray[np.float32]


def chain(*weights: Array) -> bytes:
    """Matrices one after the other; a Constant node holds the first."""
    nodes, initialisers, name = [], [], "input"
    for n, weight in enumerate(weights):
        tensor = numpy_helper.from_array(weight, f"w{n}")
        if n == 0:
            nodes.append(helper.make_node("Constant", [], ["w0"], value=tensor))
        else:
            initialisers.append(tensor)
        output = "logits" if n == len(weights) - 1 else f"hidden{n}"
        nodes.append(helper.make_node("MatMul", [name, f"w{n}"], [output]))
        name = output
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", len(weights[0])])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", weights[-1].shape[1]])],
        initialisers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def gaussian(rows: int, columns: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=5), st.integers(0, 99), st.sampled_from([0.0, 0.5, 1.0])
)
@settings(deadline=None, max_examples=60)
def test_any_graph_comes_back_to_the_last_bit(sizes: list[int], seed: int, zeros: float) -> None:
    weights = [gaussian(a, b, seed) for a, b in pairwise(sizes)]
    rng = np.random.default_rng(seed)
    data = chain(*(weight * (rng.random(weight.shape) >= zeros) for weight in weights))
    assert executable_of(pack_onnx(data)) == data


def test_tensors_alike_and_all_zero_come_back() -> None:
    same = gaussian(16, 16)
    data = chain(np.zeros((16, 16), np.float32), same, same, np.zeros((16, 16), np.float32), same)
    assert executable_of(pack_onnx(data)) == data


def test_three_quarters_of_zeros_take_less_than_a_third_of_the_wire() -> None:
    weight = gaussian(200, 200)
    sparse = np.where(np.abs(weight) < np.quantile(np.abs(weight), 0.75), 0, weight).astype(np.float32)
    assert len(pack_onnx(chain(sparse))) < 0.30 * len(chain(sparse))
    assert len(pack_onnx(chain(weight))) > 0.80 * len(chain(weight))


@pytest.mark.parametrize("axis", [0, 1], ids=["channels-in-rows", "channels-in-columns"])
def test_a_codebook_for_each_channel_takes_its_indices_and_tables(axis: int) -> None:
    rng = np.random.default_rng(0)
    tables = gaussian(64, 16)
    index = rng.integers(0, 16, (64, 400))
    weight = np.take_along_axis(tables, index, axis=1)
    data = chain(np.ascontiguousarray(weight if axis == 0 else weight.T))
    packed = pack_onnx(data)
    # Four bits an index and a table of 64 bytes for each of the 64 channels; names and structure besides.
    assert len(packed) < 64 * 400 // 2 + 64 * 64 + 400
    assert executable_of(packed) == data


def test_what_would_hardly_shrink_ships_as_it_is() -> None:
    noise = np.frombuffer(np.random.default_rng(0).bytes(40_000), np.float32).reshape(100, 100)
    data = chain(np.nan_to_num(noise))
    shipped = ship(data)
    assert (shipped.data, shipped.artifact_format, shipped.executable) == (data, "onnx", b"")


def test_evaluation_scores_a_packed_artifact_as_its_graph() -> None:
    data = chain(gaussian(30, 30), gaussian(30, 5, 1))
    inputs = gaussian(100, 30, 2)
    wanted = evaluate.predict(evaluate.load(data), inputs)
    assert np.array_equal(evaluate.predict(evaluate.load(pack_onnx(data)), inputs), wanted)
    assert evaluate.measure_peak_rss(pack_onnx(data)) > 20e6


def test_a_tensor_that_is_not_stored_as_raw_bytes_stays_among_the_rest() -> None:
    model = onnx.load_from_string(chain(gaussian(20, 20), gaussian(20, 20, 1)))
    values = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(
        helper.make_tensor("w1", TensorProto.FLOAT, values.shape, values.reshape(-1).tolist())
    )
    data = model.SerializeToString()
    assert executable_of(pack_onnx(data)) == data
