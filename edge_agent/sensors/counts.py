"""What became of the samples of each source, as Prometheus reads it.

Rules that this module keeps:

- Each sample that came ends in exactly one outcome: answered, failed (an error was sent or filed) or dropped.
- Names come from the settings, outcomes from a closed set: nothing that a sensor sends becomes a label.
"""

from __future__ import annotations

import threading
from typing import Final

ANSWERED: Final = "answered"
FAILED: Final = "failed"
DROPPED: Final = "dropped"
OUTCOMES: Final = (ANSWERED, FAILED, DROPPED)
_METRIC: Final = "edgeloop_source_samples_total"


class SourceCounts:
    """From any thread."""

    def __init__(self, names: list[str]) -> None:
        self._lock = threading.Lock()
        self._counts = {(name, outcome): 0 for name in names for outcome in OUTCOMES}

    def add(self, name: str, outcome: str, number: int = 1) -> int:
        """How many there are now."""
        with self._lock:
            self._counts[name, outcome] += number
            return self._counts[name, outcome]

    def get(self, name: str, outcome: str) -> int:
        with self._lock:
            return self._counts[name, outcome]

    def by_source(self) -> dict[str, dict[str, int]]:
        """Outcomes of each source."""
        with self._lock:
            found: dict[str, dict[str, int]] = {}
            for (name, outcome), number in self._counts.items():
                found.setdefault(name, {})[outcome] = number
            return found

    def render(self) -> list[str]:
        with self._lock:
            counts = list(self._counts.items())
        if not counts:
            return []
        return [
            f"# HELP {_METRIC} Samples of bridges and folders, by how they ended.",
            f"# TYPE {_METRIC} counter",
            *(f'{_METRIC}{{source="{name}",outcome="{outcome}"}} {n}' for (name, outcome), n in counts),
        ]
