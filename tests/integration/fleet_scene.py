"""FleetService over real gRPC and SQLite, and what a device says to it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from cloud.domain.devices import DeploymentStatus
from cloud.services.convert import timestamp
from cloud.services.fleet import SERVER_OPTIONS, FleetServicer, FleetSettings, add_fleet_service
from cloud.store import ReportRow, Store
from edgeloop.sketch import LatencySketch
from edgeloop.v1 import (
    deployment_pb2,
    device_pb2,
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    telemetry_pb2,
)

DIGEST = "1" * 64
SKETCH = LatencySketch.of([1.0, 2.0, 3.0]).to_proto()


def registration(device_id: str = "gw-1", **changes: Any) -> device_pb2.Registration:
    message = device_pb2.Registration(
        device_id=device_id,
        hardware=device_pb2.Hardware(architecture="x86_64", num_cores=2, memory_bytes=1 << 32),
        labels={"class": "small"},
        boot_id="boot-1",
        emulated_slowdown=1,
    )
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def report(sequence: int, *, device_id: str = "gw-1", ago_s: float = 1.0) -> telemetry_pb2.LatencyReport:
    end_s = time.time() - ago_s
    return telemetry_pb2.LatencyReport(
        device_id=device_id,
        boot_id="boot-1",
        sequence=sequence,
        digest=DIGEST,
        generation=1,
        workload="digits",
        start_time=timestamp(end_s - 1),
        end_time=timestamp(end_s),
        latency=SKETCH,
        reference=SKETCH,
        emulated_slowdown=1,
    )


def batch(batch_id: int, *reports: telemetry_pb2.LatencyReport) -> fleet_service_pb2.StreamReportsRequest:
    return fleet_service_pb2.StreamReportsRequest(batch_id=batch_id, reports=reports)


@dataclass
class Fleet:
    store: Store
    stub: fleet_service_pb2_grpc.FleetServiceStub
    servicer: FleetServicer
    registered: list[str] = field(default_factory=list)
    statuses: list[DeploymentStatus] = field(default_factory=list)

    async def register(
        self, message: device_pb2.Registration | None = None
    ) -> fleet_service_pb2.RegisterResponse:
        request = fleet_service_pb2.RegisterRequest(registration=message or registration())
        return await self.stub.Register(request)

    async def send(
        self, *batches: fleet_service_pb2.StreamReportsRequest
    ) -> list[fleet_service_pb2.StreamReportsResponse]:
        """One stream from beginning to end."""

        async def requests() -> AsyncIterator[fleet_service_pb2.StreamReportsRequest]:
            for one in batches:
                yield one

        return [response async for response in self.stub.StreamReports(requests())]

    async def say(self, **changes: Any) -> None:
        status = deployment_pb2.DeploymentStatus(
            device_id="gw-1",
            generation=1,
            digest=DIGEST,
            state=deployment_pb2.DEPLOYMENT_STATE_ACTIVE,
            event_time=timestamp(time.time()),
        )
        for name, value in changes.items():
            setattr(status, name, value)
        await self.stub.UpdateDeploymentStatus(fleet_service_pb2.UpdateDeploymentStatusRequest(status=status))


@asynccontextmanager
async def serving(store: Store) -> AsyncIterator[Fleet]:
    fleet = Fleet(store, None, None)
    servicer = FleetServicer(
        store,
        settings=FleetSettings(report_interval_s=7),
        on_register=fleet.registered.append,
        on_status=fleet.statuses.append,
    )
    fleet.servicer = servicer
    await servicer.start()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_fleet_service(server, servicer)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        fleet.stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
        yield fleet
    await server.stop(0)
    await servicer.stop()


class GatedStore(Store):
    """Commits wait until the test opens the gate."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.gate = threading.Event()
        self.num_commits = 0
        self.fault: Exception | None = None

    def insert_reports(self, rows: Sequence[ReportRow], now_s: float) -> tuple[int, int]:
        assert self.gate.wait(60)
        self.num_commits += 1
        if self.fault is not None:
            raise self.fault
        return super().insert_reports(rows, now_s)


Scenario = Callable[[Fleet, GatedStore], Coroutine[Any, Any, None]]
Run = Callable[[Scenario], None]


def run_alone(folder: Path, scenario: Scenario) -> None:
    """Against a server and a database of its own."""

    async def main() -> None:
        store = GatedStore(f"sqlite:///{folder}/edgeloop.db")
        store.gate.set()
        store.migrate()
        try:
            async with asyncio.timeout(120), serving(store) as fleet:
                await scenario(fleet, store)
        finally:
            store.gate.set()
            store.close()

    asyncio.run(main())
