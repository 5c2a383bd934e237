"""Makes batches of reports durable: many streams, one writer.

Rules kept here:

- Batches that wait while a transaction runs go into the next one together: the busier the server, the more
  rows share one flush to the disk.
- A batch's future ends after its rows are on the disk, and never before.
- The queue is bounded: ``submit`` waits for room, its stream stops reading, and gRPC's flow control holds
  the agents back.
- A batch that the database cannot take fails alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cloud.store import ReportRow, Store
from edgeloop.errors import EdgeloopError, TransientError

logger = logging.getLogger(__name__)

_MAX_QUEUED_BATCHES = 256
_MAX_ROWS = 5000


@dataclass(slots=True)
class _Batch:
    rows: Sequence[ReportRow]
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ReportWriter:
    """Belongs to one event loop; the transactions run in a thread of their own."""

    def __init__(self, store: Store, now_s: Callable[[], float]) -> None:
        self._store = store
        self._now_s = now_s
        self._queue: asyncio.Queue[_Batch | None] = asyncio.Queue(_MAX_QUEUED_BATCHES)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="report-writer")
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        #: Reports that wait (for room, or in the queue), and those that became durable. Any thread may look.
        self.num_queued = 0
        self.num_stored = 0

    async def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="report-writer")

    async def stop(self) -> None:
        """Write what is queued, then end. ``submit`` refuses from now on."""
        self._stopping = True
        if self._task is not None:
            await self._queue.put(None)
            await self._task
            self._task = None
        self._thread.shutdown()

    async def submit(self, rows: Sequence[ReportRow]) -> asyncio.Future[None]:
        """Queue a batch, waiting for room. The future ends when its rows are durable, or with the error."""
        if self._stopping or self._task is None:
            raise TransientError("the server is stopping: connect again", code="server-stopping")
        batch = _Batch(rows)
        if rows:
            self.num_queued += len(rows)
            try:
                await self._queue.put(batch)
            except BaseException:
                self.num_queued -= len(rows)
                raise
        else:
            batch.done.set_result(None)
        return batch.done

    async def _run(self) -> None:
        stopping = False
        while not stopping:
            first = await self._queue.get()
            if first is None:
                return
            batches, num_rows = [first], len(first.rows)
            while num_rows < _MAX_ROWS and not self._queue.empty():
                batch = self._queue.get_nowait()
                if batch is None:
                    stopping = True
                    break
                batches.append(batch)
                num_rows += len(batch.rows)
            await self._commit(batches)

    async def _commit(self, batches: list[_Batch]) -> None:
        error = await self._insert([row for batch in batches for row in batch.rows])
        if error is not None and not isinstance(error, EdgeloopError) and len(batches) > 1:
            for batch in batches:
                self._finish(batch, await self._insert(batch.rows))
            return
        for batch in batches:
            self._finish(batch, error)

    async def _insert(self, rows: Sequence[ReportRow]) -> Exception | None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._store.insert_reports, rows, self._now_s())
        except EdgeloopError as error:
            logger.warning("reports wait: %s", error)
            return error
        except Exception as error:  # the writer outlives whatever one batch does to it
            logger.exception("a batch of %d reports could not be stored", len(rows))
            return error
        return None

    def _finish(self, batch: _Batch, error: Exception | None) -> None:
        self.num_queued -= len(batch.rows)
        if error is None:
            self.num_stored += len(batch.rows)
        _answer(batch, error)


def _answer(batch: _Batch, error: Exception | None) -> None:
    if batch.done.done():  # its stream is gone, and nobody waits
        return
    if error is None:
        batch.done.set_result(None)
    else:
        batch.done.set_exception(error)
        batch.done.exception()  # its stream may end before it looks; the error was logged already
