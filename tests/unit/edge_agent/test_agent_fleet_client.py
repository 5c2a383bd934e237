"""The stream of reports: a server that answers without end, and the thread that reads it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from machine import wait_until

from edge_agent.fleet_client import MAX_ANSWERS, ReportStream, StreamEvent
from edgeloop.v1 import fleet_service_pb2


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
