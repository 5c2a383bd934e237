"""The ranges of activations, from what a network computes on calibration samples.

Rules: every float32 tensor between the operators is watched in ONNX Runtime itself, so that what is measured
is what ships; min-max sees every value, the other estimators an even share of at most ``MAX_VALUES``; weights
are not the matter here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from cloud.compression.ranges import estimate_ranges
from cloud.compression.uniform_grid import UniformGrid
from cloud.domain.quantisation import Estimator, QuantisationSpec, Scheme
from edgeloop.errors import RejectedError

MAX_VALUES = 131_072
BATCH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationScale:
    """``x ~ scale * (q - zero_point)`` with ``q`` from 0 to 255."""

    scale: float
    zero_point: int

    @classmethod
    def of(cls, low: float, high: float, *, is_power_of_two: bool) -> ActivationScale:
        """The scale that covers ``low`` to ``high``; the next power of two above when only those may be."""
        grid = UniformGrid.unsigned(np.array([[low]], np.float64), np.array([[high]], np.float64))
        scale, zero_point = float(grid.scale[0, 0]), int(grid.zero_point[0, 0])
        if is_power_of_two:
            scale = float(np.exp2(np.ceil(np.log2(scale))))
            zero_point = int(np.clip(np.rint(-min(low, 0.0) / scale), 0, 255))
        return cls(scale=scale, zero_point=zero_point)


def calibrate(
    model: onnx.ModelProto, samples: NDArray[np.float32], spec: QuantisationSpec
) -> dict[str, ActivationScale]:
    """The scale of each float32 activation of ``model``, by name, as ``spec`` estimates it."""
    is_power_of_two = spec.scheme is Scheme.POWER_OF_TWO
    scales = {}
    for name, values in watch(model, samples).items():
        low, high = values.low, values.high
        if spec.activation_estimator is not Estimator.MIN_MAX:
            lows, highs = estimate_ranges(
                values.some[None, :],
                estimator=spec.activation_estimator,
                bits=8,
                symmetric=False,
                percentile=spec.percentile,
                unsigned=True,
            )
            low, high = float(lows[0, 0]), float(highs[0, 0])
        scales[name] = ActivationScale.of(low, high, is_power_of_two=is_power_of_two)
    return scales


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Watched:
    """``low`` and ``high`` over all values; ``some`` is an even share of them."""

    low: float
    high: float
    some: NDArray[np.float32]


def watch(model: onnx.ModelProto, samples: NDArray[np.float32]) -> dict[str, Watched]:
    """What each float32 activation held on ``samples``, the input included."""
    ranges: dict[str, tuple[float, float]] = {}
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for outputs, num_batches in _run(model, samples):
        for name, values in outputs.items():
            if not values.size:
                continue
            least, most = float(values.min()), float(values.max())
            if not np.isfinite([least, most]).all():
                raise RejectedError(
                    f"activation {name} is NaN or infinite on the calibration samples",
                    code="output-not-finite",
                )
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = min(low, least), max(high, most)
            stride = max(1, -(-values.size * num_batches // MAX_VALUES))
            parts.setdefault(name, []).append(values.reshape(-1)[::stride].copy())
    return {
        name: Watched(low=low, high=high, some=np.concatenate(parts[name]))
        for name, (low, high) in ranges.items()
    }


def activations_on(model: onnx.ModelProto, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Each float32 activation on one batch of ``inputs``, the input included."""
    ((outputs, _),) = _run(model, inputs, batch=len(inputs))
    return outputs


def is_batch_free(model: onnx.ModelProto) -> bool:
    """Whether the graph takes any number of samples at once, or one alone."""
    return bool(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value != 1)


def _run(
    model: onnx.ModelProto, samples: NDArray[np.float32], batch: int = BATCH
) -> Iterator[tuple[dict[str, NDArray[np.float32]], int]]:
    """The activations of one batch after the other, with the number of batches."""
    names, input_name = _activations(model), model.graph.input[0].name
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    outputs = {output.name for output in watched.graph.output}
    for name in names:
        if name not in outputs:
            watched.graph.output.add().name = name
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # As the graph stands: an optimised one no longer has all of these tensors.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    size = batch if is_batch_free(model) else 1
    for start in range(0, len(samples), size):
        inputs = samples[start : start + size]
        computed = session.run(names, {input_name: inputs})
        yield {input_name: inputs, **dict(zip(names, computed, strict=True))}, -(-len(samples) // size)


def _activations(model: onnx.ModelProto) -> list[str]:
    """Names of the float32 tensors that operators make."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    made = {name for node in graph.node if node.op_type != "Constant" for name in node.output}
    return [
        info.name
        for info in (*graph.value_info, *graph.output)
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and info.name in made
    ]
