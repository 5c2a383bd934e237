"""Thresholds that rules may use, and inputs counted off against them.

Rules: each input has at most ``MAX_CUTS`` thresholds, at the quantiles of what it was seen to be, rounded to
what a person reads; ``x <= cuts[k]`` holds exactly when the bin of ``x`` is at most ``k``, so that what was
fitted on bins holds on values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Bins then fit one byte, and a histogram over all inputs fits a cache or two.
MAX_CUTS = 47
MAX_QUANTILE_ROWS = 20_000
NUM_DIGITS = 3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Binner:
    """``cuts[feature]`` is ascending; an input that never changes has none."""

    cuts: tuple[NDArray[np.float32], ...]

    @property
    def num_bins(self) -> int:
        return MAX_CUTS + 1

    @classmethod
    def fit(cls, inputs: NDArray[np.float32]) -> Binner:
        """From rows ``[n, features]``; of many, from some evenly chosen ones."""
        rows = inputs[:: max(1, math.ceil(len(inputs) / MAX_QUANTILE_ROWS))]
        shares = np.linspace(0.0, 1.0, MAX_CUTS + 2)[1:-1]
        quantiles = np.quantile(rows, shares, axis=0)
        low, high = rows.min(axis=0), rows.max(axis=0)
        return cls(
            cuts=tuple(
                _readable(column, float(least), float(most))
                for column, least, most in zip(quantiles.T, low, high, strict=True)
            )
        )

    def transform(self, inputs: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The bin of each value, ``[n, features]``."""
        bins = np.empty(inputs.shape, np.uint8)
        for feature, cuts in enumerate(self.cuts):
            bins[:, feature] = np.searchsorted(cuts, inputs[:, feature], side="left")
        return bins

    def threshold(self, feature: int, cut: int) -> np.float32:
        """The threshold at which bins up to ``cut`` go left."""
        return np.float32(self.cuts[feature][cut])


def _readable(quantiles: NDArray[np.float64], least: float, most: float) -> NDArray[np.float32]:
    """Rounded to a thousandth of the range or so; without the highest, which would part nothing."""
    if most <= least:
        return np.zeros(0, np.float32)
    decimals = NUM_DIGITS - math.floor(math.log10(most - least))
    rounded = np.unique(np.round(quantiles, decimals).astype(np.float32))
    kept: NDArray[np.float32] = rounded[(rounded >= least) & (rounded < most)] + np.float32(0)  # no -0
    return kept
