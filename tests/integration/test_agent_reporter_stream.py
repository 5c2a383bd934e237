"""The reporter against a real gRPC server that dies, refuses, hangs and forgets."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import WAIT_S, wait_until
from reporter_world import World, of_the_reporter

from edge_agent.meter import LatencyMeter, WindowKey
from edge_agent.reporter import build_report
from edge_agent.spool import ReportSpool
from edgeloop.errors import RejectedError, TransientError
from edgeloop.v1 import (
    fleet_service_pb2,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.reporter.close(timeout_s=2)
    world.down()
    world.spool.close()


def test_it_registers_then_delivers_and_deletes_what_was_acknowledged(world: World) -> None:
    world.up()
    world.append(3)
    world.reporter.start()
    wait_until(lambda: world.spool.num_pending == 0)
    assert [answer.report_interval_s for answer in world.answers] == [7]
    assert sorted(world.fleet.committed) == [("boot-1", n) for n in (1, 2, 3)]
    world.append(2)  # the stream stays open for what comes later
    wait_until(lambda: world.spool.num_pending == 0)
    assert len(world.fleet.registrations) == 1
    assert world.fleet.num_received == 5


def test_weeks_of_waking_without_a_cloud_are_one_look_at_the_spool(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(10_000):
        world.reporter.wake()
    looks: list[int] = []
    batch = world.spool.batch
    monkeypatch.setattr(world.spool, "batch", lambda limit: looks.append(limit) or batch(limit))
    world.up()
    world.reporter.start()
    wait_until(lambda: world.answers)
    world.append(1)
    wait_until(lambda: world.spool.num_pending == 0 and world.reporter._inbox.empty())
    assert len(looks) < 20


def test_the_window_of_a_meter_arrives_as_it_was_measured(world: World) -> None:
    meter = LatencyMeter(window_s=30)
    key = WindowKey(digest="b" * 64, generation=4, workload="digits")
    for n in range(100):
        meter.record(key, 1.0 + n / 100, 1_700_000_000.25 + n / 10)
    meter.record_reference(key, 0.2, 1_700_000_011.0)
    meter.record_error(key, 1_700_000_011.0)
    (window,) = meter.flush(1_700_000_012.5)
    world.spool.append(build_report(window, device_id="gateway-1", rss_bytes=7 << 20, emulated_slowdown=3))
    world.up()
    world.reporter.start()
    wait_until(lambda: world.fleet.committed)
    (report,) = world.fleet.committed.values()
    assert (report.digest, report.generation, report.workload) == ("b" * 64, 4, "digits")
    assert sum(report.latency.counts) == 100
    assert (report.num_errors, report.rss_bytes, report.emulated_slowdown) == (1, 7 << 20, 3)
    assert report.start_time.ToNanoseconds() == 1_700_000_000_250_000_000
    assert report.end_time.ToNanoseconds() == 1_700_000_012_500_000_000
    assert (report.boot_id, report.sequence) == ("boot-1", 1)


def test_a_server_that_dies_after_the_commit_and_before_the_answer_gets_it_again(world: World) -> None:
    def commit_then_die(request: fleet_service_pb2.StreamReportsRequest) -> None:
        world.fleet.commit(request)
        world.fleet.on_batch = lambda request: None
        raise TransientError("died", code="died")

    world.fleet.on_batch = commit_then_die
    world.up()
    world.append(3)
    world.reporter.start()
    wait_until(lambda: world.spool.num_pending == 0)
    assert sorted(world.fleet.committed) == [("boot-1", n) for n in (1, 2, 3)]
    assert world.fleet.num_received == 6  # sent twice, known by key
    assert len(world.fleet.registrations) == 2  # every connection begins with Register


def test_no_report_is_lost_while_the_server_dies_again_and_again(world: World) -> None:
    rng = random.Random(5)

    def die_sometimes(request: fleet_service_pb2.StreamReportsRequest) -> None:
        chance = rng.random()
        if chance < 0.3:
            raise TransientError("died before the commit", code="died")
        if chance < 0.6:
            world.fleet.commit(request)
            raise TransientError("died after the commit", code="died")

    world.fleet.on_batch = die_sometimes
    world.reporter.start()
    sequences: list[int] = []
    for turn in range(6):
        world.up()
        for _ in range(5):
            sequences += world.append()
            time.sleep(0.01)
        if turn < 5:
            world.down()
    wait_until(lambda: world.spool.num_pending == 0)
    assert sorted(world.fleet.committed) == [("boot-1", n) for n in sequences]


def test_an_agent_killed_before_the_answer_delivers_after_its_restart(world: World) -> None:
    hang = threading.Event()
    world.fleet.on_batch = lambda request: hang.wait(WAIT_S)
    world.up()
    world.append(2)
    world.reporter.start()
    wait_until(lambda: world.fleet.num_batches)
    world.reporter.close(timeout_s=0.1)
    world.spool.close()
    world.fleet.on_batch = lambda request: None
    hang.set()
    world.boot = "boot-2"
    world.spool = ReportSpool(world.directory / "reports.db", boot_id="boot-2")
    world.reporter = world.make()
    world.append(1)
    world.reporter.start()
    wait_until(lambda: world.spool.num_pending == 0)
    assert {("boot-1", 1), ("boot-1", 2), ("boot-2", 1)} <= set(world.fleet.committed)


def test_a_server_that_never_answers_is_left_after_a_while(world: World) -> None:
    hang = threading.Event()

    def hang_once(request: fleet_service_pb2.StreamReportsRequest) -> None:
        if not hang.is_set():
            hang.wait(WAIT_S)
            raise TransientError("too late", code="late")

    world.fleet.on_batch = hang_once
    world.reporter = world.make(ack_timeout_s=1.0)
    world.up()
    world.append()
    world.reporter.start()
    wait_until(lambda: len(world.fleet.registrations) >= 2)
    assert world.spool.num_pending == 1
    hang.set()
    wait_until(lambda: world.spool.num_pending == 0)


def test_rejected_reports_are_dropped_counted_and_said_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def reject_even(request: fleet_service_pb2.StreamReportsRequest) -> Any:
        bad = [report for report in request.reports if report.sequence % 2 == 0]
        return fleet_service_pb2.StreamReportsResponse(
            batch_id=request.batch_id,
            num_accepted=len(request.reports) - len(bad),
            rejected=[
                fleet_service_pb2.RejectedReport(
                    boot_id=report.boot_id, sequence=report.sequence, code="report-future", message="clock"
                )
                for report in bad
            ],
        )

    world.fleet.on_batch = reject_even
    world.up()
    world.append(6)
    with caplog.at_level(logging.WARNING, logger="edge_agent.reporter"):
        world.reporter.start()
        wait_until(lambda: world.spool.num_pending == 0)
    assert world.spool.num_rejected == 3
    (line,) = [record.getMessage() for record in of_the_reporter(caplog)]
    assert "3 reports" in line
    assert "report-future" in line


@pytest.mark.parametrize("lie", ["counts-too-few", "another-batch", "rejects-what-was-not-sent"])
def test_an_answer_that_does_not_fit_deletes_nothing(world: World, lie: str) -> None:
    def answer(request: fleet_service_pb2.StreamReportsRequest) -> Any:
        made = fleet_service_pb2.StreamReportsResponse(batch_id=request.batch_id, num_accepted=1)
        if lie == "another-batch":
            made.batch_id, made.num_accepted = request.batch_id + 1, 2
        elif lie == "rejects-what-was-not-sent":
            made.rejected.add(boot_id="boot-9", sequence=1, code="x")
        return made

    world.fleet.on_batch = answer
    world.reporter = world.make(ack_timeout_s=0.5)
    world.up()
    world.append(2)
    world.reporter.start()
    wait_until(lambda: world.fleet.num_batches >= 2)
    assert world.spool.num_pending == 2
    world.fleet.on_batch = lambda request: None
    wait_until(lambda: world.spool.num_pending == 0)
    assert world.spool.num_rejected == 0


def test_one_report_that_spoils_its_batch_goes_alone(world: World) -> None:
    def refuse_batch_of_poison(request: fleet_service_pb2.StreamReportsRequest) -> None:
        if any(report.sequence == 5 for report in request.reports):
            raise RejectedError("cannot read this", code="report-field")

    world.fleet.on_batch = refuse_batch_of_poison
    world.up()
    world.append(9)
    world.reporter.start()
    wait_until(lambda: world.spool.num_pending == 0)
    assert sorted(sequence for _, sequence in world.fleet.committed) == [1, 2, 3, 4, 6, 7, 8, 9]
    assert world.spool.num_rejected == 1


def test_a_server_that_forgot_the_device_makes_it_register_and_loses_nothing(world: World) -> None:
    def unknown(request: fleet_service_pb2.StreamReportsRequest) -> Any:
        if len(world.fleet.registrations) > 1:
            return None
        return fleet_service_pb2.StreamReportsResponse(
            batch_id=request.batch_id,
            rejected=[
                fleet_service_pb2.RejectedReport(
                    boot_id=report.boot_id, sequence=report.sequence, code="device-unknown", message="?"
                )
                for report in request.reports
            ],
        )

    world.fleet.on_batch = unknown
    world.up()
    world.append(2)
    world.reporter.start()
    wait_until(lambda: len(world.fleet.committed) == 2)
    assert len(world.fleet.registrations) == 2
    assert world.spool.num_rejected == 0
