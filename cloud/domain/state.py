"""skeleton; rules follow"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyState:
    """What the policy remembers of one profile between decisions. ``PolicyState()`` to begin with."""

    def to_json(self) -> str:
        """Canonical JSON."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of ``to_json``."""
        raise NotImplementedError
