"""Where the local API listens: ports in use, unix sockets, and what is off."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_gateway import Gateway, grpc_request

from edge_agent.config import Endpoint
from edge_agent.serving import addresses
from edge_agent.serving.local_api import RETRY_S


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    gateway.install()
    yield gateway.start()
    gateway.close()


def test_a_port_in_use_is_an_error_in_the_log_and_is_tried_again(caplog) -> None:
    first = Gateway().start()
    ports = [int(address.rpartition(":")[2]) for address in (first.api.grpc_address, first.api.rest_address)]
    second = Gateway(
        serve_grpc=Endpoint(host="127.0.0.1", port=ports[0]),
        serve_rest=Endpoint(host="127.0.0.1", port=ports[1]),
    )
    try:
        second.install()
        with caplog.at_level(logging.ERROR):
            second.api.start(0.0)
        assert (second.api.grpc_address, second.api.rest_address) == ("", "")
        assert caplog.text.count("Address already in use") == 2
        first.close()
        second.api.retry(RETRY_S / 2)
        assert second.api.grpc_address == ""
        second.api.retry(RETRY_S)
        assert second.infer()[0] == 200
        assert second.call("ModelInfer", grpc_request())
    finally:
        first.close()
        second.close()


def test_unix_sockets_serve_and_only_dead_ones_are_replaced(tmp_path: Path) -> None:
    paths = {"serve_grpc": tmp_path / "g.sock", "serve_rest": tmp_path / "r.sock"}
    for path in paths.values():
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    gateway = Gateway(**paths)
    gateway.install()
    gateway.start()
    try:
        assert gateway.api.grpc_address == f"unix:{paths['serve_grpc']}"
        assert gateway.call("ModelInfer", grpc_request())
        assert all(path.stat().st_mode & 0o777 == 0o660 for path in paths.values())
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(paths["serve_rest"]))
            connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\n\r\n")
            assert connection.recv(65536).endswith(b'{"ready":true}')
        for path in paths.values():
            with pytest.raises(OSError, match="in use"):
                addresses.claim(path)
    finally:
        gateway.close()
    assert not paths["serve_rest"].exists()
    (tmp_path / "file").write_text("keep")
    with pytest.raises(OSError, match="no socket"):
        addresses.claim(tmp_path / "file")
    with pytest.raises(OSError, match="107 bytes"):
        addresses.claim(tmp_path / ("a" * 200))
    assert (tmp_path / "file").read_text() == "keep"


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.168.1.5", False),
        ("::", False),
        ("gateway", False),
    ],
)
def test_what_others_can_reach_is_known(host, local) -> None:
    assert addresses.is_local(Endpoint(host=host, port=1)) == local


def test_what_is_off_is_not_served() -> None:
    gateway = Gateway(serve_grpc=None).start()
    try:
        assert gateway.api.grpc_address == ""
        assert gateway.ask("GET", "/v2/health/live")[0] == 200
    finally:
        gateway.close()
