"""The page's port: who gets in, and what it bears."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cloud.audit import AuditLog
from cloud.domain.identities import AuditEntry
from cloud.pki.key_folder import init_folder
from cloud.services.peers import FailureLimiter
from cloud.web.server import (
    MAX_CONNECTIONS_OF_ONE,
    WebServer,
    names_loopback,
    parse,
    server_context,
    token_of,
)
from edgeloop.errors import ConfigError, TransientError

TOKEN = "elo_right"
PAGE = b"<!doctype html><p>the fleet</p>"


class Book:
    """One token counts."""

    def caller(self, token: str) -> object:
        if token != TOKEN:
            raise ConfigError("the token is not known", code="token-unknown")
        return "operator:view"


class Log:
    """An audit log's store, in memory."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    def add_audit(self, entry: AuditEntry) -> None:
        self.entries.append(entry)


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


def with_server(
    test: Callable[[WebServer, Log], Awaitable[None]],
    *,
    tokens: Book | None = None,
    html: Callable[[], bytes] = lambda: PAGE,
    deadline_s: float = 60.0,
    context: ssl.SSLContext | None = None,
    failures: FailureLimiter | None = None,
    requests: FailureLimiter | None = None,
) -> None:
    async def run() -> None:
        log = Log()
        server = WebServer(
            html,
            AuditLog(log),
            tokens,
            deadline_s=deadline_s,
            context=context,
            failures=failures,
            requests=requests,
        )
        await server.start("127.0.0.1", 0)
        try:
            await test(server, log)
        finally:
            await server.stop()

    asyncio.run(run())


async def answers(server: WebServer) -> None:
    """Returns once it does: what it had to do with others takes as long as it takes."""
    async with asyncio.timeout(60):
        while (await ask(server))[0] != 200:
            await asyncio.sleep(0.02)


async def ask(
    server: WebServer,
    path: str = "/",
    *,
    method: str = "GET",
    host: str = "localhost",
    raw: bytes | None = None,
    tls: ssl.SSLContext | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """Code, headers in lower case, body; code 0 when the connection just ended."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", server.port, ssl=tls, server_hostname="edge.test" if tls else None
    )
    head = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host}:{server.port}",
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    writer.write(raw if raw is not None else "\r\n".join([*head, "", ""]).encode())
    try:
        answer = await asyncio.wait_for(reader.read(), 60)
    except ConnectionError:
        answer = b""
    writer.transport.abort()
    if not answer:
        return 0, {}, b""
    top, _, body = answer.partition(b"\r\n\r\n")
    lines = top.decode().split("\r\n")
    found = dict(line.split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), {name.lower(): value for name, value in found.items()}, body


def test_the_page_is_for_those_with_a_token_and_says_how_to_show_it() -> None:
    async def test(server: WebServer, log: Log) -> None:
        code, headers, body = await ask(server)
        assert code == 401
        assert headers["www-authenticate"].startswith("Basic ")
        assert b"edgeloop operator create" in body
        assert PAGE not in body
        assert log.entries == []  # how every browser begins
        for proof in (basic(TOKEN), f"Bearer {TOKEN}"):
            code, headers, body = await ask(server, Authorization=proof)
            assert (code, body) == (200, PAGE)
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-frame-options"] == "DENY"
            assert headers["cache-control"] == "no-store"
            assert int(headers["refresh"]) > 0
        code, _, body = await ask(server, method="HEAD", Authorization=basic(TOKEN))
        assert (code, body) == (200, b"")

    with_server(test, tokens=Book())


@pytest.mark.parametrize(
    "proof",
    [basic("elo_wrong"), "Bearer elo_wrong", "Basic !!!", "Basic", "Digest x", f"Basic {TOKEN}", TOKEN],
)
def test_wrong_proof_shows_nothing(proof: str) -> None:
    async def test(server: WebServer, log: Log) -> None:
        code, _, body = await ask(server, Authorization=proof)
        assert code == 401
        assert PAGE not in body
        assert all(entry.action == "web" and entry.outcome == "refused" for entry in log.entries)
        assert len(log.entries) == (1 if "elo_wrong" in str(token_of(proof)) else 0)

    with_server(test, tokens=Book())


def test_who_guesses_has_to_wait_and_the_right_token_with_him() -> None:
    async def test(server: WebServer, log: Log) -> None:
        codes = [(await ask(server, Authorization=basic(f"guess-{n}")))[0] for n in range(4)]
        assert codes == [401, 401, 401, 429]
        code, headers, _ = await ask(server, Authorization=basic(TOKEN))
        assert code == 429
        assert int(headers["retry-after"]) > 0

    with_server(test, tokens=Book(), failures=FailureLimiter(limit=3))


def test_requests_of_one_address_are_bounded() -> None:
    async def test(server: WebServer, _log: Log) -> None:
        codes = [(await ask(server, "/healthz"))[0] for _ in range(5)]
        assert codes == [200, 200, 200, 429, 429]

    with_server(test, requests=FailureLimiter(limit=3))


def test_health_needs_no_token_and_nothing_else_is_there() -> None:
    async def test(server: WebServer, _log: Log) -> None:
        assert (await ask(server, "/healthz"))[::2] == (200, b"ok\n")
        assert (await ask(server, "/etc/passwd"))[0] == 401
        proof = basic(TOKEN)
        assert (await ask(server, "/etc/passwd", Authorization=proof))[0] == 404
        assert (await ask(server, "/../", Authorization=proof))[0] == 404
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert (await ask(server, method=method, Authorization=proof))[0] == 405

    with_server(test, tokens=Book())


def test_without_keys_only_who_names_loopback_reads() -> None:
    async def test(server: WebServer, _log: Log) -> None:
        assert (await ask(server, host="127.0.0.1"))[0] == 200
        assert (await ask(server, host="evil.example"))[0] == 421
        assert (await ask(server, raw=b"GET / HTTP/1.0\r\n\r\n"))[0] == 421

    with_server(test)


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("localhost", True),
        ("LOCALHOST:8443", True),
        ("127.0.0.1:1", True),
        ("[::1]:8443", True),
        ("[::1]", True),
        ("localhost.evil.example", False),
        ("evil.example:127", False),
        ("", False),
        ("[::2]:80", False),
    ],
)
def test_what_counts_as_loopback(host: str, is_ours: bool) -> None:
    assert names_loopback(host) is is_ours


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"\x16\x03\x01\x00\xff\xff\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
    ],
)
def test_what_is_no_request_is_told_so(raw: bytes) -> None:
    assert parse(raw) is None

    async def test(server: WebServer, _log: Log) -> None:
        assert (await ask(server, raw=raw))[0] == 400

    with_server(test)


def test_a_long_request_ends_and_one_that_never_ends_too() -> None:
    async def test(server: WebServer, _log: Log) -> None:
        code, _, _ = await ask(server, raw=b"GET / HTTP/1.1\r\nCookie: " + b"a" * 100_000)
        assert code in (0, 431)
        assert (await ask(server, raw=b"GET / HTTP/1.1\r\nHost: loc"))[0] == 0
        await answers(server)

    with_server(test, deadline_s=0.3)


def test_one_address_holds_so_many_connections_and_no_more() -> None:
    async def test(server: WebServer, _log: Log) -> None:
        held = [
            await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MAX_CONNECTIONS_OF_ONE)
        ]
        await asyncio.sleep(0.1)
        assert (await ask(server))[0] == 0
        for _, writer in held:
            writer.transport.abort()
        await answers(server)

    with_server(test)


def test_who_does_not_read_holds_no_answer() -> None:
    async def test(server: WebServer, _log: Log) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.sleep(1.0)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(64 << 20), 60)
        writer.transport.abort()

    with_server(test, html=lambda: b"x" * (64 << 20), deadline_s=0.3)


def test_a_database_that_is_away_is_told_and_asked_again() -> None:
    def away() -> bytes:
        raise TransientError("postgres is at lunch", code="database-away")

    async def test(server: WebServer, _log: Log) -> None:
        code, headers, body = await ask(server)
        assert (code, body) == (503, b"database-away\n")
        assert int(headers["refresh"]) > 0

    with_server(test, html=away)


def test_tls_shows_the_servers_certificate_and_bears_bad_handshakes(tmp_path: Path) -> None:
    init_folder(tmp_path, ["edge.test"])
    context = server_context(tmp_path / "control" / "server.key", tmp_path / "control" / "server.crt")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "operator" / "ca.crt"))
    old = ssl.create_default_context(cafile=str(tmp_path / "operator" / "ca.crt"))
    old.maximum_version = ssl.TLSVersion.TLSv1_2

    async def test(server: WebServer, _log: Log) -> None:
        assert (await ask(server, tls=trusting, Authorization=basic(TOKEN)))[::2] == (200, PAGE)
        for refused in (old, ssl.create_default_context()):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await ask(server, tls=refused, Authorization=basic(TOKEN))
        for _ in range(50):
            assert PAGE not in (await ask(server, raw=b"GET / HTTP/1.1\r\n\r\n"))[2]
        half_open = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(50)]
        for _, writer in half_open:
            writer.write(b"\x16\x03\x01\x02\x00 and no more")
        assert (await ask(server, tls=trusting, Authorization=basic(TOKEN)))[0] == 200
        for _, writer in half_open:
            writer.transport.abort()

    with_server(test, tokens=Book(), context=context)


def test_files_that_do_not_serve_are_named(tmp_path: Path) -> None:
    (tmp_path / "server.key").write_text("no key")
    (tmp_path / "server.crt").write_text("no certificate")
    with pytest.raises(ConfigError, match=r"server\.crt"):
        server_context(tmp_path / "server.key", tmp_path / "server.crt")
