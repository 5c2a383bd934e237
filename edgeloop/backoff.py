"""How long to wait before the next try.

Full jitter: a delay is drawn evenly from zero to a ceiling that doubles with each failure, so that a fleet
cut off at one moment does not come back at one moment. The idea is measured in Marc Brooker, "Exponential
Backoff And Jitter" (AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import random
from typing import Final

_FLOOR_RATIO: Final = 0.05  # of the base: a draw near zero would be a busy loop


class Backoff:
    """Delays of one retry loop. Not shared between threads."""

    def __init__(self, base_s: float = 0.5, max_s: float = 60.0, rng: random.Random | None = None) -> None:
        if not 0 < base_s <= max_s < float("inf"):
            raise ValueError(f"base_s is {base_s} and max_s is {max_s}: give 0 < base_s <= max_s")
        self._base_s = base_s
        self._max_s = max_s
        self._rng = rng or random.Random()
        self._ceiling_s = base_s

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        ceiling_s = self._ceiling_s
        self._ceiling_s = min(self._max_s, ceiling_s * 2)
        return self._rng.uniform(self._base_s * _FLOOR_RATIO, ceiling_s)

    def to_max(self) -> None:
        """After a refusal that only a person can lift: go on from the highest ceiling."""
        self._ceiling_s = self._max_s

    def reset(self) -> None:
        """After a success that lasted."""
        self._ceiling_s = self._base_s
