"""Makes enrolments durable: many callers, one writer.

Rules kept here:

- What waits while a transaction runs goes into the next one together: a fleet that enrols at once shares its
  flushes to the disk, and one device alone waits for nobody.
- A caller is answered after its spent token, its certificate and its entry in the audit log are on the disk.
  They are one transaction: none of the three is there without the others.
- Whoever is refused keeps nobody else from enrolling. When the database fails a whole batch in an unforeseen
  way, each is tried alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from cloud.audit import AuditLog
from cloud.enrolment import Enrolment, Issued
from cloud.store import Store
from edgeloop.errors import TransientError

logger = logging.getLogger(__name__)

#: Signing them holds other writers up for a few hundredths of a second.
MAX_BATCH: Final = 32


@dataclass(slots=True)
class _Waiting:
    token: str
    request: bytes
    peer: str
    done: asyncio.Future[Issued] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class EnrolmentWriter:
    """Belongs to one event loop; signing and transactions run in a thread of their own.

    The server bounds how many wait (``MAX_CONCURRENT_CALLS``).
    """

    def __init__(self, store: Store, enrolment: Enrolment, audit: AuditLog) -> None:
        self._store = store
        self._enrolment = enrolment
        self._audit = audit
        self._queue: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="enrolment-writer")
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="enrolment-writer")

    async def stop(self) -> None:
        """Finish those that wait, then end. ``enrol`` refuses from now on."""
        self._stopping = True
        if self._task is not None:
            self._queue.put_nowait(None)
            await self._task
            self._task = None
        self._thread.shutdown()

    async def enrol(self, token: str, request: bytes, peer: str) -> Issued:
        """The first certificate of a device. Raises ``EdgeloopError``."""
        if self._stopping or self._task is None:
            raise TransientError("the server is stopping: try again", code="server-stopping")
        waiting = _Waiting(token, request, peer)
        self._queue.put_nowait(waiting)
        return await waiting.done

    async def _run(self) -> None:
        stopping = False
        while not stopping:
            first = await self._queue.get()
            if first is None:
                return
            batch = [first]
            while len(batch) < MAX_BATCH and not self._queue.empty():
                following = self._queue.get_nowait()
                if following is None:
                    stopping = True
                    break
                batch.append(following)
            await self._answer(batch)

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        try:
            outcomes: Sequence[Issued | Exception] = await loop.run_in_executor(
                self._thread, self._commit, batch
            )
        except Exception as error:  # noqa: BLE001 - each caller gets it, and the servicer sorts and logs it
            if len(batch) > 1 and not isinstance(error, TransientError):
                for waiting in batch:
                    await self._answer([waiting])
                return
            outcomes = [error] * len(batch)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.done.done():  # its call is gone; what was committed stays
                continue
            if isinstance(outcome, Exception):
                waiting.done.set_exception(outcome)
            else:
                waiting.done.set_result(outcome)

    def _commit(self, batch: Sequence[_Waiting]) -> Sequence[Issued | Exception]:
        with self._store.transaction():
            outcomes = self._enrolment.enrol_all([(waiting.token, waiting.request) for waiting in batch])
            self._store.add_audit(
                *(
                    self._audit.entry(
                        f"device:{outcome.facts.name}",
                        "Enrol",
                        outcome.facts.name,
                        f"certificate {outcome.facts.serial}",
                        peer=waiting.peer,
                    )
                    for waiting, outcome in zip(batch, outcomes, strict=True)
                    if isinstance(outcome, Issued)
                )
            )
        return outcomes
