"""What a network would measure on a profile, from the shapes of its layers and a few probes of that profile.

Time is modelled as a sum over layers: a part for each call, for multiply-accumulates, for values written and
for weights read, with channel counts rounded up to what the processor works on at once. Coefficients are
fitted to the probes, none below zero, each probe counting by its relative error.

Rules: a model is fitted on probes of one profile and holds for it alone (another thread count or runtime is
another profile); multiply-accumulates alone are never asked; how far to round up is decided by leaving each
probe out once; the same probes give the same model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

#: Channels that a kernel handles at once: plain, 256-bit and 512-bit registers of float32.
BLOCKS = (1, 8, 16)
_NUM_SWEEPS = 400
#: Keeps coefficients that the probes do not tell apart from running off; relative to a feature's own size.
_RIDGE = 1e-4


class LayerKind(StrEnum):
    CONVOLUTION = "convolution"  # linear layers too: one position
    DEPTHWISE = "depthwise"
    OTHER = "other"  # additions, activations that did not fuse, pooling


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape:
    """One operation of an exported graph, at batch 1. ``positions`` is how many outputs a channel has."""

    kind: LayerKind
    in_channels: int
    out_channels: int
    kernel_size: int = 1
    positions: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A graph that was measured on the profile."""

    layers: tuple[LayerShape, ...]
    latency_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyModel:
    """``error_ratio`` is the mean relative error on probes that were left out of the fit."""

    block: int
    coefficients: tuple[float, ...]
    error_ratio: float

    def predict(self, layers: Sequence[LayerShape]) -> float:
        """Milliseconds."""
        values = _features(layers, self.block)
        return sum(c * value for c, value in zip(self.coefficients, values, strict=True))


def fit_latency(probes: Sequence[Probe]) -> LatencyModel:
    """The model of these probes' profile. Raises ``ValueError`` when there are fewer than three."""
    if len(probes) < 3:
        raise ValueError(f"{len(probes)} probes say too little of a profile: measure at least 3 widths")
    if any(not probe.latency_ms > 0 or not math.isfinite(probe.latency_ms) for probe in probes):
        raise ValueError("a probe's latency must be a positive number of milliseconds")

    def left_out(block: int) -> float:
        errors = []
        for i, probe in enumerate(probes):
            rest = [*probes[:i], *probes[i + 1 :]]
            model = LatencyModel(block=block, coefficients=_fit(rest, block), error_ratio=0.0)
            errors.append(abs(model.predict(probe.layers) / probe.latency_ms - 1.0))
        return sum(errors) / len(errors)

    error, block = min((left_out(block), block) for block in BLOCKS)
    return LatencyModel(block=block, coefficients=_fit(probes, block), error_ratio=error)


def _features(layers: Sequence[LayerShape], block: int) -> tuple[float, ...]:
    """Constant, calls, other calls, multiply-accumulates, depthwise ones, values written, weights."""
    macs = depthwise = values = weights = 0.0
    num_calls = num_others = 0
    for layer in layers:
        outputs = _up(layer.out_channels, block)
        values += outputs * layer.positions
        if layer.kind is LayerKind.OTHER:
            num_others += 1
            continue
        num_calls += 1
        if layer.kind is LayerKind.DEPTHWISE:
            depthwise += outputs * layer.kernel_size * layer.positions
            continue
        # The few channels of an input image are not rounded up: kernels treat them apart.
        inputs = layer.in_channels if layer.in_channels < block else _up(layer.in_channels, block)
        macs += inputs * outputs * layer.kernel_size * layer.positions
        weights += inputs * outputs * layer.kernel_size
    return (1.0, num_calls, num_others, macs, depthwise, values, weights)


def _up(count: int, block: int) -> int:
    return -(-count // block) * block


def _fit(probes: Sequence[Probe], block: int) -> tuple[float, ...]:
    """Least squares of relative errors, coefficients at least zero, by coordinate descent."""
    rows = [_features(probe.layers, block) for probe in probes]
    width = len(rows[0])
    sizes = [max(row[j] for row in rows) or 1.0 for j in range(width)]
    scaled = [
        [value / sizes[j] / probe.latency_ms for j, value in enumerate(row)]
        for row, probe in zip(rows, probes, strict=True)
    ]
    typical = math.exp(sum(math.log(probe.latency_ms) for probe in probes) / len(probes))
    norms = [sum(row[j] ** 2 for row in scaled) + _RIDGE / typical**2 for j in range(width)]
    found = [0.0] * width
    left = [1.0] * len(scaled)
    for _ in range(_NUM_SWEEPS):
        for j in range(width):
            gain = sum(row[j] * rest for row, rest in zip(scaled, left, strict=True))
            gain -= _RIDGE / typical**2 * found[j]
            after = max(0.0, found[j] + gain / norms[j])
            if after != found[j]:
                step = after - found[j]
                left = [rest - step * row[j] for rest, row in zip(left, scaled, strict=True)]
                found[j] = after
    return tuple(value / size for value, size in zip(found, sizes, strict=True))
