"""A fixed piece of work whose time says how fast this machine is *now* (being filled in)."""

from __future__ import annotations

REFERENCE_VERSION = 1


class ReferenceKernel:
    def time_once(self) -> float:
        """Milliseconds that the work took."""
        raise NotImplementedError
