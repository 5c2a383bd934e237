"""From an fp32 ONNX file to an int8 one: QDQ, per-channel weights, unsigned 8-bit activations.

Rules: calibration samples come from the training split; weights keep to 7 bits when the profile's
instruction set would saturate on 8 (``DeviceProfile.needs_reduced_range``); input and output stay float32, so
that int8 and fp32 artifacts serve behind the same interface. A weight or bias that two layers share becomes
one of each layer's own: a bias is rounded to the scales of its layer, and could not be fused into another.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from edgeloop.errors import RejectedError

CALIBRATION_BATCH = 32
SHARING_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

#: Scale and zero point of tensors by name, in the form that ONNX Runtime's quantiser takes.
Overrides = Mapping[str, list[dict[str, Any]]]


def quantise(
    data: bytes,
    samples: NDArray[np.float32],
    *,
    reduced_range: bool,
    overrides: Overrides | None = None,
) -> bytes:
    """The int8 form of ``data``, calibrated on ``samples``. Raises ``RejectedError`` when it has none.

    ``overrides`` are scales and zero points found elsewhere: they are taken as they are.
    """
    model = unshare(data)
    with tempfile.TemporaryDirectory(prefix="edgeloop-quantise-") as folder, _quiet():
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model.SerializeToString(deterministic=True))
        try:
            quantize_static(
                source,
                target,
                _Samples(model, samples),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduced_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"TensorQuantOverrides": dict(overrides or {})},
            )
        except Exception as error:
            raise RejectedError(f"the network does not quantise to int8: {error}", code="quantise") from error
        return target.read_bytes()


def unshare(data: bytes) -> onnx.ModelProto:
    """The graph, with a copy of each initializer for each layer that uses it."""
    model = onnx.load_from_string(data)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    seen: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in SHARING_LAYERS:
            continue
        for place, name in enumerate(node.input):
            if name in initializers and name in seen:
                copied = model.graph.initializer.add()
                copied.CopyFrom(initializers[name])
                copied.name = f"{name}_for_{node.output[0]}"
                node.input[place] = copied.name
            seen.add(name)
    return model


def count_weights(data: bytes) -> int:
    """Elements of all weight matrices of an ONNX file, whatever their type: how wide the network is."""
    graph = onnx.load_from_string(data).graph
    return sum(int(np.prod(tensor.dims)) for tensor in graph.initializer if len(tensor.dims) > 1)


class _Samples(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime publishes no types
    def __init__(self, model: onnx.ModelProto, samples: NDArray[np.float32]) -> None:
        graph_input = model.graph.input[0]
        has_free_batch = graph_input.type.tensor_type.shape.dim[0].dim_value != 1
        size = CALIBRATION_BATCH if has_free_batch else 1
        self._name = graph_input.name
        self._batches = iter([samples[start : start + size] for start in range(0, len(samples), size)])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises, on the root logger, a preparation that folded graphs do not need.

    It also remarks on every vector that has no second axis to quantise along.
    """

    def keep(record: logging.LogRecord) -> bool:
        return not any(known in record.getMessage() for known in ("pre-processing", "is out-of-range for"))

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
