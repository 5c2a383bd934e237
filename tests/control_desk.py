"""ControlService as the control plane serves it, with roles and the audit log, on a real port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from cloud.audit import AuditLog
from cloud.cli import app as cli
from cloud.domain.identities import Operator, Role
from cloud.enrolment import secret_hash
from cloud.services.control import ControlServicer, add_control_service
from cloud.services.operator_guard import OperatorGuard, TokenBook
from cloud.store import Store
from edgeloop.v1.control_service_pb2_grpc import ControlServiceStub

TOKENS = {Role.VIEWER: "elo_viewer", Role.OPERATOR: "elo_operator"}


@contextmanager
def served(store: Store, servicer: ControlServicer, *, with_tokens: bool = False) -> Iterator[str]:
    """The address to call; ``with_tokens`` asks for one of ``TOKENS``, of operators of those roles."""
    book = None
    if with_tokens:
        for role, token in TOKENS.items():
            operator = Operator(name=role.value, role=role, create_time_s=1.0, expire_time_s=0.0)
            store.add_operator(operator, secret_hash(token))
        book = TokenBook(store, "", now_s=lambda: 2.0)
    guard = OperatorGuard(AuditLog(store), book)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="control-desk")
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(interceptors=[guard])
        add_control_service(server, servicer)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(5), loop).result(60)
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


def call(address: str, method: str, request: Any, role: Role) -> Any:
    """As an operator of this role. Raises ``grpc.RpcError``."""
    metadata = (("authorization", f"Bearer {TOKENS[role]}"),)
    with grpc.insecure_channel(address) as channel:
        answer = getattr(ControlServiceStub(channel), method)(request, timeout=60, metadata=metadata)
        return list(answer) if method.startswith("Watch") else answer


def run(monkeypatch: pytest.MonkeyPatch, address: str, *arguments: str) -> int:
    """The control script; its exit code."""
    monkeypatch.setattr("sys.argv", ["edgeloop", *arguments])
    monkeypatch.setenv("EDGELOOP_SERVER", address)
    monkeypatch.setenv("COLUMNS", "200")
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
