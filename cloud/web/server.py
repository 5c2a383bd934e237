"""The port of the page: HTTP/1.1 over TLS, one answer a connection, read-only.

Rules that this module keeps:

* Whoever wants to see anything shows an operator's token (role viewer or operator), as a password of Basic
  authentication, which browsers ask for, or as a bearer token. Only ``/healthz`` answers without.
* Without keys there is no token, and the port is on loopback. Then the request must name loopback: a page of
  somebody else's that points its own name at this machine reads nothing.
* A connection has some seconds for all it does, and a request some kilobytes. Connections are bounded, in all
  and from one address, as are requests and wrong tokens from one address in a minute.
* Nothing here changes anything, so there is neither a session nor a form.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import http.client
import io
import logging
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from cloud.audit import AuditLog
from cloud.services.peers import FailureLimiter
from cloud.settings import is_loopback
from cloud.web.page import HEADERS, REFRESH_S
from edgeloop.errors import ConfigError, EdgeloopError, TransientError

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 8192
MAX_CONNECTIONS = 64
MAX_CONNECTIONS_OF_ONE = 16
REQUESTS_A_MINUTE_OF_ONE = 120
_DEADLINE_S = 10.0
_HANDSHAKE_S = 5.0
_HTML = "text/html; charset=utf-8"
_TEXT = "text/plain; charset=utf-8"


class Tokens(Protocol):
    """Who has which token. ``caller`` raises ConfigError for one that counts for nothing."""

    def caller(self, token: str) -> object: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer; the body is left out for HEAD."""

    code: HTTPStatus
    body: bytes
    content_type: str = _TEXT
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self, *, with_body: bool) -> bytes:
        said = {
            "Content-Type": self.content_type,
            "Content-Length": str(len(self.body)),
            "Connection": "close",
            **HEADERS,
            **self.headers,
        }
        lines = [f"HTTP/1.1 {self.code.value} {self.code.phrase}", *(f"{k}: {v}" for k, v in said.items())]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        return head + self.body if with_body else head


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What of a request counts here."""

    method: str
    path: str
    host: str
    authorization: str


def parse(head: bytes) -> Request | None:
    """The head of a request, or None for what is none. It may have no body, so none is waited for."""
    first, _, rest = head.partition(b"\r\n")
    words = first.decode("latin-1").split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0") or not words[1].startswith("/"):
        return None
    try:
        headers = http.client.parse_headers(io.BytesIO(rest))
    except http.client.HTTPException:
        return None
    if len(headers.get_all("host") or []) > 1 or len(headers.get_all("authorization") or []) > 1:
        return None
    return Request(
        method=words[0],
        path=words[1].partition("?")[0],
        host=headers.get("host", ""),
        authorization=headers.get("authorization", ""),
    )


def token_of(authorization: str) -> str:
    """The token in an Authorization header: a bearer's, or the password of Basic; empty without."""
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        text = base64.b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
    return text.partition(":")[2].strip()


def names_loopback(host: str) -> bool:
    """Whether a Host header names this machine as only it names itself."""
    name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
    return is_loopback(name.lower())


def server_context(key_file: Path, certificate_file: Path) -> ssl.SSLContext:
    """TLS 1.3 with the server's own certificate. Raises ``ConfigError`` when the files do not serve."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate_file, key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{certificate_file} and {key_file} cannot be used ({error}): 'edgeloop keys renew'"
            " makes them anew",
            code="tls-files",
        ) from None
    return context


class WebServer:
    """``start`` once, then ``stop`` once, both from the event loop.

    ``tokens`` None: whoever names loopback may look, or, where somebody said --insecure, ``anybody``.
    """

    def __init__(
        self,
        html: Callable[[], bytes],
        audit: AuditLog,
        tokens: Tokens | None,
        *,
        context: ssl.SSLContext | None = None,
        anybody: bool = False,
        failures: FailureLimiter | None = None,
        requests: FailureLimiter | None = None,
        deadline_s: float = _DEADLINE_S,
    ) -> None:
        self._html = html
        self._audit = audit
        self._tokens = tokens
        self._context = context
        self._anybody = anybody
        self._failures = failures or FailureLimiter()
        self._requests = requests or FailureLimiter(limit=REQUESTS_A_MINUTE_OF_ONE)
        self._deadline_s = deadline_s
        self._connections: Counter[str] = Counter()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None, "start it first"
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self, host: str, port: int) -> None:
        """Answer from now on. Raises ``ConfigError`` for a port that cannot be had."""
        try:
            self._server = await asyncio.start_server(
                self._connected,
                host,
                port,
                limit=MAX_REQUEST_BYTES,
                ssl=self._context,
                ssl_handshake_timeout=_HANDSHAKE_S if self._context is not None else None,
                ssl_shutdown_timeout=_HANDSHAKE_S if self._context is not None else None,
            )
        except OSError as error:
            raise ConfigError(
                f"web_port {port} on {host} cannot be listened on ({error.strerror}): choose another with"
                " --web-port",
                code="port-in-use",
            ) from None

    async def stop(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = writer.get_extra_info("peername")
        peer = str(name[0]) if name else ""
        if self._connections.total() >= MAX_CONNECTIONS or self._connections[peer] >= MAX_CONNECTIONS_OF_ONE:
            writer.transport.abort()
            return
        self._connections[peer] += 1
        self._writers.add(writer)
        # So that ``drain`` waits for all of it: nobody holds an answer in our memory by not reading it.
        writer.transport.set_write_buffer_limits(0)
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._converse(reader, writer, peer)
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            logger.debug("web: a connection from %s came to nothing", peer)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._connections[peer] -= 1
            if not self._connections[peer]:
                del self._connections[peer]

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        request: Request | None = None
        try:
            request = parse(await reader.readuntil(b"\r\n\r\n"))
            answer = _plain(HTTPStatus.BAD_REQUEST, "this is no request")
            if request is not None:
                answer = await self._answer(request, peer)
        except asyncio.LimitOverrunError:
            answer = _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too long")
        writer.write(answer.encoded(with_body=request is None or request.method != "HEAD"))
        await writer.drain()

    async def _answer(self, request: Request, peer: str) -> Answer:
        try:
            self._requests.check(peer)
            self._requests.failed(peer)
            if request.method not in ("GET", "HEAD"):
                return _plain(HTTPStatus.METHOD_NOT_ALLOWED, "this page is read-only", Allow="GET, HEAD")
            if request.path == "/healthz":
                return _plain(HTTPStatus.OK, "ok")
            if self._tokens is None and not self._anybody and not names_loopback(request.host):
                return _plain(HTTPStatus.MISDIRECTED_REQUEST, "ask for localhost or 127.0.0.1")
            if self._tokens is not None:
                await self._admit(request, peer, self._tokens)
            if request.path != "/":
                return _plain(HTTPStatus.NOT_FOUND, "there is one page: /")
            page = await asyncio.to_thread(self._html)
        except ConfigError as error:
            asks = {
                "WWW-Authenticate": 'Basic realm="edgeloop: any name, a token as password", charset="UTF-8"'
            }
            return _plain(HTTPStatus.UNAUTHORIZED, error.message, **asks)
        except TransientError as error:
            if error.code == "too-many-failures":
                return _plain(
                    HTTPStatus.TOO_MANY_REQUESTS, "too much: wait a minute", **{"Retry-After": "60"}
                )
            return _plain(HTTPStatus.SERVICE_UNAVAILABLE, error.code, Refresh=str(REFRESH_S))
        except EdgeloopError as error:
            return _plain(HTTPStatus.SERVICE_UNAVAILABLE, error.code, Refresh=str(REFRESH_S))
        return Answer(code=HTTPStatus.OK, body=page, content_type=_HTML, headers={"Refresh": str(REFRESH_S)})

    async def _admit(self, request: Request, peer: str, tokens: Tokens) -> None:
        """Raises what ``_answer`` makes an answer of."""
        token = token_of(request.authorization)
        if not token:  # how every browser begins: neither a failure nor worth a line
            raise ConfigError(
                "sign in with any name and, as password, a token of 'edgeloop operator create NAME --role"
                " viewer'",
                code="token-missing",
            )
        try:
            self._failures.check(peer)
            await asyncio.to_thread(tokens.caller, token)
        except EdgeloopError as error:
            if isinstance(error, ConfigError):
                self._failures.failed(peer)
            await asyncio.to_thread(self._audit.refused, "unknown", "web", "", error.message, peer=peer)
            raise


def _plain(code: HTTPStatus, text: str, **headers: str) -> Answer:
    return Answer(code=code, body=f"{text}\n".encode(), headers=headers)
