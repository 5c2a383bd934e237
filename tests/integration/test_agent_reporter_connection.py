"""The connection of the reporter: registering, a server that is away or refuses, and the end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import WAIT_S, wait_until
from reporter_world import World, of_the_reporter, status

from edgeloop.errors import RejectedError
from edgeloop.v1 import (
    telemetry_pb2,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.reporter.close(timeout_s=2)
    world.down()
    world.spool.close()


def test_a_changed_registration_is_said_on_the_same_connection(world: World) -> None:
    world.up()
    world.reporter.start()
    wait_until(lambda: world.reporter.connected)
    world.reporter.register_again()
    wait_until(lambda: len(world.answers) == 2)
    assert len(world.fleet.registrations) == 2


def test_an_absent_server_is_mentioned_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="edge_agent.reporter"):
        world.reporter.start()
        wait_until(
            lambda: len([r for r in of_the_reporter(caplog) if "cannot report" in r.getMessage()]) >= 3
        )
        warnings = [record for record in of_the_reporter(caplog) if record.levelno >= logging.WARNING]
        assert len(warnings) == 1
        assert not world.reporter.connected


def test_a_refused_registration_is_tried_on_and_nothing_is_dropped(world: World) -> None:
    def refuse() -> None:
        raise RejectedError("labels are malformed", code="device-field")

    world.fleet.on_register = refuse
    world.up()
    world.append(2)
    world.reporter.start()
    time.sleep(0.2)
    assert world.spool.num_pending == 2
    world.fleet.on_register = lambda: None
    wait_until(lambda: world.spool.num_pending == 0)


def test_the_end_of_an_idle_connection_is_noticed_at_once(world: World) -> None:
    world.up()
    world.reporter.start()
    wait_until(lambda: world.reporter.connected)
    world.down()
    # By itself gRPC would find out at its next ping, after half a minute.
    wait_until(lambda: not world.reporter.connected, timeout_s=20)
    world.up()
    wait_until(lambda: len(world.fleet.registrations) == 2)


def test_closing_delivers_what_waits_and_ends_its_threads(world: World) -> None:
    world.up()
    world.reporter.start()
    wait_until(lambda: world.reporter.connected)
    world.spool.append(telemetry_pb2.LatencyReport(digest="a" * 64))
    world.spool.enqueue_status(status(1, "ACTIVE"))
    world.reporter.close(timeout_s=WAIT_S)  # nobody woke it up
    assert world.spool.num_pending == 0
    assert len(world.fleet.statuses) == 1
    wait_until(lambda: not {"reporter", "report-answers"} & {one.name for one in threading.enumerate()})


@pytest.mark.parametrize("situation", ["no-server", "hanging-batch", "hanging-register"])
def test_closing_takes_no_longer_than_it_was_given(world: World, situation: str) -> None:
    hang, asked, over = threading.Event(), threading.Event(), threading.Event()

    def never_end() -> None:
        asked.set()
        hang.wait(WAIT_S)
        over.set()

    if situation == "hanging-register":
        world.fleet.on_register = never_end
    world.fleet.on_batch = lambda request: never_end()
    if situation != "no-server":
        world.up()
    world.append()
    world.reporter.start()
    if situation != "no-server":
        assert asked.wait(WAIT_S)
    world.reporter.close(timeout_s=0.3)
    assert not over.is_set(), "it waited for the server"
    assert world.spool.num_pending == 1
    hang.set()
