"""Statuses on their way to the cloud: in order, sent again unanswered, and none in the way of another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import wait_until
from reporter_world import World, status

from edgeloop.errors import RejectedError, TransientError
from edgeloop.v1 import (
    deployment_pb2,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.reporter.close(timeout_s=2)
    world.down()
    world.spool.close()


def test_statuses_wait_for_the_server_and_go_before_reports(world: World) -> None:
    order: list[str] = []
    world.fleet.on_status = lambda status: order.append("status")
    world.fleet.on_batch = lambda request: order.append("reports")
    world.append()
    world.reporter.update_status(status(1, "TRIAL"))
    world.reporter.update_status(status(2, "ACTIVE"))
    world.reporter.start()
    time.sleep(0.1)  # it tries, and nobody is there
    world.up()
    wait_until(lambda: world.spool.num_pending == 0)
    assert [one.generation for one in world.fleet.statuses] == [1, 2]
    assert order == ["status", "status", "reports"]
    assert world.spool.pending_statuses() == []


def test_a_status_that_was_not_answered_is_sent_again(world: World) -> None:
    def fail_twice(one: deployment_pb2.DeploymentStatus) -> None:
        if len(world.fleet.registrations) < 3:
            raise TransientError("busy", code="busy")

    world.fleet.on_status = fail_twice
    world.up()
    world.reporter.start()
    world.reporter.update_status(status(3, "ROLLED_BACK"))
    wait_until(lambda: world.fleet.statuses)
    assert world.fleet.statuses == [status(3, "ROLLED_BACK")]
    wait_until(lambda: world.spool.pending_statuses() == [])


def test_a_status_refused_for_good_does_not_block_the_next(world: World) -> None:
    def refuse_first(one: deployment_pb2.DeploymentStatus) -> None:
        if one.generation == 1:
            raise RejectedError("no such deployment", code="deployment-unknown")

    world.fleet.on_status = refuse_first
    world.up()
    world.reporter.update_status(status(1, "ACTIVE"))
    world.reporter.update_status(status(2, "ACTIVE"))
    world.reporter.start()
    wait_until(lambda: world.fleet.statuses)
    assert [one.generation for one in world.fleet.statuses] == [2]
