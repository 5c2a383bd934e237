"""Many devices in one process for the fleet benchmark: each with a key, a certificate and a session.

What a device does here is what ``edge_agent`` does on the wire: it enrols with its one-time token over a
connection of its own, opens one mutual-TLS channel, registers, says that its deployment is active, and holds
one report stream. A report that was not acknowledged is sent again over the next connection. There is no
model: the sketches are drawn from a distribution. Keys are made before any clock runs.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import grpc
import grpc.aio

from edgeloop.identity import certificate_request, new_private_key
from edgeloop.sketch import LatencySketch
from edgeloop.v1 import (
    deployment_pb2,
    device_pb2,
    enrolment_service_pb2,
    enrolment_service_pb2_grpc,
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    telemetry_pb2,
)

_CALL_S = 30.0
_ACK_S = 30.0
_DRAIN_S = 90.0
_RETRY_MAX_S = 8.0
_SAMPLES_A_WINDOW = 100
_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """``num_enrolling`` enrol at a time; devices connect within ``ramp_s``, then report for ``hold_s``."""

    ca_pem: bytes
    enrol: str
    fleet: str
    digest: str
    workload: str
    num_enrolling: int
    ramp_s: float
    hold_s: float
    interval_s: float


@dataclass(slots=True)
class Counts:
    """Of one device. ``num_sent`` and ``num_acknowledged`` are distinct reports.

    Of each batch, when it was sent (since all began) and how long its acknowledgement took.
    """

    num_sent: int = 0
    num_acknowledged: int = 0
    num_connections: int = 0
    num_rejected: int = 0
    latencies_s: list[tuple[float, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Device:
    """One simulated device."""

    def __init__(self, device_id: str, token: str, plan: Plan, rng: random.Random) -> None:
        self.device_id = device_id
        self.counts = Counts()
        self._token = token
        self._plan = plan
        self._rng = rng
        self._boot_id = f"b{rng.getrandbits(48):x}"
        self._key_pem = new_private_key()
        self._request = certificate_request(self._key_pem, "new")
        self._certificate_pem = b""
        self._waiting: list[telemetry_pb2.LatencyReport] = []
        self._made = asyncio.Event()
        self._began_s = 0.0

    async def enrol(self) -> float:
        """Seconds from the connection's begin to the certificate."""
        request = enrolment_service_pb2.EnrolRequest(token=self._token, certificate_request=self._request)
        began_s = time.monotonic()
        credentials = grpc.ssl_channel_credentials(self._plan.ca_pem)
        async with grpc.aio.secure_channel(self._plan.enrol, credentials, options=_OPTIONS) as channel:
            stub = enrolment_service_pb2_grpc.EnrolmentServiceStub(channel)
            answer = await stub.Enrol(request, timeout=_CALL_S)
        assert answer.issued.device_id == self.device_id
        self._certificate_pem = answer.issued.certificate_pem
        return time.monotonic() - began_s

    async def run(self, began_s: float) -> None:
        """Hold a session until all that was reported by the end is acknowledged, or time is up."""
        plan, self._began_s = self._plan, began_s
        await asyncio.sleep(self._rng.uniform(0.0, plan.ramp_s))
        end_s = began_s + plan.ramp_s + plan.hold_s
        making = asyncio.create_task(self._make_reports(end_s))
        retry_s = 0.5
        while time.monotonic() < end_s + _DRAIN_S and not (making.done() and not self._waiting):
            try:
                await self._connect(making)
            except grpc.aio.AioRpcError as error:
                self.counts.errors.append(f"{error.code().name}: {(error.details() or '')[:160]}")
            except TimeoutError:
                self.counts.errors.append(f"no acknowledgement within {_ACK_S:g} s")
            else:
                break
            await asyncio.sleep(self._rng.uniform(0.0, retry_s))
            retry_s = min(_RETRY_MAX_S, retry_s * 2)
        await making

    async def _make_reports(self, end_s: float) -> None:
        interval_s = self._plan.interval_s
        at_s = time.monotonic() + self._rng.uniform(0.0, interval_s)
        while at_s < end_s:
            await asyncio.sleep(max(0.0, at_s - time.monotonic()))
            self._waiting.append(self._report(time.time()))
            self.counts.num_sent += 1
            self._made.set()
            at_s += interval_s
        self._made.set()

    def _report(self, now_s: float) -> telemetry_pb2.LatencyReport:
        rng = self._rng
        report = telemetry_pb2.LatencyReport(
            device_id=self.device_id,
            boot_id=self._boot_id,
            sequence=self.counts.num_sent,
            digest=self._plan.digest,
            generation=1,
            workload=self._plan.workload,
            latency=LatencySketch.of(
                rng.lognormvariate(1.0, 0.25) for _ in range(_SAMPLES_A_WINDOW)
            ).to_proto(),
            reference=LatencySketch.of(rng.lognormvariate(-2.3, 0.1) for _ in range(10)).to_proto(),
            rss_bytes=80 << 20,
            emulated_slowdown=1,
        )
        report.start_time.FromMicroseconds(round((now_s - self._plan.interval_s) * 1e6))
        report.end_time.FromMicroseconds(round(now_s * 1e6))
        return report

    async def _connect(self, making: asyncio.Task[None]) -> None:
        """One connection; returns when nothing is left to report."""
        credentials = grpc.ssl_channel_credentials(self._plan.ca_pem, self._key_pem, self._certificate_pem)
        async with grpc.aio.secure_channel(self._plan.fleet, credentials, options=_OPTIONS) as channel:
            stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
            await stub.Register(
                fleet_service_pb2.RegisterRequest(registration=self._registration()), timeout=_CALL_S
            )
            self.counts.num_connections += 1
            if self.counts.num_connections == 1:
                status = deployment_pb2.DeploymentStatus(
                    device_id=self.device_id,
                    generation=1,
                    digest=self._plan.digest,
                    state=deployment_pb2.DEPLOYMENT_STATE_ACTIVE,
                )
                status.event_time.FromMicroseconds(round(time.time() * 1e6))
                request = fleet_service_pb2.UpdateDeploymentStatusRequest(status=status)
                await stub.UpdateDeploymentStatus(request, timeout=_CALL_S)
            await self._report_over(stub, making)

    async def _report_over(
        self, stub: fleet_service_pb2_grpc.FleetServiceStub, making: asyncio.Task[None]
    ) -> None:
        batches: asyncio.Queue[fleet_service_pb2.StreamReportsRequest | None] = asyncio.Queue()

        async def requests() -> AsyncIterator[fleet_service_pb2.StreamReportsRequest]:
            while (request := await batches.get()) is not None:
                yield request

        call = stub.StreamReports(requests())
        replies = aiter(call)
        batch_id = 0
        while True:
            if not self._waiting:
                if making.done():
                    batches.put_nowait(None)
                    return
                self._made.clear()
                await self._wait_for_reports(call)
                continue
            sent, batch_id = list(self._waiting), batch_id + 1
            sent_s = time.monotonic()
            batches.put_nowait(fleet_service_pb2.StreamReportsRequest(batch_id=batch_id, reports=sent))
            try:
                reply = await asyncio.wait_for(anext(replies), _ACK_S)
            except StopAsyncIteration:
                raise TimeoutError from None
            self.counts.latencies_s.append((sent_s - self._began_s, time.monotonic() - sent_s))
            self.counts.num_rejected += len(reply.rejected)
            self.counts.num_acknowledged += reply.num_accepted
            del self._waiting[: len(sent)]

    async def _wait_for_reports(
        self,
        call: grpc.aio.StreamStreamCall[
            fleet_service_pb2.StreamReportsRequest, fleet_service_pb2.StreamReportsResponse
        ],
    ) -> None:
        """Until there is one, or the stream ended; then its error is raised."""
        made = asyncio.ensure_future(self._made.wait())
        ended = asyncio.ensure_future(call.code())
        done, _ = await asyncio.wait({made, ended}, return_when=asyncio.FIRST_COMPLETED)
        made.cancel()
        if ended in done:
            raise grpc.aio.AioRpcError(
                ended.result(), grpc.aio.Metadata(), grpc.aio.Metadata(), details=await call.details()
            )
        ended.cancel()

    def _registration(self) -> device_pb2.Registration:
        return device_pb2.Registration(
            device_id=self.device_id,
            hardware=device_pb2.Hardware(
                architecture="aarch64", num_cores=4, memory_bytes=1 << 32, runtime="onnxruntime"
            ),
            boot_id=self._boot_id,
            emulated_slowdown=1,
            generation=1 if self.counts.num_connections else 0,
        )


def run_devices(plan: Plan, tokens: dict[str, str], seed: int, cores: set[int], pipe: Connection) -> None:
    """A load process. Over the pipe: "ready"; told "enrol", the latencies; told "hold", the counts."""
    os.sched_setaffinity(0, cores)
    asyncio.run(_run(plan, tokens, seed, pipe))


async def _run(plan: Plan, tokens: dict[str, str], seed: int, pipe: Connection) -> None:
    rng = random.Random(seed)
    devices = [
        Device(device_id, token, plan, random.Random(rng.random())) for device_id, token in tokens.items()
    ]
    pipe.send("ready")
    assert await asyncio.to_thread(pipe.recv) == "enrol"
    room = asyncio.Semaphore(plan.num_enrolling)

    async def enrol(device: Device) -> float:
        async with room:
            return await device.enrol()

    pipe.send(await asyncio.gather(*(enrol(device) for device in devices)))
    if await asyncio.to_thread(pipe.recv) != "hold":
        return
    began_s = time.monotonic()
    await asyncio.gather(*(device.run(began_s) for device in devices))
    pipe.send({device.device_id: device.counts for device in devices})
