"""Levels that lie anywhere: codebooks by k-means, and signed powers of two.

Rules: a value takes the nearest level of its row; a row that holds exact zeros (pruned weights) has zero
among its levels, so that they stay; the same values give the same levels, nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int16]

NUM_ROUNDS = 25


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LevelGrid:
    """``levels`` is ``[rows, num_levels]``, each row ascending; a row of fewer repeats its last.

    ``num_bytes`` is what the levels themselves take in a file.
    """

    levels: Floats
    num_bytes: int

    def codes(self, rows: Floats) -> Codes:
        """The index of the nearest level of each value."""
        middles = (self.levels[:, 1:] + self.levels[:, :-1]) / 2
        return np.stack(
            [np.searchsorted(middle, row) for middle, row in zip(middles, rows, strict=True)]
        ).astype(np.int16)

    def values(self, codes: Codes) -> Floats:
        """What the codes stand for."""
        return np.take_along_axis(self.levels, codes.astype(np.intp), axis=1)


def fit_codebook(
    rows: Floats, bits: int, start: LevelGrid | None = None, rounds: int = NUM_ROUNDS
) -> LevelGrid:
    """``2^bits`` levels for each row, at the means of the values nearest to them (k-means, by Lloyd).

    The levels start evenly spaced over the row's range, which keeps some for the few large weights that
    matter most: Han et al., Deep Compression (2016). ``start`` goes on from an earlier codebook instead.
    """
    num_levels = 2**bits
    fitted = [
        _fit_row(row, num_levels, None if start is None else start.levels[n], rounds)
        for n, row in enumerate(rows)
    ]
    levels = np.stack(fitted)
    return LevelGrid(levels=levels, num_bytes=levels.nbytes)


def fit_logarithmic(rows: Floats, bits: int) -> LevelGrid:
    """Zero and ``+-2^e`` for the ``2^(bits-1) - 1`` exponents up to ``floor(log2(4/3 * max|x|))``.

    4/3 because a value up to 1.5 times a level rounds to it. Sources: Miyashita et al., Convolutional Neural
    Networks using Logarithmic Data Representation (2016); Zhou et al., Incremental Network Quantization
    (2017).
    """
    largest = np.abs(rows).max(axis=1, keepdims=True).astype(np.float64)
    top = np.floor(np.log2(np.where(largest > 0, largest, 1.0) * 4 / 3))
    # Rows of zeros, or of next to nothing, keep to exponents that are normal float32 numbers.
    exponents = np.maximum(top, -90.0) - np.arange(2 ** (bits - 1) - 1)
    magnitudes = np.exp2(exponents)
    levels = np.concatenate([-magnitudes, np.zeros_like(top), magnitudes[:, ::-1]], axis=1)
    return LevelGrid(levels=levels.astype(np.float32), num_bytes=len(levels))  # one exponent a row says all


def _fit_row(row: Floats, num_levels: int, start: Floats | None, rounds: int) -> Floats:
    has_zero = bool((row == 0).any())
    values = np.sort(row[row != 0] if has_zero else row).astype(np.float64)
    distinct = np.unique(values)
    wanted = num_levels - has_zero
    if len(distinct) <= wanted:
        levels = distinct
    else:
        if start is None:
            levels = np.linspace(values[0], values[-1], wanted)
        else:
            levels = np.unique(start[start != 0] if has_zero else start).astype(np.float64)[:wanted]
        levels = _lloyd(values, levels, rounds)
    if has_zero:
        levels = np.sort(np.append(levels, 0.0))
    return np.pad(levels, (0, num_levels - len(levels)), mode="edge").astype(np.float32)


def _lloyd(values: NDArray[np.float64], levels: NDArray[np.float64], rounds: int) -> NDArray[np.float64]:
    """Each level moves to the mean of the values nearest to it; one without values stays."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    for _ in range(rounds):
        borders = np.searchsorted(values, (levels[1:] + levels[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(values)]])
        counts = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(counts, 1)
        moved = np.where(counts > 0, means, levels)
        if np.array_equal(moved, levels):
            break
        levels = moved
    return levels
