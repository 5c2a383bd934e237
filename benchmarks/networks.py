"""Networks for benchmarks, inputs for them, and how to time what runs them.

Nothing here is trained: what is measured is what a graph costs, and that is its shape's affair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE = 28


def conv_graph(channels: int, num_layers: int) -> bytes:
    """A plain convolutional network on 28x28; 24 channels and 2 layers take 100 to 200 microseconds."""
    rng = np.random.default_rng(0)
    nodes, initializers, previous, num_inputs = [], [], "x", 1
    for layer in range(num_layers):
        weights = rng.standard_normal((channels, num_inputs, 3, 3)).astype(np.float32) / 10
        initializers.append(numpy_helper.from_array(weights, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [previous, f"w{layer}"], [f"c{layer}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        previous, num_inputs = f"r{layer}", channels
    nodes.append(helper.make_node("GlobalAveragePool", [previous], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", channels])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def samples(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, 1, SIZE, SIZE)).astype(np.float32)


def bare_session(data: bytes) -> ort.InferenceSession:
    """The same settings as the agent's, without the agent."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def medians_us(actions: Sequence[Callable[[], object]], num_rounds: int, seed: int) -> list[float]:
    """Of each action, in microseconds, timed round by round in random order after a tenth of warming up."""
    rng = np.random.default_rng(seed)
    elapsed_ns = np.empty((len(actions), num_rounds), np.int64)
    for turn in range(-num_rounds // 10, num_rounds):
        for index in rng.permutation(len(actions)):
            begin = time.perf_counter_ns()
            actions[index]()
            elapsed_ns[index, max(turn, 0)] = time.perf_counter_ns() - begin
    return [float(value) / 1000 for value in np.median(elapsed_ns, axis=1)]
