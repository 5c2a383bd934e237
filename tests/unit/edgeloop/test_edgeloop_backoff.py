from __future__ import annotations

import random
import statistics
from itertools import pairwise

import pytest

from edgeloop.backoff import Backoff


def test_delays_climb_to_the_maximum_and_never_pass_it() -> None:
    fleet = [Backoff(0.5, 8.0, random.Random(seed)) for seed in range(400)]
    rounds = [[device.next() for device in fleet] for _ in range(10)]
    means = [statistics.mean(delays) for delays in rounds]
    assert all(later > earlier * 1.5 for earlier, later in pairwise(means[:5]))
    assert max(map(max, rounds)) <= 8.0
    assert statistics.mean(means[6:]) == pytest.approx(4.0, rel=0.1)


def test_delays_of_a_fleet_are_spread_evenly() -> None:
    fleet = [Backoff(0.5, 60, random.Random(seed)) for seed in range(1000)]
    for _ in range(6):
        delays = [device.next() for device in fleet]
    quarters = [sum(1 for delay in delays if low <= delay < low + 4) for low in (0, 4, 8, 12)]
    assert all(180 < quarter < 320 for quarter in quarters)


def test_never_a_busy_loop() -> None:
    backoff = Backoff(0.5, 60, random.Random(0))
    assert all(backoff.next() >= 0.02 for _ in range(10_000))


def test_reset_begins_again_and_refusal_goes_to_the_maximum() -> None:
    backoff = Backoff(0.5, 60, random.Random(0))
    for _ in range(20):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 0.5
    backoff.reset()
    backoff.to_max()
    assert max(backoff.next() for _ in range(200)) > 50


@pytest.mark.parametrize(("base_s", "max_s"), [(0, 1), (2, 1), (1, float("inf")), (float("nan"), 1)])
def test_impossible_settings_are_refused(base_s: float, max_s: float) -> None:
    with pytest.raises(ValueError, match="base_s"):
        Backoff(base_s, max_s)
