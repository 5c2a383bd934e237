"""A fixed piece of work whose time says how fast this machine is *now*.

A model that became slow beside an unchanged reference is too big; a model that became slow together with
the reference runs on a throttled or busy machine. For that the work must be the same for every model,
device and release (``REFERENCE_VERSION`` grows when it changes, and times of two versions do not compare),
and must slow down as models do.

So it is itself a small model: six 3x3 convolutions, 16 channels on 24x24, float32, about 0.2 ms on an x86
server core, through the same runtime and with the same settings as the models. A numpy product would be
simpler, but BLAS decides by itself to use more threads, by rules that differ between its builds. The graph
is written byte by byte, because gateways have no ``onnx`` package, and its weights come from integer
arithmetic, the same everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from edge_agent.runtime.onnx import Array, load_onnx

REFERENCE_VERSION: Final = 1

_CHANNELS: Final = 16
_SIZE: Final = 24
_LAYERS: Final = 6
_IR_VERSION: Final = 8
_OPSET: Final = 13
_FLOAT: Final = 1
_INTS_ATTRIBUTE: Final = 7


class ReferenceKernel:
    """The work, ready to run. Costs a few MB; make one and keep it."""

    def __init__(self) -> None:
        self._runtime = load_onnx(reference_graph())
        shape = self._runtime.input_shape
        self._sample = _values(int(np.prod(shape)), seed=0).reshape(shape)
        self.outputs: Array = self._runtime.run(self._sample)

    def time_once(self) -> float:
        """Milliseconds that the work took, once."""
        begin = time.perf_counter_ns()
        self._runtime.run(self._sample)
        return (time.perf_counter_ns() - begin) / 1e6


def reference_graph() -> bytes:
    """The work as an ONNX model."""
    shape = (1, _CHANNELS, _SIZE, _SIZE)
    parts = []
    for layer in range(_LAYERS):
        inputs = (f"x{layer}".encode(), f"w{layer}".encode())
        pads = _text(1, b"pads") + b"".join(_number(8, 1) for _ in range(4)) + _number(20, _INTS_ATTRIBUTE)
        parts += [
            _text(1, _node(b"Conv", inputs, f"c{layer}".encode()) + _text(5, pads)),
            _text(1, _node(b"Relu", (f"c{layer}".encode(),), f"x{layer + 1}".encode())),
        ]
    parts.append(_text(2, b"reference"))
    weight_shape = (_CHANNELS, _CHANNELS, 3, 3)
    for layer in range(_LAYERS):
        # Scaled so that the values neither die out nor grow from layer to layer.
        weights = _values(int(np.prod(weight_shape)), seed=layer + 1) * np.float32(0.41)
        dimensions = b"".join(_number(1, size) for size in weight_shape)
        tensor = dimensions + _number(2, _FLOAT) + _text(8, f"w{layer}".encode())
        parts.append(_text(5, tensor + _text(9, weights.astype("<f4").tobytes())))
    parts += [_text(11, _value_info(b"x0", shape)), _text(12, _value_info(f"x{_LAYERS}".encode(), shape))]
    opset = _text(1, b"") + _number(2, _OPSET)
    return _number(1, _IR_VERSION) + _text(8, opset) + _text(7, b"".join(parts))


def _values(count: int, *, seed: int) -> Array:
    """Fixed numbers in -0.5..0.5 that look random: the finishing steps of MurmurHash3 over the index."""
    mask = np.uint64(0xFFFFFFFF)
    bits = (np.arange(count, dtype=np.uint64) + np.uint64(seed * 1_000_003 + 1)) & mask
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        bits = ((bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)) & mask
    return (bits.astype(np.float64) / 2.0**32 - 0.5).astype(np.float32)


def _node(operator: bytes, inputs: Sequence[bytes], output: bytes) -> bytes:
    return b"".join(_text(1, name) for name in inputs) + _text(2, output) + _text(4, operator)


def _value_info(name: bytes, shape: Sequence[int]) -> bytes:
    dimensions = b"".join(_text(1, _number(1, size)) for size in shape)
    return _text(1, name) + _text(2, _text(1, _number(1, _FLOAT) + _text(2, dimensions)))


# The two protobuf wire types that the graph needs.


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
