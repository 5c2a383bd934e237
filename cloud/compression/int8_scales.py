"""The int8 form of a network whose weights were rounded already: on its own scales, not on new ones.

Rules: each rounded weight is found again in the exported graph by its very values, whatever the exporter
called it, and its int8 form holds the same values (levels that are not evenly spaced: to half an int8 step);
weights below 8 bits lie one in an int8 byte, few distinct values that compress on the wire; a weight that the
exporter changed is an error, since its accuracy would be another than the one that was trained for.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from cloud.compression.calibrate import ActivationScale, calibrate
from cloud.compression.fake_quantise import QuantisedNetwork
from cloud.compression.quantise import Overrides, quantise, unshare
from cloud.compression.quantised_tensor import QuantisedTensor
from cloud.domain.quantisation import Scheme
from edgeloop.errors import RejectedError

#: Largest int8 weight that 16-bit intermediates take twice beside 255; a power of two, so that logarithmic
#: levels are exact.
REDUCED_LARGEST = 64
FULL_LARGEST = 127


def quantise_network_int8(
    data: bytes,
    samples: NDArray[np.float32],
    network: QuantisedNetwork,
    *,
    reduced_range: bool,
    activations: Mapping[str, ActivationScale] | None = None,
) -> bytes:
    """The int8 form of ``data``, which is the export of ``network.model``.

    ``activations`` are scales that were learnt; those of all other activations are estimated on ``samples``.
    """
    model, spec = unshare(data), network.spec
    largest = REDUCED_LARGEST if reduced_range or spec.scheme is Scheme.LOGARITHMIC else FULL_LARGEST
    scales = {**calibrate(model, samples, spec), **(activations or {})}
    overrides = {
        **activation_overrides(scales),
        **weight_overrides(model, network.tensors, largest=largest),
    }
    return quantise(data, samples, reduced_range=reduced_range, overrides=overrides)


def activation_overrides(scales: Mapping[str, ActivationScale]) -> Overrides:
    """Scales of activations as the quantiser takes them."""
    return {
        name: [
            {
                "scale": np.array(each.scale, np.float32),
                "zero_point": np.array(each.zero_point, np.uint8),
            }
        ]
        for name, each in scales.items()
    }


def weight_overrides(
    model: onnx.ModelProto, tensors: Mapping[str, QuantisedTensor], *, largest: int
) -> Overrides:
    """Scales of the rounded weights as the quantiser takes them. Raises ``RejectedError`` for a lost one."""
    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    known = {_key(tensor.dequantise()): name for name, tensor in tensors.items()}
    overrides: dict[str, list[dict[str, object]]] = {}
    found = set()
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in initializers:
            continue
        weight = initializers[node.input[1]]
        for axis, shaped in ((0, weight), (1, weight.T)) if weight.ndim == 2 else ((0, weight),):
            name = known.get(_key(shaped))
            if name is not None:
                found.add(_key(shaped))
                overrides[node.input[1]] = _override(tensors[name], axis, largest)
                break
    lost = [name for key, name in known.items() if key not in found]
    if lost:
        raise RejectedError(
            f"the exported graph does not hold the rounded weight {lost[0]} as it was trained: a layer "
            "between was folded into it; quantise that network in fp32 alone",
            code="quantise-export",
        )
    return overrides


def _override(tensor: QuantisedTensor, axis: int, largest: int) -> list[dict[str, object]]:
    scales, zero_point = tensor.int8_grid(largest)
    entries: list[dict[str, object]] = [
        {"scale": np.array(scale, np.float32), "zero_point": np.array(zero_point, np.int8)}
        for scale in scales
    ]
    if len(entries) > 1:
        entries[0]["axis"] = axis
    return entries


def _key(weight: NDArray[np.float32]) -> tuple[tuple[int, ...], bytes]:
    # Adding zero makes -0.0 and 0.0 the same.
    return weight.shape, (np.ascontiguousarray(weight) + np.float32(0)).tobytes()
