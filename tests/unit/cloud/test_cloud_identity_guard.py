"""A stream behind the guard ends without a trace of it in the log, however it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from google.protobuf.empty_pb2 import Empty

from cloud.audit import AuditLog
from cloud.services.identity_guard import IdentityGuard
from edgeloop.identity import CertificateFacts

NOW_S = 1_800_000_000.0
KNOWN = CertificateFacts(serial="1", name="gw-1", not_before_s=NOW_S, not_after_s=NOW_S + 1e6)


@pytest.mark.parametrize("how", ["cancelled", "cancelled as it ends", "ends"])
def test_a_stream_that_ends_or_is_cancelled_leaves_nothing_behind(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    guard = IdentityGuard(cast(AuditLog, None), now_s=lambda: NOW_S)

    async def admitted(method: str, context: Any) -> CertificateFacts:
        return KNOWN

    monkeypatch.setattr(guard, "_admitted", admitted)
    closed: list[str] = []

    async def main() -> None:
        last = asyncio.Event()

        async def replies(_requests: Any, _context: Any) -> AsyncIterator[str]:
            try:
                yield "first"
                await last.wait()
            finally:
                closed.append("closed")

        stream = guard.stream("/service/Method", Empty(), None, replies)  # type: ignore[arg-type]
        assert await anext(stream) == "first"
        waiting = asyncio.ensure_future(anext(stream, "over"))
        await asyncio.sleep(0.01)
        if how != "cancelled":
            last.set()
        if how == "cancelled as it ends":
            await asyncio.sleep(0)  # the last reply is told to end, and has not yet been heard of
        if how != "ends":
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            assert await waiting == "over"
        await stream.aclose()
        del stream, waiting
        await asyncio.sleep(0.01)
        gc.collect()

    gc.collect()  # what tests before this one left behind is not its own
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="asyncio"):
        asyncio.run(main())
        gc.collect()
    assert closed == ["closed"]
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert guard._live == {}
