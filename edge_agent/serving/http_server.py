"""A bounded HTTP/1.1 server on the standard library's parser.

Rules that this module keeps:

- Threads, connections, and the bytes and the time of a request are bounded: a connection too many is told so
  and closed, and whoever sends slowly is cut off by a deadline for the whole request, not for each piece.
- A body has a Content-Length, once; anything else that could make two readers disagree on where a request
  ends closes the connection.
- A refused body is read to its end, within bounds, before the answer goes out: else the reset of the
  connection could destroy the answer on its way.
- Errors are JSON, as the protocol has them.
"""

from __future__ import annotations

import io
import json
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final, cast

from edge_agent.serving import addresses
from edge_agent.serving.errors import http_status
from edgeloop.errors import EdgeloopError, RejectedError

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 32
#: A refused body is read to its end up to this size.
_MAX_DRAIN_BYTES: Final = 64 << 20
_WRITE_TIMEOUT_S: Final = 30.0
_LINGER_S: Final = 2.0
JSON: Final = "application/json"

_TOO_MANY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b'Content-Length: 75\r\n\r\n{"error":"all connections are in use; try again","code":"connections-busy"}'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a client asks, its body still to be read."""

    method: str
    #: Without the query.
    path: str
    headers: Mapping[str, str]
    #: Reads the whole body, of at most so many bytes. Raises ``RejectedError``.
    read_body: Callable[[int], bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = field(default=())


Answer = Callable[[Request], Response]


def json_response(said: object, status: int = 200) -> Response:
    """A small answer."""
    return Response(body=json.dumps(said, separators=(",", ":")).encode(), status=status)


class _DeadlineReader(io.RawIOBase):
    """Reads a socket until a moment, however the bytes trickle in."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline_s = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "edgeloop-agent"
    # Headers and body leave in one piece, at once.
    wbufsize = -1
    server: HttpServer

    # One response is one write: waiting for more would only delay it.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self._reader = _DeadlineReader(self.connection)
        self.rfile: io.BufferedReader = io.BufferedReader(self._reader)
        self._linger = False
        self._body_left = 0
        self._must_continue = False

    def finish(self) -> None:
        super().finish()
        if self._linger:
            # What is still on its way is read and dropped, so that the client sees the answer first.
            self._reader.deadline_s = time.monotonic() + _LINGER_S
            self.connection.shutdown(socket.SHUT_WR)
            buffer = bytearray(64 << 10)
            while self._reader.readinto(buffer):
                pass

    def version_string(self) -> str:
        return self.server_version

    def address_string(self) -> str:
        return str(self.client_address[0]) if self.client_address else "unix"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        logger.debug("%s " + format, self.address_string(), *args)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass

    def handle_one_request(self) -> None:
        self._reader.deadline_s = time.monotonic() + self.server.idle_timeout_s
        self._body_left, self._must_continue = 0, False
        try:
            if not self.rfile.peek(1):
                self.close_connection = True
                return
        except OSError:  # silent for too long, or gone
            self.close_connection = True
            return
        self._reader.deadline_s = time.monotonic() + self.server.request_timeout_s
        try:
            super().handle_one_request()
        except (OSError, ValueError) as error:
            logger.debug("connection ended: %s", error)
            self.close_connection = True

    def handle_expect_100(self) -> bool:
        # Said only once the size of the body is known to be welcome.
        self._must_continue = True
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The base class calls this for requests that it cannot parse."""
        self.close_connection = self._linger = True
        # Else it would be taken for the version before there were headers.
        self.request_version = self.protocol_version
        self._send(json_response({"error": message or HTTPStatus(code).phrase}, code))
        self.wfile.flush()

    def _answer(self) -> None:
        try:
            self._body_left = self._content_length()
            response = self.server.answer(
                Request(
                    method=self.command,
                    path=self.path.partition("?")[0],
                    headers=cast(Mapping[str, str], self.headers),
                    read_body=self._read_body,
                )
            )
        except EdgeloopError as error:
            response = json_response({"error": error.message, "code": error.code}, http_status(error))
        except OSError:
            raise
        except Exception:
            # One request must not end more than itself.
            logger.exception("a request failed in an unforeseen way")
            response = json_response({"error": "the agent failed: its log says why"}, 500)
        self._drain()
        if self.server.stopping:
            self.close_connection = True
        self._send(response)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = _answer  # noqa: N815 - as above

    def _content_length(self) -> int:
        lengths = self.headers.get_all("Content-Length") or []
        if self.headers.get("Transfer-Encoding") is not None or len(lengths) > 1:
            self.close_connection = self._linger = True
            raise RejectedError("send one Content-Length, and no Transfer-Encoding", code="length-missing")
        if not lengths:
            if self.command in ("POST", "PUT", "PATCH"):
                self.close_connection = self._linger = True
                raise RejectedError("the request has no Content-Length", code="length-missing")
            return 0
        text = lengths[0].strip()
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            self.close_connection = self._linger = True
            raise RejectedError("Content-Length is not a number of bytes", code="request-field")
        return int(text)

    def _read_body(self, max_bytes: int) -> bytes:
        if self._body_left > max_bytes:
            raise RejectedError(
                f"the request has {self._body_left} bytes, at most {max_bytes} are taken",
                code="request-too-large",
            )
        if self._must_continue and self._body_left:
            self._must_continue = False
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.wfile.flush()
        body = self.rfile.read(self._body_left)
        if len(body) != self._body_left:
            raise ConnectionError("the client left before the end of its request")
        self._body_left = 0
        return body

    def _drain(self) -> None:
        if self._body_left and self._must_continue:
            # It waits to be asked for the body, and is not asked.
            self.close_connection = True
        elif self._body_left > _MAX_DRAIN_BYTES:
            self.close_connection = self._linger = True
        else:
            while self._body_left:
                piece = self.rfile.read(min(self._body_left, 64 << 10))
                if not piece:
                    raise ConnectionError("the client left before the end of its request")
                self._body_left -= len(piece)

    def _send(self, response: Response) -> None:
        self.connection.settimeout(_WRITE_TIMEOUT_S)
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        for name, value in response.headers:
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)


class _UnixHandler(_Handler):
    # A unix socket knows no such option.
    disable_nagle_algorithm = False


class HttpServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves from `start` to `stop`, with a thread for each connection."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self,
        address: addresses.Address,
        answer: Answer,
        *,
        max_connections: int = MAX_CONNECTIONS,
        idle_timeout_s: float = 60.0,
        request_timeout_s: float = 30.0,
    ) -> None:
        """Binds. Raises ``OSError``."""
        self.answer = answer
        self.idle_timeout_s = idle_timeout_s
        self.request_timeout_s = request_timeout_s
        self.stopping = False
        self._free = threading.BoundedSemaphore(max_connections)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._idle = threading.Condition(self._lock)
        if isinstance(address, Path):
            self.address_family, bound = socket.AF_UNIX, cast(Any, str(address))
        else:
            self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            bound = (address.host, address.port)
        super().__init__(bound, _UnixHandler if isinstance(address, Path) else _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="oip-rest", daemon=True)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Takes no more; requests under way may end within ``grace_s``."""
        self.stopping = True
        if self._thread.is_alive():
            self.shutdown()
        self.server_close()
        with self._lock:
            for connection in self._connections:
                # Its reader sees the end, its writer may go on.
                try:
                    connection.shutdown(socket.SHUT_RD)
                except OSError:
                    logger.debug("a connection was gone already")
            self._idle.wait_for(lambda: not self._connections, grace_s)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            logger.warning("connection refused: all of them are in use")
            try:
                request.settimeout(0.2)
                request.sendall(_TOO_MANY)
            except OSError:
                logger.debug("a refused client was gone already")
            self.shutdown_request(request)
            return
        with self._lock:
            self._connections.add(request)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a connection failed", exc_info=True)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)
            self._idle.notify_all()
        self._free.release()
