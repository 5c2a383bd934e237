"""A weight tensor rounded to few levels: codes at their bit width, and the grid that gives them meaning.

Rules: the first axis is the output channel, as in torch and ONNX; ``dequantise`` is what the student computes
with, whatever runs it; rounding it once more on the same grid changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud.compression.level_grid import LevelGrid, fit_codebook, fit_logarithmic
from cloud.compression.ranges import estimate_ranges, least_error
from cloud.compression.uniform_grid import Codes, Floats, UniformGrid
from cloud.domain.quantisation import Estimator, Granularity, QuantisationSpec, Scheme

Grid = UniformGrid | LevelGrid

#: With mean squared error, power-of-two scales are tried down to this many steps under the one that clips
#: nothing.
NUM_FINER_POWERS = 4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantisedTensor:
    """``codes`` has the weight's shape; ``grid`` has one row for all of it, or one for each channel."""

    codes: Codes
    grid: Grid
    bits: int

    def dequantise(self) -> Floats:
        """The weight's rounded values, float32."""
        codes = self.codes.reshape(_num_rows(self.grid), -1)
        return self.grid.values(codes).reshape(self.codes.shape)

    @property
    def num_levels(self) -> int:
        """Most distinct codes that any row uses."""
        return max(len(np.unique(row)) for row in self.codes.reshape(_num_rows(self.grid), -1))

    def pack(self) -> bytes:
        """The codes alone, ``bits`` bits each, in the weight's order."""
        return pack_codes(self.codes, self.bits, self._lowest)

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed codes and of the grid's numbers."""
        grid = self.grid
        if isinstance(grid, LevelGrid):
            return len(self.pack()) + grid.num_bytes
        return len(self.pack()) + grid.scale.nbytes + (grid.zero_point.size if grid.zero_point.any() else 0)

    def int8_grid(self, largest: int) -> tuple[Floats, int]:
        """Scale ``[rows]`` and zero point with which int8 holds these values.

        Exact for evenly spaced levels; other levels move by at most half of ``max|level| / largest``.
        """
        grid = self.grid
        if isinstance(grid, LevelGrid):
            span = np.abs(grid.levels).max(axis=1)
            return np.where(span > 0, span / largest, 1.0).astype(np.float32), 0
        if len(grid.scale) == 1:
            return grid.scale[:, 0], int(grid.zero_point[0, 0])
        return grid.scale[:, 0], 0

    @property
    def _lowest(self) -> int:
        return 0 if isinstance(self.grid, LevelGrid) else self.grid.lowest


def fit_grid(rows: Floats, spec: QuantisationSpec, bits: int, start: Grid | None = None) -> Grid:
    """The levels for ``rows``, one set a row. ``start`` is an earlier codebook to go on from."""
    if spec.scheme is Scheme.CODEBOOK:
        if isinstance(start, LevelGrid):
            return fit_codebook(rows, bits, start, rounds=2)
        return fit_codebook(rows, bits)
    if spec.scheme is Scheme.LOGARITHMIC:
        return fit_logarithmic(rows, bits)
    is_fixed_point = spec.scheme is Scheme.POWER_OF_TWO
    # The search for the least error is over powers where only powers may come out.
    plain = is_fixed_point and spec.estimator is Estimator.MSE
    low, high = estimate_ranges(
        rows,
        estimator=Estimator.MIN_MAX if plain else spec.estimator,
        bits=bits,
        symmetric=spec.symmetric,
        percentile=spec.percentile,
    )
    if not is_fixed_point:
        return UniformGrid.signed(low, high, bits=bits, symmetric=spec.symmetric)
    return _fixed_point(rows, high, bits, search=plain)


def quantise_rows(rows: Floats, spec: QuantisationSpec, bits: int) -> QuantisedTensor:
    """``rows``, each on a grid of its own."""
    grid = fit_grid(rows, spec, bits)
    return QuantisedTensor(codes=grid.codes(rows), grid=grid, bits=bits)


def quantise_weight(weight: Floats, spec: QuantisationSpec, bits: int | None = None) -> QuantisedTensor:
    """``weight``, as ``spec`` says. ``bits`` is other than the spec's where kernels take fewer."""
    bits = spec.bits if bits is None else bits
    made = quantise_rows(as_rows(weight, spec.granularity), spec, bits)
    return QuantisedTensor(codes=made.codes.reshape(weight.shape), grid=made.grid, bits=bits)


def as_rows(weight: Floats, granularity: Granularity) -> Floats:
    """A view of the weight with what shares a grid in one row."""
    return weight.reshape(len(weight) if granularity is Granularity.PER_CHANNEL else 1, -1)


def pack_codes(codes: Codes, bits: int, lowest: int) -> bytes:
    """``bits`` bits for each code, the highest first, filled up to whole bytes."""
    plain = (codes.reshape(-1, 1) - lowest).astype(np.uint8)
    return np.packbits(np.unpackbits(plain, axis=1)[:, 8 - bits :]).tobytes()


def unpack_codes(data: bytes, shape: tuple[int, ...], bits: int, lowest: int) -> Codes:
    """The inverse of ``pack_codes``."""
    count = int(np.prod(shape))
    flags = np.unpackbits(np.frombuffer(data, np.uint8))[: count * bits].reshape(count, bits)
    filled = np.concatenate([np.zeros((count, 8 - bits), np.uint8), flags], axis=1)
    return (np.packbits(filled, axis=1).astype(np.int16) + lowest).reshape(shape)


def _fixed_point(rows: Floats, high: NDArray[np.float64], bits: int, *, search: bool) -> UniformGrid:
    """Scale ``2^-b``: the finest that covers ``high``, or, when searching, the one of least squared error."""
    highest = 2 ** (bits - 1) - 1
    power = np.ceil(np.log2(np.where(high > 0, high, highest) / highest))
    power = np.maximum(power, -90.0)

    def grid(steps: NDArray[np.float64] | float) -> UniformGrid:
        scale = np.exp2(power - steps)
        return UniformGrid.signed(-scale * highest, scale * highest, bits=bits, symmetric=True)

    if not search:
        return grid(0.0)
    finer = np.arange(NUM_FINER_POWERS + 1, dtype=np.float64)
    return grid(least_error(rows, [grid(each) for each in finer], finer))


def _num_rows(grid: Grid) -> int:
    return len(grid.levels) if isinstance(grid, LevelGrid) else len(grid.scale)
