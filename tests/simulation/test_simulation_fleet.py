"""Fifty agents under rollouts of good and ill models, and every fault at once.

CI takes a few seeds; EDGELOOP_SEEDS=1000 takes more.
"""

from __future__ import annotations

import collections
import os

import pytest
from simulation_fleet import FleetWorld

NUM_SEEDS = int(os.environ.get("EDGELOOP_SEEDS", "100"))
NUM_PARTS = 10
END_S = 4000.0


@pytest.mark.timeout(max(180, NUM_SEEDS))
@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_fifty_agents_never_do_what_must_not_happen_and_come_to_rest(part: int) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(part, NUM_SEEDS, NUM_PARTS):
        world = FleetWorld(seed)
        try:
            world.run_until(END_S)
            world.check_rested()
        except AssertionError as error:
            raise AssertionError(f"seed {seed} at {world.now_s:.1f} s: {error}") from error
        counts.update(world.counts)
    # The faults did happen.
    assert min(counts[name] for name in ("crash", "controller-crash", "lost", "corrupt")) > 0, counts


def test_the_same_seed_tells_the_same_story() -> None:
    stories = []
    for _ in range(2):
        world = FleetWorld(3, num_agents=10)
        world.run_until(1500)
        stories.append((world.counts, world.endings, world.generations))
    assert stories[0] == stories[1]
