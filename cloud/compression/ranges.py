"""Which range a uniform quantiser should cover: a wide one rounds coarsely, a narrow one clips.

Each estimator takes rows of values and gives ``low`` and ``high`` ``[rows, 1]``, with ``low <= 0 <= high``:

- min-max: the extremes; nothing is clipped.
- percentile: the share ``percentile`` of the values (of the absolute values when symmetric) is covered.
- entropy: the clipped range whose quantised histogram is nearest to the values' histogram by KL divergence
  (Migacz, 8-bit Inference with TensorRT, 2017).
- mse: the clipped range with the least mean squared error; as min-max is among those tried, never worse.

The last two try thresholds: what lies further from zero than the threshold is clipped, on either side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloud.compression.uniform_grid import Floats, UniformGrid
from cloud.domain.quantisation import Estimator

Range = tuple[NDArray[np.float64], NDArray[np.float64]]

#: Thresholds, as shares of the largest absolute value.
RATIOS = np.concatenate([np.linspace(1.0, 0.3, 36), np.geomspace(0.3, 0.01, 16)[1:]])
NUM_BINS = 8192
#: A histogram of fewer values than this for each level says nothing.
MIN_VALUES_A_LEVEL = 4


def estimate_ranges(
    rows: Floats,
    *,
    estimator: Estimator,
    bits: int,
    symmetric: bool,
    percentile: float = 99.9,
    unsigned: bool = False,
) -> Range:
    """The range of each row for a grid of ``bits``; ``unsigned`` is the grid of activations."""
    low, high = _extremes(rows, symmetric)
    if estimator is Estimator.MIN_MAX:
        return low, high
    if estimator is Estimator.PERCENTILE:
        return _percentiles(rows, symmetric, percentile)
    largest = np.maximum(-low, high)

    def clipped(ratio: NDArray[np.float64] | float) -> Range:
        return np.maximum(low, -ratio * largest), np.minimum(high, ratio * largest)

    def grid(ratio: float) -> UniformGrid:
        if unsigned:
            return UniformGrid.unsigned(*clipped(ratio), bits=bits)
        return UniformGrid.signed(*clipped(ratio), bits=bits, symmetric=symmetric)

    if estimator is Estimator.MSE:
        return clipped(least_error(rows, [grid(float(ratio)) for ratio in RATIOS], RATIOS))
    return clipped(np.array([[_entropy_ratio(row, bits, symmetric)] for row in rows]))


def least_error(rows: Floats, grids: list[UniformGrid], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each row, the entry of ``values`` whose grid has the least squared error; of equals the first."""
    best = np.full((len(rows), 1), np.inf)
    chosen = np.full((len(rows), 1), values[0])
    for grid, value in zip(grids, values, strict=True):
        error = np.square((grid.values(grid.codes(rows)) - rows).astype(np.float64)).sum(
            axis=1, keepdims=True
        )
        better = error < best
        best, chosen = np.where(better, error, best), np.where(better, value, chosen)
    return chosen


def _extremes(rows: Floats, symmetric: bool) -> Range:
    low = np.minimum(rows.min(axis=1, keepdims=True), 0.0).astype(np.float64)
    high = np.maximum(rows.max(axis=1, keepdims=True), 0.0).astype(np.float64)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    return low, high


def _percentiles(rows: Floats, symmetric: bool, percentile: float) -> Range:
    if symmetric:
        high = np.percentile(np.abs(rows), percentile, axis=1, keepdims=True).astype(np.float64)
        return -high, high
    low, high = np.percentile(rows, [100.0 - percentile, percentile], axis=1, keepdims=True)
    return np.minimum(low, 0.0).astype(np.float64), np.maximum(high, 0.0).astype(np.float64)


def _entropy_ratio(row: Floats, bits: int, symmetric: bool) -> float:
    """The ratio by which the row's range is best shrunk."""
    values = np.abs(row[row != 0]) if symmetric else row[row != 0]  # zero is exact on every grid
    num_levels = 2 ** (bits - 1) if symmetric else 2**bits
    if len(values) < MIN_VALUES_A_LEVEL * num_levels:
        return 1.0
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    counts, edges = np.histogram(values, bins=NUM_BINS, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    best, least = 1.0, np.inf
    for ratio in RATIOS:
        threshold = float(ratio) * max(-low, high)
        first, last = np.searchsorted(centres, [-threshold, threshold])
        if last - first < num_levels:  # as many levels as bins: nothing is rounded, nothing is learnt
            break
        divergence = _divergence(counts, int(first), int(last), num_levels)
        if divergence < least:
            best, least = float(ratio), divergence
    return best


def _divergence(counts: NDArray[np.intp], first: int, last: int, num_levels: int) -> float:
    """KL(histogram clipped to the bins ``first:last`` || what rounding to ``num_levels`` leaves of it)."""
    kept = counts[first:last].astype(np.float64)
    clipped = kept.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    level = np.arange(len(kept)) * num_levels // len(kept)
    mass = np.bincount(level, kept, num_levels)
    num_filled = np.bincount(level, kept > 0, num_levels)
    spread = np.where(kept > 0, mass[level] / np.maximum(num_filled[level], 1), 0.0)
    p, q = clipped / clipped.sum(), np.maximum(spread / max(spread.sum(), 1.0), 1e-9)
    filled = p > 0
    return float(np.sum(p[filled] * np.log(p[filled] / q[filled])))
