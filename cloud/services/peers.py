"""Where calls come from, and how many that fail are taken from one place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from urllib.parse import unquote

from edgeloop.errors import TransientError

_MAX_PEERS = 10_000


def peer_host(peer: str) -> str:
    """The address in what gRPC calls a peer: ``ipv4:192.0.2.1:5000`` is ``192.0.2.1``."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer[:100]
    return rest.rpartition(":")[0].strip("[]")[:100]


class FailureLimiter:
    """After ``limit`` failures within ``window_s``, a peer waits until the window has passed.

    Success costs nothing, so that a thousand gateways behind one address enrol without waiting. Safe to call
    from any thread; forgets the oldest peers rather than grow without bound.
    """

    def __init__(
        self, *, limit: int = 10, window_s: float = 60.0, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._window_s = window_s
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[float, int]] = {}

    def check(self, peer: str) -> None:
        """Raises ``TransientError`` ("too-many-failures") for a peer that must wait."""
        with self._lock:
            began_s, count = self._failures.get(peer, (0.0, 0))
            left_s = began_s + self._window_s - self._clock_s()
            if count >= self._limit and left_s > 0:
                raise TransientError(
                    f"{count} attempts from {peer} failed: try again in {left_s:.0f} s",
                    code="too-many-failures",
                )

    def failed(self, peer: str) -> None:
        """Count one."""
        with self._lock:
            now_s = self._clock_s()
            began_s, count = self._failures.pop(peer, (now_s, 0))
            if now_s - began_s >= self._window_s:
                began_s, count = now_s, 0
            self._failures[peer] = (began_s, count + 1)
            while len(self._failures) > _MAX_PEERS:
                self._failures.pop(next(iter(self._failures)))
