"""The agent's own HTTP server, over real sockets: what is in doubt, slow, too much or noise."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine import wait_until

from edge_agent.config import Endpoint
from edge_agent.serving.http_server import HttpServer, Request, Response

LOCAL = Endpoint(host="127.0.0.1", port=0)


def answer(request: Request) -> Response:
    body = request.read_body(1000)
    return Response(body=request.method.encode() + b" " + body)


@pytest.fixture(scope="module")
def http_server() -> Iterator[HttpServer]:
    server = HttpServer(LOCAL, answer, max_connections=8, idle_timeout_s=60, request_timeout_s=60)
    server.start()
    yield server
    server.stop(1)


@pytest.fixture
def hurried_server() -> Iterator[HttpServer]:
    server = HttpServer(LOCAL, answer, idle_timeout_s=60, request_timeout_s=0.5)
    server.start()
    yield server
    server.stop(1)


def exchange(server: HttpServer, *pieces: bytes) -> bytes:
    """All that the server says until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        with contextlib.suppress(OSError):
            for piece in pieces:
                connection.sendall(piece)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        said = bytearray()
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                said += piece
        return bytes(said)


GOOD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"


def test_requests_follow_each_other_on_one_connection(http_server) -> None:
    said = exchange(http_server, GOOD + GOOD)
    assert said.count(b"HTTP/1.1 200 OK") == 2
    assert said.endswith(b"POST abc")


@pytest.mark.parametrize(
    ("head", "status_code"),
    [
        (b"POST / HTTP/1.1\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3x\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\nabc", 413),
        (b"BREW / HTTP/1.1\r\n\r\n", 501),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: a\r\n" % n for n in range(200)) + b"\r\n", 431),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
    ],
)
def test_a_request_whose_end_is_in_doubt_is_refused_and_ends_the_connection(
    http_server, head, status_code
) -> None:
    said = exchange(http_server, head + GOOD)
    assert said.startswith(b"HTTP/1.1 %d " % status_code)
    assert said.count(b"HTTP/1.1") == 1
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize(
    "request_bytes",
    [GOOD, b"POST / HTTP/1.1\r\nContent-Length: 50\r\n\r\n" + b"a" * 50],
    ids=["head", "body"],
)
def test_whoever_sends_slowly_is_cut_off(hurried_server, request_bytes) -> None:
    """Each byte comes in good time, all of them together do not: the last one is never sent."""
    with socket.create_connection(("127.0.0.1", hurried_server.port), timeout=60) as connection:
        with contextlib.suppress(OSError):
            for byte in request_bytes[:-1]:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        said = b""
        with contextlib.suppress(ConnectionError):
            said = connection.recv(65536)  # returns when the server ends it, or raises TimeoutError
    assert b"200 OK" not in said


def test_a_connection_too_many_is_told_so_and_the_others_go_on(http_server) -> None:
    wait_until(lambda: not http_server._connections)  # those of the test before end on threads of their own
    with contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", http_server.port), timeout=60))
            for _ in range(8)
        ]
        wait_until(lambda: len(http_server._connections) == 8)
        said = exchange(http_server, b"")
        assert said.startswith(b"HTTP/1.1 503 ")
        assert json.loads(said.partition(b"\r\n\r\n")[2])["code"] == "connections-busy"
        assert int(said.partition(b"Content-Length: ")[2].split()[0]) == len(said.partition(b"\r\n\r\n")[2])
        held[0].sendall(GOOD)
        assert held[0].recv(65536).endswith(b"POST abc")
    wait_until(lambda: not http_server._connections)
    assert exchange(http_server, GOOD).endswith(b"POST abc")


def test_a_large_body_is_asked_for_only_when_it_is_welcome(http_server) -> None:
    expect = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", http_server.port), timeout=60) as connection:
        connection.sendall(expect % 3)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert connection.recv(65536).endswith(b"POST abc")
    assert exchange(http_server, expect % 5000).startswith(b"HTTP/1.1 413 ")


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(noise=st.binary(max_size=200), at=st.integers(0, len(GOOD)))
def test_any_bytes_leave_the_server_serving(http_server, noise, at) -> None:
    exchange(http_server, noise)
    exchange(http_server, GOOD[:at] + noise + GOOD[at:])
    assert exchange(http_server, GOOD).endswith(b"POST abc")


def test_an_unforeseen_failure_is_one_response(caplog) -> None:
    def fail(request: Request) -> Response:
        raise ZeroDivisionError

    server = HttpServer(LOCAL, fail)
    server.start()
    try:
        said = exchange(server, b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        assert said.count(b"HTTP/1.1 500 ") == 2
        assert b"ZeroDivision" not in said
        assert "ZeroDivisionError" in caplog.text
    finally:
        server.stop(1)
