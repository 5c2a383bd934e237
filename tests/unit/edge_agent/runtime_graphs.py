"""Graphs for the runtime, and the code with which it refuses one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeloop.errors import RejectedError

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)


def dense(
    *,
    batch: int | str = "n",
    num_inputs: int = 1,
    num_outputs: int = 1,
    element: int = TensorProto.FLOAT,
    features: int | str = 3,
) -> onnx.ModelProto:
    """x @ WEIGHT, twisted as a test needs it."""
    names = [f"x{n}" for n in range(num_inputs)]
    nodes = []
    total = names[0]
    for n, name in enumerate(names[1:]):
        nodes.append(helper.make_node("Add", [total, name], [f"sum{n}"]))
        total = f"sum{n}"
    weight = "w"
    if element != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [total], ["cast"], to=TensorProto.FLOAT))
        total = "cast"
    nodes.append(helper.make_node("MatMul", [total, weight], ["y0"]))
    nodes += [helper.make_node("Identity", ["y0"], [f"y{n}"]) for n in range(1, num_outputs)]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info(name, element, [batch, features]) for name in names],
        [helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, [batch, 2]) for n in range(num_outputs)],
        [numpy_helper.from_array(WEIGHT, weight)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def code_of(action: Callable[[], object]) -> str:
    with pytest.raises(RejectedError) as caught:
        action()
    return caught.value.code
