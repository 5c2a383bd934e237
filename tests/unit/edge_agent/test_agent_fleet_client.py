"""The stream of reports: a server that answers without end, and the thread that reads it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from machine import wait_until

from edge_agent.fleet_client import MAX_ANSWERS, ReportStream, StreamEvent
from edge_agent.reporter import FleetReporter
from edge_agent.spool import ReportSpool
from edgeloop.backoff import Backoff
from edgeloop.v1 import device_pb2, fleet_service_pb2


class EndlessCall:
    def __init__(self) -> None:
        self.num_read = 0
        self.cancelled = threading.Event()

    def __iter__(self) -> Iterator[fleet_service_pb2.StreamReportsResponse]:
        while not self.cancelled.is_set():
            self.num_read += 1
            yield fleet_service_pb2.StreamReportsResponse(batch_id=self.num_read)

    def cancel(self) -> None:
        self.cancelled.set()


@pytest.fixture
def call() -> EndlessCall:
    return EndlessCall()


@pytest.fixture
def inbox() -> SimpleQueue[StreamEvent]:
    return SimpleQueue()


@pytest.fixture
def stream(call: EndlessCall, inbox: SimpleQueue[StreamEvent]) -> Iterator[ReportStream]:
    class Stub:
        def StreamReports(self, requests: Any) -> EndlessCall:  # the name is the service's
            return call

    stub: Any = Stub()
    stream = ReportStream(stub, inbox.put)
    yield stream
    stream.close()


@pytest.mark.parametrize("credentials", [None, object()])
def test_only_an_answer_over_tls_says_what_time_it_is(
    tmp_path: Path, inbox: SimpleQueue[Any], credentials: Any
) -> None:
    class Client:
        def register(self, registration: device_pb2.Registration) -> fleet_service_pb2.RegisterResponse:
            response = fleet_service_pb2.RegisterResponse(profile="small")
            response.server_time.seconds = 1_790_000_000
            return response

    reporter = FleetReporter(
        server="nowhere",
        spool=ReportSpool(tmp_path / "spool.db", boot_id="b"),
        registration=device_pb2.Registration,
        on_registered=inbox.put,
        backoff=Backoff(0.1, 1.0, random.Random(1)),
        credentials=credentials,
    )
    client: Any = Client()
    reporter._register(client)
    answer = inbox.get_nowait()
    assert answer.profile == "small"
    assert answer.HasField("server_time") is (credentials is not None)


def test_it_reads_no_further_than_what_was_taken(
    call: EndlessCall, inbox: SimpleQueue[StreamEvent], stream: ReportStream
) -> None:
    wait_until(lambda: inbox.qsize() == MAX_ANSWERS, what="the inbox to fill")
    for number in range(1, 100):
        event = inbox.get(timeout=60)
        assert event is not None
        assert isinstance(event[1], fleet_service_pb2.StreamReportsResponse)
        assert event[1].batch_id == number
        assert call.num_read <= number + MAX_ANSWERS
        stream.taken()


def test_closing_ends_the_thread_that_waits_for_room(
    call: EndlessCall, inbox: SimpleQueue[StreamEvent], stream: ReportStream
) -> None:
    wait_until(lambda: inbox.qsize() == MAX_ANSWERS, what="the inbox to fill")
    stream.close()
    # What ends it is the last thing that it posts.
    wait_until(lambda: inbox.qsize() > MAX_ANSWERS, what="the thread to go on")
    wait_until(
        lambda: "report-answers" not in [thread.name for thread in threading.enumerate()], what="its end"
    )
