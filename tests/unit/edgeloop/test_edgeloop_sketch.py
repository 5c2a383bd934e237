from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeloop import sketch
from edgeloop.errors import RejectedError
from edgeloop.sketch import LatencySketch, SketchBuilder
from edgeloop.v1 import telemetry_pb2

GOLDEN = Path(__file__).parents[2] / "golden"

latencies = st.floats(0.001, 60_000) | st.floats(0, 1e9)
samples = st.lists(latencies, max_size=60)
in_range = st.lists(st.floats(0.001, 1_000_000), min_size=1, max_size=200)


@given(in_range, st.floats(0, 1))
def test_quantile_is_within_one_percent_of_the_order_statistic(values: list[float], q: float) -> None:
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    assert LatencySketch.of(values).quantile(q) == pytest.approx(exact, rel=0.01 + 1e-9)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.lognormvariate(0, 1),
        lambda rng: rng.paretovariate(1.2),
        lambda rng: rng.uniform(0.9, 1.1),
        lambda rng: rng.choice([0.05, 900.0]),
    ],
    ids=["lognormal", "heavy-tail", "narrow", "two-modes"],
)
def test_real_shapes_of_latency_keep_their_percentiles(draw: object) -> None:
    rng = random.Random(5)
    values = [draw(rng) for _ in range(20_000)]  # type: ignore[operator]  # the four lambdas above
    found = LatencySketch.of(values)
    for q in (0.5, 0.9, 0.95, 0.99, 0.999):
        exact = sorted(values)[math.floor(q * (len(values) - 1))]
        assert found.quantile(q) == pytest.approx(exact, rel=0.01 + 1e-9)
    assert found.mean_ms == pytest.approx(sum(values) / len(values), rel=1e-6)


@given(samples, samples, samples)
def test_merge_is_associative_commutative_and_has_an_identity(
    first: list[float], second: list[float], third: list[float]
) -> None:
    a, b, c = LatencySketch.of(first), LatencySketch.of(second), LatencySketch.of(third)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(b) == b.merge(a)
    assert a.merge(LatencySketch.empty()) == a == LatencySketch.empty().merge(a)


@given(samples, samples)
def test_merged_sketch_answers_as_one_of_all_values_would(first: list[float], second: list[float]) -> None:
    merged = LatencySketch.of(first).merge(LatencySketch.of(second))
    whole = LatencySketch.of(first + second)
    assert (merged.buckets, merged.count) == (whole.buckets, whole.count)
    assert (merged.min_ms, merged.max_ms) == (whole.min_ms, whole.max_ms)
    assert merged.sum_ms == pytest.approx(whole.sum_ms, rel=1e-12, abs=2e-6)


@given(samples)
def test_wire_round_trip_changes_nothing(values: list[float]) -> None:
    original = LatencySketch.of(values)
    returned = LatencySketch.from_bytes(original.to_bytes())
    assert returned == original
    assert returned.to_bytes() == original.to_bytes()


@given(samples, samples)
def test_merged_sketch_is_accepted_on_the_other_side(first: list[float], second: list[float]) -> None:
    merged = LatencySketch.of(first).merge(LatencySketch.of(second))
    assert LatencySketch.from_bytes(merged.to_bytes()).buckets == merged.buckets


@given(samples.filter(bool), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_never_decrease_and_stay_between_the_extremes(
    values: list[float], one: float, other: float
) -> None:
    found = LatencySketch.of(values)
    low, high = sorted((one, other))
    assert min(values) <= found.quantile(low) <= found.quantile(high) <= max(values)


@given(st.floats(0.0011, sketch.MAX_BUCKET_MS * 0.999))
def test_every_value_lies_in_its_bucket(ms: float) -> None:
    low, high = sketch.bucket_bounds_ms(sketch.bucket_index(ms))
    assert low * (1 - 1e-9) < ms <= high * (1 + 1e-9)


def test_values_beyond_the_range_count_in_the_outer_buckets() -> None:
    found = LatencySketch.of([0.0, 1e-7, 0.001, 1e8, 1e12])
    assert found.buckets == {0: 3, sketch.LAST_INDEX: 2}
    assert (found.min_ms, found.max_ms) == (0.0, sketch.MAX_VALUE_MS)


@pytest.mark.parametrize("ms", [-1e-9, math.nan, -math.inf])
def test_what_is_no_latency_is_refused_and_not_counted(ms: float) -> None:
    builder = SketchBuilder()
    with pytest.raises(ValueError, match="no latency"):
        builder.add(ms)
    assert builder.build() == LatencySketch.empty()


def test_builder_goes_on_after_build_and_begins_again_after_reset() -> None:
    builder = SketchBuilder()
    builder.add(1.0)
    first = builder.build()
    builder.add(2.0)
    assert (first.count, builder.build().count) == (1, 2)
    builder.reset()
    assert builder.build() == LatencySketch.empty()


def test_empty_sketch_has_no_quantile_and_q_has_bounds() -> None:
    with pytest.raises(ValueError, match="empty"):
        LatencySketch.empty().quantile(0.5)
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="0 to 1"):
            LatencySketch.of([1.0]).quantile(q)


def test_size_does_not_grow_with_the_samples() -> None:
    rng = random.Random(2)
    few = LatencySketch.of(rng.lognormvariate(0, 0.3) for _ in range(1000))
    many = LatencySketch.of(rng.lognormvariate(0, 0.3) for _ in range(100_000))
    assert len(few.to_bytes()) < 600
    assert len(many.to_bytes()) < 1000
    full = LatencySketch(
        indexes=tuple(range(sketch.NUM_BUCKETS)),
        counts=(900_000,) * sketch.NUM_BUCKETS,
        count=900_000 * sketch.NUM_BUCKETS,
        sum_ns=10**15,
        min_ms=0.001,
        max_ms=sketch.MAX_BUCKET_MS,
    )
    assert LatencySketch.from_bytes(full.to_bytes()) == full
    assert len(full.to_bytes()) <= sketch.MAX_WIRE_BYTES


def test_weights_carry_every_sample() -> None:
    found = LatencySketch.of([1.0, 1.0, 50.0])
    assert [count for _, count in found.weights()] == [2, 1]
    assert [value for value, _ in found.weights()] == pytest.approx([1.0, 50.0], rel=0.01)


def message(**changes: object) -> telemetry_pb2.LatencySketch:
    fields: dict[str, object] = {
        "format_version": 1,
        "indexes": [sketch.bucket_index(1.0), sketch.bucket_index(2.0)],
        "counts": [3, 1],
        "sum_ms": 5.0,
        "min_ms": 1.0,
        "max_ms": 2.0,
    }
    return telemetry_pb2.LatencySketch(**(fields | changes))  # type: ignore[arg-type]  # fields by name


BAD = {
    "unknown version": {"format_version": 2},
    "no version": {"format_version": 0},
    "indexes fall": {"indexes": [500, 400]},
    "indexes repeat": {"indexes": [400, 400]},
    "index out of range": {"indexes": [346, 1051]},
    "counts shorter": {"counts": [4]},
    "count zero": {"counts": [4, 0]},
    "count beyond the bound": {"counts": [3, 10**9]},
    "count near overflow": {"counts": [2**64 - 1, 2**64 - 1]},
    "min is NaN": {"min_ms": math.nan},
    "max is NaN": {"max_ms": math.nan},
    "max infinite": {"max_ms": math.inf},
    "min negative": {"min_ms": -1.0},
    "min over max": {"min_ms": 3.0},
    "min in another bucket": {"min_ms": 0.5},
    "max in another bucket": {"max_ms": 2.5},
    "sum NaN": {"sum_ms": math.nan},
    "sum infinite": {"sum_ms": math.inf},
    "sum too low": {"sum_ms": 3.9},
    "sum too high": {"sum_ms": 8.1},
    "sum negative": {"sum_ms": -5.0},
    "empty with a sum": {"indexes": [], "counts": []},
}


def test_the_message_that_is_spoiled_below_is_good() -> None:
    assert LatencySketch.from_proto(message()).count == 4


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
def test_impossible_sketch_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RejectedError) as caught:
        LatencySketch.from_proto(message(**changes))
    assert caught.value.code == ("sketch-version" if "format_version" in changes else "sketch-field")


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_sketch_or_refused(raw: bytes) -> None:
    check_readable(raw)


@settings(max_examples=300)
@given(st.data())
def test_any_damage_to_a_sketch_gives_a_sound_one_or_is_refused(data: st.DataObject) -> None:
    raw = bytearray(LatencySketch.of([0.5, 1.0, 2.0, 90.0]).to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    check_readable(bytes(raw))


def check_readable(raw: bytes) -> None:
    try:
        found = LatencySketch.from_bytes(raw)
    except RejectedError:
        return
    assert LatencySketch.from_bytes(found.to_bytes()).buckets == found.buckets
    if found.count:
        assert found.min_ms <= found.quantile(0.95) <= found.max_ms
        assert math.isfinite(found.mean_ms)


def test_oversized_bytes_are_refused_unread() -> None:
    with pytest.raises(RejectedError):
        LatencySketch.from_bytes(b"\0" * (sketch.MAX_WIRE_BYTES + 1))


GOLDEN_VALUES_MS = [0.0005, 0.189, 0.191, 0.2, 1.0, 1.265, 4.641, 20.9, 1500.0, 2e6]


def test_format_version_1_is_still_read_and_written() -> None:
    raw = (GOLDEN / "sketch_v1.bin").read_bytes()
    assert LatencySketch.from_bytes(raw) == LatencySketch.of(GOLDEN_VALUES_MS)
    assert LatencySketch.of(GOLDEN_VALUES_MS).to_bytes() == raw


def test_adding_costs_the_same_however_many_there_are() -> None:
    """What every request pays: five calls at most, none of them over the values of before."""
    rng, builder = random.Random(1), SketchBuilder()
    num_calls: list[int] = []

    def count(frame: object, event: str, argument: object) -> None:
        num_calls[-1] += event in ("call", "c_call")

    for _ in range(20_000):
        ms = rng.lognormvariate(0, 1)
        num_calls.append(0)
        sys.setprofile(count)
        try:
            builder.add(ms)
        finally:
            sys.setprofile(None)
    # The profiler's own end is one of them.
    assert max(num_calls) <= 5
    assert len(builder.build().counts) < 1000
