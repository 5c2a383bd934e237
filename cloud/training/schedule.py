"""Learning rate and randomness as pure functions of where training stands.

Nothing here has state, so a run that is resumed at an epoch goes on exactly as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WARM_UP_SHARE = 0.25
START_DIVISOR = 25.0
END_DIVISOR = 1e4


def one_cycle(step: int, num_steps: int, peak: float) -> float:
    """Learning rate of a step: up to ``peak`` along a cosine, then down to almost nothing."""
    warm_up = max(1.0, WARM_UP_SHARE * num_steps)
    if step < warm_up:
        return _cosine(peak / START_DIVISOR, peak, step / warm_up)
    return _cosine(peak, peak / END_DIVISOR, (step - warm_up) / max(1.0, num_steps - 1 - warm_up))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * min(1.0, progress))) / 2.0


@contextmanager
def seeded(seed: int, epoch: int) -> Iterator[torch.Generator]:
    """A generator decided by ``seed`` and ``epoch`` alone; torch's own is seeded too, then put back."""
    number = (seed * 1_000_003 + epoch * 7_919 + 1) % 2**31
    generator = torch.Generator().manual_seed(number)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(number)
        yield generator
