"""A gateway behind a slow modem: a block takes longer than missing ones are waited for."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_harness import AgentProcess, Cloud, make_model, ship

pytestmark = pytest.mark.mosquitto

BLOCK_SIZE_BYTES = 32 << 10
BYTES_A_SECOND = 13_000
BLOCK_TIMEOUT_S = 2.0  # eight tenths of what a block takes; and a busy machine may stand still for most of it
PIECE_BYTES = 1_000


class Modem:
    """Carries what a broker sends at a bounded rate, and holds little back; the other way is free."""

    def __init__(self, broker: str) -> None:
        host, _, port = broker.rpartition(":")
        self._broker = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.num_bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.socket()
                # A modem's queue is short: what is not carried yet waits in the broker.
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
                far.connect(self._broker)
                threading.Thread(target=self._carry, args=(near, far, 0), daemon=True).start()
                threading.Thread(target=self._carry, args=(far, near, BYTES_A_SECOND), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, rate: int) -> None:
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(PIECE_BYTES):
                target.sendall(data)
                if rate:
                    self.num_bytes += len(data)
                    time.sleep(len(data) / rate)

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def modem(cloud: Cloud) -> Iterator[Modem]:
    one = Modem(cloud.broker)
    yield one
    one.close()


def test_what_comes_slowly_is_not_asked_for_again_and_comes_once(
    cloud: Cloud, modem: Modem, tmp_path: Path
) -> None:
    shipment = ship(make_model(1, num_hidden=1600), block_size_bytes=BLOCK_SIZE_BYTES)
    assert len(shipment.blocks) >= 4
    cloud.answers_requests = True
    cloud.publish(shipment)
    cloud.deploy("gw-1", shipment, 1)
    cloud.broker = modem.address
    agent = AgentProcess(cloud, tmp_path, block_timeout_s=str(BLOCK_TIMEOUT_S)).start()
    try:
        agent.wait_state("active", 1, timeout_s=90)
    finally:
        agent.kill()
    assert cloud.requests == []
    assert len(shipment.data) < modem.num_bytes < 1.1 * len(shipment.data)
