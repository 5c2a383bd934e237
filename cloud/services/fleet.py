"""FleetService: what agents call.

Rules kept here:

- A batch is acknowledged after its reports are durable. A connection that dies before that costs a resend,
  which is counted once.
- A stream has a few batches under way at most; then it is read no further until one is committed.
- Nothing that a device claims reaches the store unchecked, and no call of one device can end another's.
- Every error leaves through the table in ``edgeloop.errors``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn

import grpc.aio

from cloud.domain.devices import DeploymentState, DeploymentStatus, Device, matched
from cloud.services.convert import device_from_proto, status_from_proto
from cloud.services.report_check import ReportBounds, check_report
from cloud.services.report_writer import ReportWriter
from cloud.store import ReportRow, Store
from edgeloop.errors import EdgeloopError, RejectedError, TransientError, abort_args
from edgeloop.trust import timestamp
from edgeloop.v1 import fleet_service_pb2, fleet_service_pb2_grpc

logger = logging.getLogger(__name__)

MAX_BATCH: Final = 500
_MAX_IN_FLIGHT: Final = 8
_DEVICE_IDS_REFRESH_S: Final = 1.0

#: Pass to ``grpc.aio.server(options=...)``: bounded messages, pings that agents may send, and an error
#: instead of a silent share when the port is in use.
SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_send_message_length", 4 << 20),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 32),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetSettings:
    """``report_interval_s`` is what agents are told."""

    report_interval_s: int = 30
    bounds: ReportBounds = field(default_factory=ReportBounds)


@dataclass(slots=True)
class _Pending:
    """A batch that waits for its commit."""

    batch_id: int
    num_accepted: int
    rejected: list[fleet_service_pb2.RejectedReport]
    done: asyncio.Future[None]


class FleetServicer(fleet_service_pb2_grpc.FleetServiceServicer):
    """``await start()`` before the server's, ``await stop()`` after it.

    Hooks run on the event loop, after commit; they must not wait.
    """

    def __init__(
        self,
        store: Store,
        *,
        settings: FleetSettings | None = None,
        now_s: Callable[[], float] = time.time,
        on_register: Callable[[str], None] = lambda device_id: None,
        on_status: Callable[[DeploymentStatus], None] = lambda status: None,
    ) -> None:
        self._store = store
        self._settings = settings or FleetSettings()
        self._now_s = now_s
        self._on_register = on_register
        self._on_status = on_status
        self._writer = ReportWriter(store, now_s)
        self._device_ids: set[str] = set()
        self._device_ids_read_s = float("-inf")
        self._device_ids_lock = asyncio.Lock()

    @property
    def num_queued_reports(self) -> int:
        """Those that were sent and are not durable yet. Any thread may ask."""
        return self._writer.num_queued

    @property
    def num_stored_reports(self) -> int:
        """Those that became durable here since it began. Any thread may ask."""
        return self._writer.num_stored

    async def start(self) -> None:
        """Begin to write reports."""
        await self._writer.start()

    async def stop(self) -> None:
        """Commit what was queued."""
        await self._writer.stop()

    async def Register(
        self,
        request: fleet_service_pb2.RegisterRequest,
        context: grpc.aio.ServicerContext[
            fleet_service_pb2.RegisterRequest, fleet_service_pb2.RegisterResponse
        ],
    ) -> fleet_service_pb2.RegisterResponse:
        """Match the device to a profile and remember it."""
        try:
            device = await asyncio.to_thread(self._register, device_from_proto(request.registration))
        except Exception as error:  # noqa: BLE001 - _abort sorts and logs it
            await _abort(context, error)
        self._device_ids.add(device.device_id)
        self._on_register(device.device_id)
        return fleet_service_pb2.RegisterResponse(
            profile=device.profile,
            message=device.message,
            report_interval_s=self._settings.report_interval_s,
            profiles=[
                fleet_service_pb2.HostedProfile(
                    workload=hosted.workload, profile=hosted.profile, message=hosted.message
                )
                for hosted in device.hosted
            ],
            server_time=timestamp(self._now_s()),
        )

    async def UpdateDeploymentStatus(
        self,
        request: fleet_service_pb2.UpdateDeploymentStatusRequest,
        context: grpc.aio.ServicerContext[
            fleet_service_pb2.UpdateDeploymentStatusRequest,
            fleet_service_pb2.UpdateDeploymentStatusResponse,
        ],
    ) -> fleet_service_pb2.UpdateDeploymentStatusResponse:
        """Remember how far a deployment has come."""
        now_s = self._now_s()
        try:
            status = status_from_proto(request.status)
            # A clock that runs ahead may not put a later word in the shade.
            status = replace(status, event_time_s=min(status.event_time_s, now_s))
            is_news = await asyncio.to_thread(self._record_status, status, now_s)
        except Exception as error:  # noqa: BLE001 - _abort sorts and logs it
            await _abort(context, error)
        if status.state is DeploymentState.REFUSED:
            logger.warning(
                "device %s refused what it was sent (generation %d): %s: %s",
                status.device_id,
                status.generation,
                status.code,
                status.message,
            )
        if is_news:
            self._on_status(status)
        return fleet_service_pb2.UpdateDeploymentStatusResponse()

    async def StreamReports(
        self,
        request_iterator: AsyncIterator[fleet_service_pb2.StreamReportsRequest],
        context: grpc.aio.ServicerContext[
            fleet_service_pb2.StreamReportsRequest, fleet_service_pb2.StreamReportsResponse
        ],
    ) -> AsyncIterator[fleet_service_pb2.StreamReportsResponse]:
        """Acknowledge each batch once it is durable, in the order of arrival."""
        pending: asyncio.Queue[_Pending | Exception | None] = asyncio.Queue(_MAX_IN_FLIGHT)
        reader = asyncio.create_task(self._read_batches(request_iterator, pending))
        try:
            while (batch := await pending.get()) is not None:
                if isinstance(batch, Exception):
                    raise batch
                await batch.done
                yield fleet_service_pb2.StreamReportsResponse(
                    batch_id=batch.batch_id, num_accepted=batch.num_accepted, rejected=batch.rejected
                )
        except Exception as error:  # noqa: BLE001 - _abort sorts and logs it
            await _abort(context, error)
        finally:
            reader.cancel()

    async def _read_batches(
        self,
        requests: AsyncIterator[fleet_service_pb2.StreamReportsRequest],
        pending: asyncio.Queue[_Pending | Exception | None],
    ) -> None:
        try:
            async for request in requests:
                rows, rejected = await self._check(request)
                done = await self._writer.submit(rows)
                await pending.put(
                    _Pending(batch_id=request.batch_id, num_accepted=len(rows), rejected=rejected, done=done)
                )
        except Exception as error:  # noqa: BLE001 - the other half of the stream raises it
            await pending.put(error)
        else:
            await pending.put(None)

    async def _check(
        self, request: fleet_service_pb2.StreamReportsRequest
    ) -> tuple[list[ReportRow], list[fleet_service_pb2.RejectedReport]]:
        if len(request.reports) > MAX_BATCH:
            raise RejectedError(
                f"batch {request.batch_id} has {len(request.reports)} reports: send at most {MAX_BATCH}",
                code="batch-too-large",
            )
        now_s = self._now_s()
        rows: list[ReportRow] = []
        rejected: list[fleet_service_pb2.RejectedReport] = []
        for report in request.reports:
            try:
                row = check_report(report, self._settings.bounds, now_s)
                if row.device_id not in self._device_ids and not await self._is_known(row.device_id):
                    raise RejectedError(
                        f"device {row.device_id} is not registered: register first", code="device-unknown"
                    )
            except RejectedError as error:
                rejected.append(
                    fleet_service_pb2.RejectedReport(
                        boot_id=report.boot_id,
                        sequence=report.sequence,
                        code=error.code,
                        message=error.message,
                    )
                )
            else:
                rows.append(row)
        return rows, rejected

    async def _is_known(self, device_id: str) -> bool:
        """Devices may register elsewhere, or before a restart. Read seldom, however many unknown ids come."""
        async with self._device_ids_lock:
            if device_id not in self._device_ids:
                clock_s = time.monotonic()
                if clock_s - self._device_ids_read_s >= _DEVICE_IDS_REFRESH_S:
                    self._device_ids |= await asyncio.to_thread(self._store.device_ids)
                    self._device_ids_read_s = clock_s
        return device_id in self._device_ids

    def _register(self, device: Device) -> Device:
        # What operators bound to the device holds, whatever it says of itself.
        bound = self._store.bound_labels(device.device_id)
        device = matched(replace(device, labels={**device.labels, **bound}), self._store.profiles())
        return self._store.register_device(device, device.profile or None, device.message, self._now_s())

    def _record_status(self, status: DeploymentStatus, now_s: float) -> bool:
        try:
            return self._store.record_status(status, now_s)
        except RejectedError as error:
            if error.code == "device-unknown":  # once it has registered, this status is as good as any
                raise TransientError(error.message, code=error.code) from error
            raise


def add_fleet_service(server: grpc.aio.Server, servicer: FleetServicer) -> None:
    """Attach the service to a server that has not started yet."""
    fleet_service_pb2_grpc.add_FleetServiceServicer_to_server(servicer, server)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    if isinstance(error, EdgeloopError):
        await context.abort(*abort_args(error))
    logger.error("a call failed", exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "the server failed: its log says why")
