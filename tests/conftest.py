"""What several test packages share."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from machine import free_port, missing
from postgres_server import PostgresServer, find_programs

# How long one example takes is the machine's affair: on a busy one a deadline fails what is right.
settings.register_profile("edgeloop", deadline=None)
settings.load_profile("edgeloop")


class Mosquitto:
    """A broker of one's own. It keeps nothing over a restart, as the broker is a cache to us."""

    host = "127.0.0.1"

    def __init__(self, program: str, directory: Path) -> None:
        self.port = free_port()
        self.settings = "allow_anonymous true"
        self._program = program
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "start it first"
        return self._process.pid

    def start(self) -> None:
        """Start it, on the same port each time, and return once it accepts connections."""
        config = self._directory / "mosquitto.conf"
        # Started by root, it would give up the rights to read this directory.
        user = f"user {getpass.getuser()}"
        config.write_text(f"{user}\nlistener {self.port} {self.host}\npersistence false\n{self.settings}\n")
        log = (self._directory / "mosquitto.log").open("ab")
        with log:
            self._process = subprocess.Popen([self._program, "-c", str(config)], stdout=log, stderr=log)
        until_s = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > until_s:
                    text = (self._directory / "mosquitto.log").read_text(errors="replace")
                    raise AssertionError(f"mosquitto did not start: {text[-2000:]}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End it as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without any goodbye."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Keep its connections open but have it do nothing, like a host that vanished."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(how)
            if how is not signal.SIGKILL:
                process.send_signal(signal.SIGCONT)  # one that is frozen would never hear of it
            process.wait(10)


def _running_mosquitto(directory: Path) -> Iterator[Mosquitto]:
    program = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        missing("mosquitto")
    assert program is not None
    broker = Mosquitto(program, directory)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A running mosquitto on a port of its own."""
    directory = tmp_path / "mosquitto"
    directory.mkdir()
    yield from _running_mosquitto(directory)


@pytest.fixture(scope="module")
def module_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """The same, shared by the tests of one module."""
    yield from _running_mosquitto(tmp_path_factory.mktemp("mosquitto"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests that want a database of PostgreSQL."""
    programs = find_programs()
    if programs is None:
        missing("postgresql (the server's programs)")
    assert programs is not None
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """An empty database of its own."""
    return postgres_server.new_database()
