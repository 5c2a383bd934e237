"""Evenly spaced levels: ``x ~ scale * (q - zero_point)``, ``q = clip(round(x / scale) + zero_point)``.

Rules: values come as rows that share one scale each; rounding is half to even and arithmetic is float32, as
in ONNX Runtime's QuantizeLinear and DequantizeLinear, so that what is computed here is what a device
computes; zero is always a level, so that padding and pruned weights stay exact.

Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference (2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int16]

#: Below this a scale stands for a row of zeros: dividing by it would only make noise and infinities.
_SMALLEST_SCALE = 1e-30


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UniformGrid:
    """``scale`` and ``zero_point`` are ``[rows, 1]``; ``q`` runs from ``lowest`` to ``highest``."""

    scale: Floats
    zero_point: Codes
    lowest: int
    highest: int

    @classmethod
    def signed(
        cls, low: NDArray[np.float64], high: NDArray[np.float64], *, bits: int, symmetric: bool
    ) -> UniformGrid:
        """The grid of weights for ranges ``[rows, 1]``.

        Symmetric: ``q`` from ``-(2^(bits-1) - 1)``, zero point 0. Otherwise all ``2^bits`` values are used.
        """
        highest = 2 ** (bits - 1) - 1
        if symmetric:
            scale = _usable(np.maximum(np.abs(low), np.abs(high)) / highest)
            return cls(
                scale=scale, zero_point=np.zeros(scale.shape, np.int16), lowest=-highest, highest=highest
            )
        return cls._affine(low, high, -highest - 1, highest)

    @classmethod
    def unsigned(cls, low: NDArray[np.float64], high: NDArray[np.float64], *, bits: int = 8) -> UniformGrid:
        """The grid of activations: ``q`` from 0 to ``2^bits - 1``."""
        return cls._affine(low, high, 0, 2**bits - 1)

    @classmethod
    def _affine(
        cls, low: NDArray[np.float64], high: NDArray[np.float64], lowest: int, highest: int
    ) -> UniformGrid:
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        scale = _usable((high - low) / (highest - lowest))
        zero_point = np.clip(np.rint(lowest - low / scale), lowest, highest).astype(np.int16)
        return cls(scale=scale, zero_point=zero_point, lowest=lowest, highest=highest)

    def codes(self, rows: Floats) -> Codes:
        """The ``q`` of each value."""
        codes: Codes = np.clip(
            np.rint(rows / self.scale) + self.zero_point, self.lowest, self.highest
        ).astype(np.int16)
        return codes

    def values(self, codes: Codes) -> Floats:
        """What the codes stand for."""
        return (codes - self.zero_point).astype(np.float32) * self.scale


def _usable(scale: NDArray[np.float64]) -> Floats:
    return np.where(scale < _SMALLEST_SCALE, 1.0, scale).astype(np.float32)
