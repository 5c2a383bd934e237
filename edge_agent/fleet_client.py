"""FleetService as the agent calls it, and one stream of reports: where messages become calls.

Rules that this module keeps:

- Failures leave as edgeloop's errors.
- A server that answers without end costs no more memory than ``MAX_ANSWERS`` answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Final

import grpc

from edgeloop.errors import EdgeloopError, TransientError, error_from_grpc
from edgeloop.v1 import deployment_pb2, device_pb2, fleet_service_pb2, fleet_service_pb2_grpc

#: Answers of one stream that may wait to be looked at; one batch is under way at a time.
MAX_ANSWERS: Final = 16
_CHANNEL_OPTIONS: Final = (
    # A gateway behind a stateful firewall learns from these that the other end is gone.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 1 << 20),
    # Else a new channel inherits the back-off of the one before it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


class FleetClient:
    """FleetService as the agent calls it; failures leave as edgeloop's errors."""

    def __init__(self, server: str, *, credentials: grpc.ChannelCredentials | None = None) -> None:
        if credentials is None:
            self._channel = grpc.insecure_channel(server, options=_CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(server, credentials, options=_CHANNEL_OPTIONS)
        self._stub = fleet_service_pb2_grpc.FleetServiceStub(self._channel)

    def register(
        self, registration: device_pb2.Registration, *, timeout_s: float = 10.0
    ) -> fleet_service_pb2.RegisterResponse:
        """Says who this is; the answer says which profile it belongs to."""
        request = fleet_service_pb2.RegisterRequest(registration=registration)
        try:
            response: fleet_service_pb2.RegisterResponse = self._stub.Register(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_from_grpc(error) from error
        return response

    def update_status(self, status: deployment_pb2.DeploymentStatus, *, timeout_s: float = 10.0) -> None:
        """Says how far a deployment has come."""
        request = fleet_service_pb2.UpdateDeploymentStatusRequest(status=status)
        try:
            self._stub.UpdateDeploymentStatus(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_from_grpc(error) from error

    def open_stream(self, post: Callable[[StreamEvent], None]) -> ReportStream:
        """A stream whose answers, and whose end, are posted."""
        return ReportStream(self._stub, post)

    def close(self) -> None:
        """Ends every call that is under way."""
        self._channel.close()


class ReportStream:
    """One StreamReports call: ``send`` never waits; a thread posts what comes back, and waits while
    ``MAX_ANSWERS`` of it were not ``taken``."""

    def __init__(
        self, stub: fleet_service_pb2_grpc.FleetServiceStub, post: Callable[[StreamEvent], None]
    ) -> None:
        self._post = post
        self._requests: SimpleQueue[fleet_service_pb2.StreamReportsRequest | None] = SimpleQueue()
        self._room = threading.Semaphore(MAX_ANSWERS)
        self._call = stub.StreamReports(self._take())
        threading.Thread(target=self._read, name="report-answers", daemon=True).start()

    def send(self, request: fleet_service_pb2.StreamReportsRequest) -> None:
        """Queues one batch."""
        self._requests.put(request)

    def close(self) -> None:
        """Ends the call, and with it both threads that serve it."""
        self._requests.put(None)
        self._call.cancel()
        self._room.release(MAX_ANSWERS)

    def taken(self) -> None:
        """One of what was posted is out of the inbox."""
        self._room.release()

    def _take(self) -> Iterator[fleet_service_pb2.StreamReportsRequest]:
        while (request := self._requests.get()) is not None:
            yield request

    def _read(self) -> None:
        try:
            for response in self._call:
                self._room.acquire()
                self._post((self, response))
        except grpc.RpcError as error:
            self._post((self, error_from_grpc(error)))
        else:
            self._post((self, TransientError("the server ended the report stream", code="stream-ended")))


#: What the reporter's inbox holds: None wakes it up; else which stream said what.
StreamEvent = tuple[ReportStream, fleet_service_pb2.StreamReportsResponse | EdgeloopError] | None
