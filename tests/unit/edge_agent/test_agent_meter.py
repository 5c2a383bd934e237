"""Windows of latency: never two digests in one, nothing lost, no clock read."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.meter import MAX_FINISHED, LatencyMeter, WindowKey

KEYS = [
    WindowKey(digest="a" * 64, generation=1, workload="digits"),
    WindowKey(digest="b" * 64, generation=2, workload="digits"),
    # The same bytes under a new generation are another story to the cloud.
    WindowKey(digest="a" * 64, generation=3, workload="digits"),
]


def test_a_window_is_reported_once_its_time_is_over() -> None:
    meter = LatencyMeter(window_s=10)
    meter.record(KEYS[0], 2.0, 100.0)
    meter.record(KEYS[0], 4.0, 105.0)
    meter.record_reference(KEYS[0], 0.2, 105.0)
    meter.record_error(KEYS[0], 106.0)
    assert meter.roll(109.9) == []
    (window,) = meter.roll(110.0)
    assert (window.key, window.start_s, window.end_s) == (KEYS[0], 100.0, 110.0)
    assert (window.latency.count, window.latency.max_ms, window.reference.count) == (2, 4.0, 1)
    assert window.num_errors == 1
    assert meter.roll(200.0) == []  # silence is not reported


def test_another_model_ends_the_window_at_once() -> None:
    meter = LatencyMeter(window_s=10)
    meter.record(KEYS[0], 2.0, 100.0)
    meter.record(KEYS[1], 1.0, 101.0)
    (window,) = meter.roll(101.0)
    assert (window.key, window.end_s, window.latency.count) == (KEYS[0], 101.0, 1)
    (window,) = meter.flush(102.0)
    assert (window.key, window.start_s, window.latency.count) == (KEYS[1], 101.0, 1)


def test_a_shorter_window_length_counts_for_the_window_that_is_open() -> None:
    meter = LatencyMeter(window_s=1000)
    meter.record(KEYS[0], 2.0, 100.0)
    meter.set_window(5)
    assert len(meter.roll(105.0)) == 1


@pytest.mark.parametrize("action", ["record", "roll"])
def test_a_clock_that_steps_back_ends_the_window_where_it_was_seen_last(action: str) -> None:
    meter = LatencyMeter(window_s=10)
    meter.record(KEYS[0], 2.0, 100.0)
    meter.record(KEYS[0], 2.0, 103.0)
    if action == "record":
        meter.record(KEYS[0], 2.0, 50.0)
    (window,) = meter.roll(50.0)
    assert (window.start_s, window.end_s) == (100.0, 103.0)


@pytest.mark.parametrize("action", ["record", "roll"])
def test_a_window_does_not_span_the_sleep_of_its_device(action: str) -> None:
    meter = LatencyMeter(window_s=10)
    meter.record(KEYS[0], 2.0, 100.0)
    meter.record(KEYS[0], 2.0, 104.0)
    if action == "record":
        meter.record(KEYS[0], 2.0, 9000.0)
    (window,) = meter.roll(9001.0)
    assert (window.start_s, window.end_s, window.latency.count) == (100.0, 110.0, 2)


def test_when_nobody_rolls_the_oldest_go_and_are_counted() -> None:
    meter = LatencyMeter(window_s=10)
    for n in range(MAX_FINISHED + 6):
        meter.record(KEYS[n % 2], 1.0, float(n))
    assert meter.num_lost_windows == 5
    assert len(meter.flush(1e6)) == MAX_FINISHED


events = st.lists(
    st.tuples(
        st.sampled_from(["record", "reference", "error", "roll"]),
        st.sampled_from(KEYS),
        st.floats(0, 1000, allow_nan=False),
        st.floats(0, 100, allow_nan=False),
    ),
    max_size=50,
)


@given(events)
def test_whatever_happens_every_record_is_in_one_window_of_its_own_key(
    story: list[tuple[str, WindowKey, float, float]],
) -> None:
    meter = LatencyMeter(window_s=30)
    wanted: Counter[tuple[str, WindowKey]] = Counter()
    found: Counter[tuple[str, WindowKey]] = Counter()
    windows = []
    for kind, key, now_s, value_ms in story:
        if kind == "roll":
            windows += meter.roll(now_s)
            continue
        wanted[kind, key] += 1
        if kind == "record":
            meter.record(key, value_ms, now_s)
        elif kind == "reference":
            meter.record_reference(key, value_ms, now_s)
        else:
            meter.record_error(key, now_s)
    windows += meter.flush(500.0)
    for window in windows:
        found["record", window.key] += window.latency.count
        found["reference", window.key] += window.reference.count
        found["error", window.key] += window.num_errors
        assert window.start_s <= window.end_s
        assert window.latency.count + window.reference.count + window.num_errors > 0
    assert +found == +wanted
