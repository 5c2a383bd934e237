"""Which control plane acts: it waits for the lease, holds it, and says when it is lost.

Rules that this module keeps:

* Who holds the lease stops acting before the lease can be another's: the time is counted on a clock that no
  one sets, from before the call that renewed it.
* A database that does not answer is waited for; only time loses a lease that nobody took.
* A clean end gives the lease back, so that another need not wait for it to run out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloud.store import Lease
from edgeloop.errors import EdgeloopError

logger = logging.getLogger(__name__)

CONTROLLER = "controller"


class LeaseStore(Protocol):
    """What of the store is used here."""

    def claim_lease(self, name: str, holder: str, ttl_s: float) -> Lease | None: ...
    def renew_lease(self, name: str, lease: Lease, ttl_s: float) -> Lease | None: ...
    def release_lease(self, name: str, lease: Lease) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseTimes:
    """``margin_s`` before its end a lease counts as lost: stopping takes time."""

    ttl_s: float = 9.0
    renew_s: float = 2.0
    retry_s: float = 1.0
    margin_s: float = 2.0


#: SQLite has no rivals on other machines, and a busy laptop may stand still for seconds.
PATIENT = LeaseTimes(ttl_s=60.0, renew_s=10.0, retry_s=1.0, margin_s=5.0)


class Elector:
    """For one event loop. ``try_once`` or ``win``, then ``hold``, then ``give_back``, and again."""

    def __init__(self, store: LeaseStore, *, holder: str, times: LeaseTimes | None = None) -> None:
        self._store = store
        self._holder = holder
        self._times = times or LeaseTimes()
        self._lost_at_s = 0.0

    async def try_once(self) -> Lease | None:
        """The lease, or None while another holds it. Raises TransientError when the database is away."""
        before_s = time.monotonic()
        lease = await asyncio.to_thread(self._store.claim_lease, CONTROLLER, self._holder, self._times.ttl_s)
        self._note(before_s)
        return lease

    async def win(self) -> Lease:
        """Wait for the lease, however long another holds it."""
        said = ""
        while True:
            try:
                lease = await self.try_once()
            except EdgeloopError as error:
                lease = None
                if str(error) != said:
                    said = str(error)
                    logger.warning("the lease cannot be asked for, and is tried again: %s", error)
            if lease is not None:
                return lease
            await asyncio.sleep(self._times.retry_s)

    async def hold(self, lease: Lease) -> str:
        """Renew it until it is lost; returns why it was."""
        times = self._times
        while True:
            await asyncio.sleep(min(times.renew_s, max(0.0, self._lost_at_s - time.monotonic())))
            before_s = time.monotonic()
            remaining_s = self._lost_at_s - before_s
            if remaining_s <= 0:
                return "the database could not be reached in time to renew the lease"
            renewing = asyncio.to_thread(self._store.renew_lease, CONTROLLER, lease, times.ttl_s)
            try:
                renewed = await asyncio.wait_for(renewing, remaining_s)
            except TimeoutError:
                continue
            except EdgeloopError as error:
                logger.warning("the lease was not renewed: %s", error)
                await asyncio.sleep(min(times.retry_s, max(0.0, self._lost_at_s - time.monotonic())))
                continue
            if renewed is None:
                return "another control plane took the lease over"
            self._note(before_s)

    async def give_back(self, lease: Lease) -> None:
        """Let another have it at once. A database that is away keeps it until it runs out."""
        with contextlib.suppress(EdgeloopError):
            await asyncio.to_thread(self._store.release_lease, CONTROLLER, lease)

    def _note(self, before_s: float) -> None:
        self._lost_at_s = before_s + self._times.ttl_s - self._times.margin_s


def holder_name(state_dir: Path) -> str:
    """The name of the control plane whose state folder this is, made at its first start."""
    path = state_dir / "plane.id"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        name = path.read_text(encoding="ascii").strip()
        if name:
            return name
    name = secrets.token_hex(8)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(name + "\n", encoding="ascii")
    temporary.replace(path)
    return name
