"""Quantisers of weights, as laws that hold for any values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cloud.compression.level_grid import LevelGrid, fit_codebook, fit_logarithmic
from cloud.compression.quantised_tensor import pack_codes, quantise_rows, quantise_weight, unpack_codes
from cloud.compression.ranges import estimate_ranges
from cloud.compression.uniform_grid import Floats, UniformGrid
from cloud.domain.quantisation import Estimator, Granularity, QuantisationSpec, Scheme

ROWS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 60)),
    elements=st.floats(-100, 100, width=32, allow_subnormal=False),
)
BITS = st.integers(2, 8)
NORMAL = np.random.default_rng(0).normal(size=(3, 4000)).astype(np.float32)
SCHEMES = [
    QuantisationSpec(),
    QuantisationSpec(symmetric=False),
    QuantisationSpec(scheme=Scheme.POWER_OF_TWO),
    QuantisationSpec(scheme=Scheme.CODEBOOK),
    QuantisationSpec(scheme=Scheme.LOGARITHMIC, bits=4),
]
SCHEME_IDS = ["symmetric", "asymmetric", "power-of-two", "codebook", "logarithmic"]


def squared_error(rows: Floats, spec: QuantisationSpec, bits: int) -> np.ndarray:
    made = quantise_rows(rows, spec, bits)
    return np.square(made.dequantise().astype(np.float64) - rows).sum(axis=1)


@pytest.mark.parametrize("spec", SCHEMES, ids=SCHEME_IDS)
@settings(max_examples=40, deadline=None)
@given(rows=ROWS, bits=BITS)
def test_no_scheme_uses_more_levels_than_its_bits(spec: QuantisationSpec, rows: Floats, bits: int) -> None:
    bits = min(bits, 6) if spec.scheme is Scheme.LOGARITHMIC else bits
    made = quantise_rows(rows, spec, bits)
    assert made.num_levels <= 2**bits
    assert max(len(np.unique(row)) for row in made.dequantise()) <= 2**bits
    assert np.isfinite(made.dequantise()).all()


@pytest.mark.parametrize("spec", SCHEMES, ids=SCHEME_IDS)
@settings(max_examples=40, deadline=None)
@given(rows=ROWS, bits=st.integers(2, 6))
def test_rounding_what_is_rounded_changes_nothing(spec: QuantisationSpec, rows: Floats, bits: int) -> None:
    made = quantise_rows(rows, spec, bits)
    once = made.dequantise()
    assert np.array_equal(made.grid.values(made.grid.codes(once)), once)


@pytest.mark.parametrize("spec", SCHEMES, ids=SCHEME_IDS)
@settings(max_examples=40, deadline=None)
@given(rows=ROWS, bits=st.integers(2, 6))
def test_zeros_stay_zero(spec: QuantisationSpec, rows: Floats, bits: int) -> None:
    rows = rows.copy()
    rows[:, ::2] = 0
    assert not quantise_rows(rows, spec, bits).dequantise()[:, ::2].any()


@pytest.mark.parametrize("symmetric", [True, False])
@settings(max_examples=60, deadline=None)
@given(rows=ROWS, bits=BITS)
def test_uniform_rounding_is_off_by_half_a_step_at_most(symmetric: bool, rows: Floats, bits: int) -> None:
    made = quantise_rows(rows, QuantisationSpec(symmetric=symmetric), bits)
    assert isinstance(made.grid, UniformGrid)
    # Half a step; the zero point itself is rounded, which may clip another half at one end.
    bound = (0.5 if symmetric else 1.0) * made.grid.scale.astype(np.float64)
    assert (np.abs(made.dequantise() - rows) <= bound * (1 + 1e-5) + 1e-30).all()


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, bits=BITS, estimator=st.sampled_from(Estimator))
def test_power_of_two_scales_are_powers_of_two(rows: Floats, bits: int, estimator: Estimator) -> None:
    made = quantise_rows(rows, QuantisationSpec(scheme=Scheme.POWER_OF_TWO, estimator=estimator), bits)
    assert isinstance(made.grid, UniformGrid)
    mantissa, _ = np.frexp(made.grid.scale)
    assert (mantissa == 0.5).all()
    assert not made.grid.zero_point.any()
    if estimator is Estimator.MIN_MAX:  # the finest that clips nothing
        largest = np.abs(rows).max(axis=1, keepdims=True)
        highest = 2 ** (bits - 1) - 1
        assert (made.grid.scale * highest >= largest * (1 - 1e-6)).all()
        assert (made.grid.scale * highest < largest * 2.0001)[largest > 1e-20].all()


@pytest.mark.parametrize(
    "spec",
    [QuantisationSpec(), QuantisationSpec(symmetric=False), QuantisationSpec(scheme=Scheme.POWER_OF_TWO)],
    ids=["symmetric", "asymmetric", "power-of-two"],
)
@settings(max_examples=40, deadline=None)
@given(rows=ROWS, bits=BITS)
def test_the_least_error_is_never_worse_than_min_max(spec: QuantisationSpec, rows: Floats, bits: int) -> None:
    least = squared_error(rows, replace(spec, estimator=Estimator.MSE), bits)
    assert (least <= squared_error(rows, spec, bits) * (1 + 1e-6)).all()


@pytest.mark.parametrize("estimator", [Estimator.PERCENTILE, Estimator.ENTROPY, Estimator.MSE])
def test_estimators_clip_outliers_and_round_the_rest_finer(estimator: Estimator) -> None:
    rows = NORMAL.copy()
    rows[:, 0] = 40.0
    _, wide = estimate_ranges(rows, estimator=Estimator.MIN_MAX, bits=4, symmetric=True)
    low, high = estimate_ranges(rows, estimator=estimator, bits=4, symmetric=True, percentile=99.9)
    assert (wide == 40.0).all()
    assert (high < 20.0).all()
    assert (high > 1.0).all()
    assert (low == -high).all()
    within = rows[:, 1:]

    def error(limit: np.ndarray) -> float:
        grid = UniformGrid.signed(-limit, limit, bits=4, symmetric=True)
        return float(np.square(grid.values(grid.codes(within)) - within).mean())

    assert error(high) < 0.25 * error(wide)


def test_the_entropy_of_few_values_says_nothing_and_nothing_is_clipped() -> None:
    low, high = estimate_ranges(NORMAL[:, :20], estimator=Estimator.ENTROPY, bits=8, symmetric=False)
    assert np.allclose(low, NORMAL[:, :20].min(axis=1, keepdims=True))
    assert np.allclose(high, NORMAL[:, :20].max(axis=1, keepdims=True))


def test_a_zero_point_pays_where_values_lie_on_one_side() -> None:
    rows = np.abs(NORMAL)
    affine = squared_error(rows, QuantisationSpec(symmetric=False), 4)
    assert (affine < 0.35 * squared_error(rows, QuantisationSpec(), 4)).all()


def test_a_scale_for_each_channel_pays_where_channels_differ() -> None:
    weight = NORMAL * np.array([[1.0], [0.1], [0.01]], np.float32)
    errors = {}
    for granularity in Granularity:
        made = quantise_weight(weight, QuantisationSpec(bits=4, granularity=granularity))
        errors[granularity] = np.abs(made.dequantise() - weight)[2].mean()
    assert errors[Granularity.PER_CHANNEL] < 0.25 * errors[Granularity.PER_TENSOR]


def test_a_codebook_is_nearer_than_even_steps() -> None:
    codebook = squared_error(NORMAL, QuantisationSpec(scheme=Scheme.CODEBOOK), 4)
    assert (codebook < 0.6 * squared_error(NORMAL, QuantisationSpec(), 4)).all()
    assert (codebook < 0.9 * squared_error(NORMAL, QuantisationSpec(estimator=Estimator.MSE), 4)).all()


def test_lloyd_goes_on_from_a_codebook_and_never_makes_it_worse() -> None:
    def error(grid: LevelGrid) -> float:
        return float(np.square(grid.values(grid.codes(NORMAL)) - NORMAL).mean())

    errors = []
    grid = fit_codebook(NORMAL, 3, rounds=0)
    for _ in range(5):
        errors.append(error(grid))
        grid = fit_codebook(NORMAL, 3, grid, rounds=2)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, bits=st.integers(2, 6))
def test_logarithmic_levels_are_powers_of_two_and_off_by_a_third_at_most(rows: Floats, bits: int) -> None:
    grid = fit_logarithmic(rows, bits)
    mantissa, _ = np.frexp(np.abs(grid.levels[grid.levels != 0]))
    assert (mantissa == 0.5).all()
    assert grid.levels.shape[1] == 2**bits - 1
    rounded = grid.values(grid.codes(rows))
    smallest = np.abs(np.where(grid.levels == 0, np.inf, grid.levels)).min(axis=1, keepdims=True)
    far = np.abs(rows) >= smallest
    # From 3/4 to 3/2 of a level: a third of the value, at most.
    assert (np.abs(rounded - rows)[far] <= np.abs(rows)[far] * 0.3334).all()


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, bits=BITS, symmetric=st.booleans())
def test_packed_codes_take_their_bits_and_come_back(rows: Floats, bits: int, symmetric: bool) -> None:
    made = quantise_rows(rows, QuantisationSpec(symmetric=symmetric), bits)
    assert isinstance(made.grid, UniformGrid)
    data = made.pack()
    assert len(data) == -(-rows.size * bits // 8)
    assert data == pack_codes(made.codes, bits, made.grid.lowest)
    assert np.array_equal(unpack_codes(data, made.codes.shape, bits, made.grid.lowest), made.codes)


@pytest.mark.parametrize("spec", SCHEMES, ids=SCHEME_IDS)
def test_int8_holds_the_values_of_every_scheme(spec: QuantisationSpec) -> None:
    weight = NORMAL.reshape(3, 40, 10, 10)
    made = quantise_weight(weight, spec, bits=4)
    scale, zero_point = made.int8_grid(64)
    shaped = scale.reshape(-1, 1, 1, 1)
    codes = np.rint(made.dequantise() / shaped) + zero_point
    assert np.abs(codes).max() <= 127
    held = (codes - zero_point).astype(np.float32) * shaped
    if spec.scheme is Scheme.CODEBOOK:
        assert (np.abs(held - made.dequantise()) <= 0.5001 * shaped).all()
    else:
        assert np.array_equal(held, made.dequantise())
    assert max(len(np.unique(row)) for row in codes.reshape(3, -1)) <= 16


@pytest.mark.parametrize("spec", SCHEMES, ids=SCHEME_IDS)
@pytest.mark.parametrize("granularity", Granularity)
def test_rows_of_zeros_stay_zero(spec: QuantisationSpec, granularity: Granularity) -> None:
    weight = NORMAL[:, :36].reshape(3, 4, 3, 3).copy()
    weight[1] = 0
    made = quantise_weight(weight, replace(spec, granularity=granularity), bits=4)
    assert not made.dequantise()[1].any()
    assert made.dequantise()[0].any()
    everything = quantise_weight(np.zeros_like(weight), replace(spec, granularity=granularity), bits=4)
    assert not everything.dequantise().any()
