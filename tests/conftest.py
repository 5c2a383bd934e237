"""What several test packages share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from machine import REQUIRE_ALL, missing
from mosquitto_server import Mosquitto
from postgres_server import PostgresServer, find_programs

# How long examples take is the machine's affair: on a busy one a deadline fails what is right. Where nothing
# may be skipped the same examples are tried each time, and what no change has broken fails no change.
settings.register_profile(
    "edgeloop",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=REQUIRE_ALL,
    print_blob=True,
)
settings.load_profile("edgeloop")


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
