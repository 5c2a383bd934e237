from __future__ import annotations

import json
import random

import pytest
from domain_values import NOW_S, SETTINGS, SortedSketch, digest_of, fleet_windows, window
from hypothesis import given
from hypothesis import strategies as st

from cloud.domain.evidence import LEVELS, SHARES, EvidenceTable, quantile_of, tabulate
from cloud.domain.settings import PolicySettings

A = digest_of("a")
B = digest_of("b")


def table_of(windows, *, settings=SETTINGS, digests=(A,), **changes):
    return tabulate(windows, workload="digits", digests=digests, now_s=NOW_S, settings=settings, **changes)


def test_a_window_counts_once_however_often_and_in_whatever_order_it_came():
    windows = fleet_windows(4.0, digest=A)
    doubled = windows * 3
    random.Random(1).shuffle(doubled)
    assert table_of(doubled) == table_of(windows)


@pytest.mark.parametrize(
    "changes",
    [
        {"end_s": NOW_S - 2000},
        {"end_s": NOW_S + 2000},
        {"start_s": NOW_S + 1},
        {"workload": "other"},
        {"count": 0},
        {"p95_ms": float("nan")},
        {"p95_ms": float("inf")},
        {"p95_ms": -1.0},
        {"p95_ms": 0.0},
        {"reference_ms": float("inf")},
        {"emulated_slowdown": 0},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_what_cannot_be_or_is_not_meant_is_left_out(changes):
    good = window("device-0", 0, 4.0, digest=A)
    bad = window("device-1", 0, changes.pop("p95_ms", 4.0), digest=A, **changes)
    assert table_of([good, bad]) == table_of([good])


def test_another_digest_is_kept_apart():
    both = table_of(fleet_windows(4.0, digest=A) + fleet_windows(9.0, digest=B), digests=(A, B))
    assert both.digests == tuple(sorted((A, B)))
    assert {row.digest for rows in both.of(A).values() for row in rows} == {A}
    assert table_of(fleet_windows(9.0, digest=B)).rows == ()


def test_only_the_newest_windows_of_a_device_count():
    settings = PolicySettings(max_windows_per_device=3)
    found = table_of(fleet_windows(4.0, digest=A, num_devices=1, num_windows=8), settings=settings)
    assert [row.end_s for row in found.of(A)["device-0"]] == [NOW_S, NOW_S - 30, NOW_S - 60]


def test_a_very_large_fleet_is_sampled_the_same_way_each_time():
    settings = PolicySettings(max_devices=10)
    windows = fleet_windows(4.0, digest=A, num_devices=50, num_windows=1)
    first = table_of(windows, settings=settings)
    assert len(first.of(A)) == 10
    assert table_of(windows[::-1], settings=settings) == first


def test_the_table_survives_json():
    found = table_of(fleet_windows([4.0, 4.4, 3.9], digest=A))
    assert EvidenceTable.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_atoms_of_one_window_give_its_p95():
    values = tuple(sorted(random.Random(3).lognormvariate(1.0, 0.3) for _ in range(5000)))
    sketch = SortedSketch(values)
    atoms = sorted((sketch.quantile(level), share) for level, share in zip(LEVELS, SHARES, strict=True))
    assert quantile_of(atoms, 0.95) == pytest.approx(sketch.quantile(0.95), rel=0.01)


@given(
    st.lists(st.tuples(st.floats(0.001, 1e6), st.floats(0.001, 1e6)), min_size=1, max_size=30).map(sorted),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_quantiles_rise_and_stay_within_the_values(atoms, q0, q1):
    low, high = sorted((q0, q1))
    assert quantile_of(atoms, low) <= quantile_of(atoms, high) * (1 + 1e-9)
    assert atoms[0][0] <= quantile_of(atoms, low)
    assert quantile_of(atoms, high) <= atoms[-1][0] * (1 + 1e-9)
