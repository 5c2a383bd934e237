"""Delivers what the spool holds to the cloud, over one bidirectional stream.

Rules that this module keeps:

- Nothing leaves the spool before the cloud has answered for it: a report when its batch is acknowledged, a
  status when its call returned. A connection that dies in between means the same bytes again; the cloud
  knows them by (device, boot id, sequence), respectively (device, generation, state).
- What the cloud refuses for good is dropped, counted and logged, so that one bad report never blocks those
  behind it. Where the cloud refuses a whole batch, the batch is halved until the bad report stands alone.
- Every connection begins with Register. Then statuses go before reports.
- One batch is under way at a time. Every wait has a limit, and a new connection follows each failure after
  a back-off with full jitter; a refusal that only a person can lift backs off to the maximum.
- Each failure is said once at WARNING and repeated at DEBUG, until a connection has stood.

The channel is made anew for each attempt: gRPC would keep a back-off of its own, without our jitter.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

import grpc

from edge_agent.fleet_client import FleetClient, ReportStream, StreamEvent
from edge_agent.meter import WindowReport
from edge_agent.spool import ReportSpool
from edgeloop.backoff import Backoff
from edgeloop.errors import ConfigError, EdgeloopError, RejectedError, TransientError
from edgeloop.v1 import (
    deployment_pb2,
    device_pb2,
    fleet_service_pb2,
    telemetry_pb2,
)

logger = logging.getLogger(__name__)

MAX_BATCH: Final = 500
#: A connection that lasted this long was no accident.
_STEADY_S: Final = 10.0
#: Refusals that are about this device, not about what it sent: every connection begins with Register.
_HEALED_BY_REGISTER: Final = frozenset({"grpc-not-found", "device-unknown"})


def build_report(
    window: WindowReport, *, device_id: str, rss_bytes: int, emulated_slowdown: int
) -> telemetry_pb2.LatencyReport:
    """The message of one window. The spool adds the boot id and the sequence."""
    report = telemetry_pb2.LatencyReport(
        device_id=device_id,
        digest=window.key.digest,
        generation=window.key.generation,
        workload=window.key.workload,
        latency=window.latency.to_proto(),
        reference=window.reference.to_proto(),
        num_errors=window.num_errors,
        rss_bytes=rss_bytes,
        emulated_slowdown=emulated_slowdown,
    )
    report.start_time.FromMicroseconds(round(window.start_s * 1e6))
    report.end_time.FromMicroseconds(round(window.end_s * 1e6))
    return report


class FleetReporter:
    """The thread that keeps the cloud informed.

    ``on_registered`` is called on this thread after every connection: it must only post to an inbox.
    """

    def __init__(
        self,
        *,
        server: str,
        spool: ReportSpool,
        registration: Callable[[], device_pb2.Registration],
        on_registered: Callable[[fleet_service_pb2.RegisterResponse], None],
        backoff: Backoff,
        credentials: grpc.ChannelCredentials | None = None,
        ack_timeout_s: float = 30.0,
    ) -> None:
        self._server = server
        self._spool = spool
        self._registration = registration
        self._on_registered = on_registered
        self._backoff = backoff
        self._credentials = credentials
        self._ack_timeout_s = ack_timeout_s
        self._inbox: SimpleQueue[StreamEvent] = SimpleQueue()
        self._stop = threading.Event()
        self._retry = threading.Event()  # cuts the pause before the next connection short
        self._drain_until_s = float("inf")
        self._register_again = False
        self._reconnect = False
        self._client: FleetClient | None = None
        self._connected = False
        self._complained = False
        self._limit = MAX_BATCH
        self._next_batch_id = 1
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        """Connects, and stays connected."""
        self._thread.start()

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Stops. What waits is delivered if that takes no longer than ``timeout_s``, else it stays."""
        self._drain_until_s = time.monotonic() + timeout_s
        self._stop.set()
        self._retry.set()
        self._wake_up()
        if not self._thread.is_alive():
            return
        self._thread.join(timeout_s)
        client = self._client
        if self._thread.is_alive() and client is not None:
            client.close()
            self._thread.join(timeout_s)

    @property
    def connected(self) -> bool:
        """Whether the cloud answered last time, and the connection has not ended since."""
        return self._connected

    def wake(self) -> None:
        """Says that the spool holds something new. Any thread."""
        self._wake_up()

    def register_again(self) -> None:
        """Says that the registration changed: another digest serves. Any thread."""
        self._register_again = True
        self._wake_up()

    def set_credentials(self, credentials: grpc.ChannelCredentials) -> None:
        """Connects again with these, at once: there is a new certificate. Any thread."""
        self._credentials = credentials
        self._reconnect = True
        self._retry.set()
        self._wake_up()

    def update_status(self, status: deployment_pb2.DeploymentStatus) -> None:
        """Stores a status durably and sends it as soon as the cloud can be reached. Any thread."""
        self._spool.enqueue_status(status)
        self._wake_up()

    def _wake_up(self) -> None:
        # Whatever waits there already wakes it; weeks without a cloud must not fill the memory with calls.
        if self._inbox.empty():
            self._inbox.put(None)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._connect_and_deliver()
            except EdgeloopError as error:
                self._complain(error)
                # A registration that is refused stays refused until somebody acts.
                if isinstance(error, ConfigError | RejectedError):
                    self._backoff.to_max()
            except Exception:
                if self._stop.is_set():  # close() took the channel away
                    logger.debug("cut off while stopping", exc_info=True)
                else:  # a bug here must not silence the device for good
                    logger.exception("the reporter failed in an unforeseen way")
            finally:
                self._connected = False
            if not self._stop.is_set():
                self._retry.wait(self._backoff.next())

    def _connect_and_deliver(self) -> None:
        self._retry.clear()
        self._reconnect = False
        client = FleetClient(self._server, credentials=self._credentials)
        self._client = client
        stream: ReportStream | None = None
        try:
            self._register(client)
            stream = client.open_stream(self._inbox.put)
            self._connected = True
            logger.log(logging.DEBUG if self._complained else logging.INFO, "connected to %s", self._server)
            begin_s = time.monotonic()
            try:
                self._deliver(client, stream)
            finally:
                if time.monotonic() - begin_s > _STEADY_S:
                    self._stood()
        finally:
            if stream is not None:
                stream.close()
            client.close()
            self._client = None

    def _stood(self) -> None:
        """The connection proved good: the next failure is a new one."""
        if self._complained:
            logger.info("connected to %s again", self._server)
        self._complained = False
        self._backoff.reset()

    def _register(self, client: FleetClient) -> None:
        self._register_again = False
        response = client.register(self._registration())
        if self._credentials is None:
            # Nobody vouches for what anybody on the way may have said.
            response.ClearField("server_time")
        self._on_registered(response)

    def _deliver(self, client: FleetClient, stream: ReportStream) -> None:
        """Until the connection ends (raises), or the reporter stops or is to connect again (returns)."""
        while time.monotonic() < self._drain_until_s and not self._reconnect:
            if self._register_again:
                self._register(client)
            self._deliver_statuses(client)
            reports = self._spool.batch(self._limit)
            if reports:
                self._deliver_batch(stream, reports)
                self._stood()
            elif self._stop.is_set():
                return
            else:
                self._next_answer(stream, time.monotonic() + self._ack_timeout_s)

    def _deliver_statuses(self, client: FleetClient) -> None:
        for row_id, status in self._spool.pending_statuses():
            try:
                client.update_status(status)
            except RejectedError as error:
                if error.code in _HEALED_BY_REGISTER:
                    raise TransientError(error.message, code=error.code) from error
                logger.warning(
                    "the cloud refused the status of generation %d for good, %s: %s",
                    status.generation,
                    error.code,
                    error,
                )
            self._spool.status_delivered(row_id)
            self._stood()

    def _deliver_batch(self, stream: ReportStream, reports: list[telemetry_pb2.LatencyReport]) -> None:
        batch_id = self._next_batch_id
        self._next_batch_id += 1
        stream.send(fleet_service_pb2.StreamReportsRequest(batch_id=batch_id, reports=reports))
        deadline_s = time.monotonic() + self._ack_timeout_s
        try:
            while True:
                answer = self._next_answer(stream, deadline_s)
                if answer is not None and answer.batch_id == batch_id:
                    break
                if time.monotonic() >= deadline_s:
                    raise TransientError(
                        f"no acknowledgement within {self._ack_timeout_s:g} s", code="ack-timeout"
                    )
        except RejectedError as error:
            if error.code not in _HEALED_BY_REGISTER:
                self._isolate(reports, error)
            raise TransientError(error.message, code=error.code) from error
        self._settle(reports, answer)
        self._limit = min(MAX_BATCH, self._limit * 2)

    def _settle(
        self, reports: list[telemetry_pb2.LatencyReport], answer: fleet_service_pb2.StreamReportsResponse
    ) -> None:
        """Deletes what the acknowledgement is about, if it is about exactly what was sent."""
        sent = {(report.boot_id, report.sequence) for report in reports}
        unknown = [report for report in answer.rejected if report.code in _HEALED_BY_REGISTER]
        if unknown:
            raise TransientError(unknown[0].message, code=unknown[0].code)
        refused = {(report.boot_id, report.sequence) for report in answer.rejected} & sent
        if answer.num_accepted + len(refused) != len(sent):
            raise TransientError(
                f"the acknowledgement counts {answer.num_accepted} accepted and {len(refused)} rejected of "
                f"{len(sent)} reports; sending them again",
                code="ack-mismatch",
            )
        if refused:
            self._spool.reject(refused)
            first = answer.rejected[0]
            logger.warning(
                "the cloud rejected %d reports for good, the first, sequence %d, with %s: %s",
                len(refused),
                first.sequence,
                first.code,
                first.message,
            )
        self._spool.acknowledge(sent - refused)

    def _isolate(self, reports: list[telemetry_pb2.LatencyReport], error: RejectedError) -> None:
        """After a refusal of a whole batch: a smaller one next time, and a lone report goes."""
        if len(reports) > 1:
            self._limit = len(reports) // 2
            return
        self._spool.reject([(reports[0].boot_id, reports[0].sequence)])
        logger.warning("the cloud refused report %d for good: %s", reports[0].sequence, error)

    def _next_answer(
        self, stream: ReportStream, deadline_s: float
    ) -> fleet_service_pb2.StreamReportsResponse | None:
        """The next answer on this stream; None after a wake-up or at the deadline. Raises when it ended."""
        try:
            event = self._inbox.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except Empty:
            return None
        if event is None:
            return None
        event[0].taken()
        if event[0] is not stream:
            return None
        if isinstance(event[1], EdgeloopError):
            raise event[1]
        return event[1]

    def _complain(self, error: EdgeloopError) -> None:
        level = logging.DEBUG if self._complained else logging.WARNING
        self._complained = True
        text = str(error)
        if error.code == "grpc-unavailable" and "Socket closed" in text:
            # All that gRPC learns of a handshake that the other side ended.
            text += (
                " (it asks for a certificate: 'edgeloop-agent enroll' gets one)"
                if self._credentials is None
                else " (it may not accept this device's certificate: its audit log says why)"
            )
        logger.log(level, "cannot report to %s, %s: %s; will try again", self._server, error.code, text)
