"""The log of who did what, and of who tried and was refused.

Rules kept here:

- Writing the log never fails the call that it is about; a log that cannot be written is an error in the
  server's own log. Only ``entry`` differs: who writes it in the transaction of what it is about has both, or
  neither.
- Refusals are bounded, for each peer and in all: whoever floods the server with bad calls fills no disk. What
  is left out is counted, and the count is written with the next refusal.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from cloud.domain.identities import AuditEntry
from edgeloop.errors import EdgeloopError

logger = logging.getLogger(__name__)

REFUSALS_A_MINUTE = 600
REFUSALS_A_MINUTE_OF_ONE = 30


class AuditStore(Protocol):
    """What of the store is used here."""

    def add_audit(self, *entries: AuditEntry) -> None: ...


@dataclass(slots=True)
class _Minute:
    began_s: float
    num_written: int = 0
    num_left_out: int = 0
    of_peer: dict[str, int] = field(default_factory=dict)


class AuditLog:
    """Safe to call from any thread; writes to the database before it returns."""

    def __init__(self, store: AuditStore, now_s: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now_s = now_s
        self._lock = threading.Lock()
        self._minute = _Minute(began_s=float("-inf"))

    def done(self, actor: str, action: str, target: str = "", message: str = "", *, peer: str = "") -> None:
        """Somebody did something."""
        self._write(actor, action, target, "done", message, peer)

    def refused(
        self, actor: str, action: str, target: str = "", message: str = "", *, peer: str = ""
    ) -> None:
        """Somebody tried."""
        left_out = self._admit(peer)
        if left_out is None:
            return
        logger.warning("refused: %s by %s from %s: %s", action, actor, peer or "?", message)
        if left_out:
            self._write("unknown", "refusals", "", "refused", f"{left_out} more were not written down", "")
        self._write(actor, action, target, "refused", message, peer)

    def entry(
        self, actor: str, action: str, target: str = "", message: str = "", *, peer: str = ""
    ) -> AuditEntry:
        """What ``done`` writes, for those who write it themselves."""
        return self._entry(actor, action, target, "done", message, peer)

    def _admit(self, peer: str) -> int | None:
        """None to leave this one out; else how many of the last minute were."""
        now_s = self._now_s()
        with self._lock:
            left_out = 0
            if not 0 <= now_s - self._minute.began_s < 60:
                left_out = self._minute.num_left_out
                self._minute = _Minute(began_s=now_s)
            minute = self._minute
            num_of_peer = minute.of_peer.get(peer, 0)
            if minute.num_written >= REFUSALS_A_MINUTE or num_of_peer >= REFUSALS_A_MINUTE_OF_ONE:
                minute.num_left_out += 1
                return None
            minute.num_written += 1
            minute.of_peer[peer] = num_of_peer + 1
            return left_out

    def _entry(
        self, actor: str, action: str, target: str, outcome: str, message: str, peer: str
    ) -> AuditEntry:
        return AuditEntry(
            event_time_s=self._now_s(),
            actor=actor,
            action=action,
            target=target,
            outcome=outcome,
            message=message,
            peer=peer,
        )

    def _write(self, actor: str, action: str, target: str, outcome: str, message: str, peer: str) -> None:
        entry = self._entry(actor, action, target, outcome, message, peer)
        try:
            self._store.add_audit(entry)
        except EdgeloopError:
            logger.exception("the audit log could not be written: %s", entry)
