"""A reporter, its spool, and a real gRPC server that commits, dies, refuses and hangs as a test says."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from machine import WAIT_S, free_port

from edge_agent.reporter import FleetReporter
from edge_agent.spool import ReportSpool
from edgeloop.backoff import Backoff
from edgeloop.errors import RejectedError, TransientError, abort_args
from edgeloop.v1 import (
    deployment_pb2,
    device_pb2,
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    telemetry_pb2,
)

Key = tuple[str, int]


class FakeFleet(fleet_service_pb2_grpc.FleetServiceServicer):
    """Commits what it is sent into a dict, and misbehaves on demand."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.registrations: list[device_pb2.Registration] = []
        self.committed: dict[Key, telemetry_pb2.LatencyReport] = {}
        self.statuses: list[deployment_pb2.DeploymentStatus] = []
        self.num_batches = 0
        self.num_received = 0
        #: Called with the request; may raise, or return an answer of its own.
        self.on_batch: Callable[[fleet_service_pb2.StreamReportsRequest], Any] = lambda request: None
        self.on_status: Callable[[deployment_pb2.DeploymentStatus], None] = lambda status: None
        self.on_register: Callable[[], None] = lambda: None

    def Register(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._try(context, self.on_register)
        self.registrations.append(request.registration)
        return fleet_service_pb2.RegisterResponse(profile="small", report_interval_s=7)

    def StreamReports(self, requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for request in requests:
            self.num_batches += 1
            answer = self._try(context, self.on_batch, request)
            if answer is None:
                self.commit(request)
                answer = fleet_service_pb2.StreamReportsResponse(
                    batch_id=request.batch_id, num_accepted=len(request.reports)
                )
            yield answer

    def UpdateDeploymentStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._try(context, self.on_status, request.status)
        self.statuses.append(request.status)
        return fleet_service_pb2.UpdateDeploymentStatusResponse()

    def commit(self, request: fleet_service_pb2.StreamReportsRequest) -> None:
        with self.lock:
            for report in request.reports:
                self.num_received += 1
                self.committed[report.boot_id, report.sequence] = report

    def _try(self, context: grpc.ServicerContext, action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except (TransientError, RejectedError) as error:
            code, message, metadata = abort_args(error)
            context.set_trailing_metadata(metadata)
            context.abort(code, message)


def start_server(fleet: FakeFleet, port: int) -> grpc.Server:
    server = grpc.server(
        futures.ThreadPoolExecutor(8),
        options=[("grpc.so_reuseport", 0), ("grpc.http2.min_ping_interval_without_data_ms", 10_000)],
    )
    fleet_service_pb2_grpc.add_FleetServiceServicer_to_server(fleet, server)
    assert server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server


class World:
    """A server on a fixed port, a spool, and a reporter between them."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.directory = directory
        self.fleet = FakeFleet()
        self.server: grpc.Server | None = None
        self.boot = "boot-1"
        self.spool = ReportSpool(directory / "reports.db", boot_id=self.boot)
        self.answers: list[fleet_service_pb2.RegisterResponse] = []
        self.reporter = self.make()

    def make(self, ack_timeout_s: float = WAIT_S) -> FleetReporter:
        return FleetReporter(
            server=f"127.0.0.1:{self.port}",
            spool=self.spool,
            registration=lambda: device_pb2.Registration(device_id="gateway-1", boot_id=self.boot),
            on_registered=self.answers.append,
            backoff=Backoff(0.02, 0.1, random.Random(1)),
            ack_timeout_s=ack_timeout_s,
        )

    def up(self) -> None:
        self.server = start_server(self.fleet, self.port)

    def down(self) -> None:
        if self.server is not None:
            self.server.stop(None).wait()
            self.server = None

    def append(self, number: int = 1) -> list[int]:
        sequences = [self.spool.append(telemetry_pb2.LatencyReport(digest="a" * 64)) for _ in range(number)]
        self.reporter.wake()
        return sequences


def status(generation: int, state: str) -> deployment_pb2.DeploymentStatus:
    return deployment_pb2.DeploymentStatus(
        device_id="gateway-1",
        generation=generation,
        state=deployment_pb2.DeploymentState.Value(f"DEPLOYMENT_STATE_{state}"),
    )


def of_the_reporter(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Without what threads of other tests have to say."""
    return [record for record in list(caplog.records) if record.name == "edge_agent.reporter"]
