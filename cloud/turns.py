"""Whose turn it is to act: this control plane's when it holds the lease, another's otherwise.

Rules that this module keeps:

* Acting begins after the lease was won and ends before it is given back.
* Whatever fails while acting, this control plane stands by and tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from cloud.acting import Acting
from cloud.elector import CONTROLLER, PATIENT, Elector, LeaseTimes
from cloud.store import Lease, Store

logger = logging.getLogger(__name__)

_RETRY_S = 5.0


class Turns:
    """``start`` once, then ``stop`` once, from one event loop."""

    def __init__(self, store: Store, acting: Acting, *, holder: str) -> None:
        self._store = store
        self._acting = acting
        times = PATIENT if store.is_single_machine else LeaseTimes()
        self._elector = Elector(store, holder=holder, times=times)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Act at once where nobody else does; stand by otherwise, and act when it is our turn."""
        lease = await self._elector.try_once()
        if lease is None:
            current = await asyncio.to_thread(self._store.lease, CONTROLLER)
            logger.info("standing by: control plane %s acts", current.holder if current else "unknown")
        else:
            await self._begin(lease)
        self._task = asyncio.create_task(self._take(lease), name="elector")

    async def stop(self) -> None:
        """Act no more, and give the lease back."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _begin(self, lease: Lease) -> None:
        logger.info("acting, as number %d of those that did", lease.epoch)
        try:
            await self._acting.start(lease.epoch)
        except BaseException:
            await self._acting.stop()
            await self._elector.give_back(lease)
            raise

    async def _take(self, lease: Lease | None) -> None:
        elector, acting = self._elector, self._acting
        while True:
            try:
                if lease is None:
                    lease = await elector.win()
                    await self._begin(lease)
                held, lease = lease, None
                try:
                    logger.warning("this control plane stands by again: %s", await elector.hold(held))
                finally:
                    await acting.stop()
                    await elector.give_back(held)
            except Exception:
                lease = None
                logger.exception("acting failed: this control plane stands by, and tries again")
                await asyncio.sleep(_RETRY_S)
