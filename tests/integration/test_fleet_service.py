"""FleetService over real gRPC and SQLite, down to a server that dies between commit and acknowledgement."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from cloud.domain.devices import DeploymentState, DeploymentStatus
from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.rollout import DeploymentIntent
from cloud.services import report_writer
from cloud.services.convert import timestamp
from cloud.services.fleet import SERVER_OPTIONS, FleetServicer, FleetSettings, add_fleet_service
from cloud.store import ReportRow, Store
from edgeloop.errors import RejectedError, TransientError, error_from_grpc
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


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[Fleet, GatedStore], Coroutine[Any, Any, None]]], None]:
    """Runs a scenario against a server of its own."""

    def run(scenario: Callable[[Fleet, GatedStore], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            store = GatedStore(f"sqlite:///{tmp_path}/edgeloop.db")
            store.gate.set()
            store.migrate()
            try:
                async with asyncio.timeout(120), serving(store) as fleet:
                    await scenario(fleet, store)
            finally:
                store.gate.set()
                store.close()

        asyncio.run(main())

    return run


Run = Callable[[Callable[[Fleet, GatedStore], Coroutine[Any, Any, None]]], None]


def test_registering_answers_with_the_profile(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        before_s = time.time()
        answer = await fleet.register()
        assert (answer.profile, answer.report_interval_s) == ("", 7)
        assert before_s - 1e-3 <= answer.server_time.ToNanoseconds() / 1e9 <= time.time() + 1e-3
        assert "no profile exists yet" in answer.message
        store.apply_profile(
            DeviceProfile(name="small", workload="digits", match=MatchRule(labels={"class": "small"})), 1.0
        )
        assert (await fleet.register()).profile == "small"
        assert (await fleet.register()).profile == "small"
        assert [device.profile for device in store.devices()] == ["small"]
        assert fleet.registered == ["gw-1"] * 3
        # A device that hosts several hears of each, in its own order.
        message = registration("gw-2")
        message.workloads.extend(device_pb2.HostedWorkload(workload=name) for name in ("ears", "digits"))
        ears, digits = (await fleet.register(message)).profiles
        assert (ears.workload, ears.profile) == ("ears", "")
        assert ears.message != ""
        assert (digits.workload, digits.profile, digits.message) == ("digits", "small", "")
        assert not (await fleet.register()).profiles

    run(scenario)


def test_a_bad_registration_gets_a_clear_error_and_changes_nothing(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fleet.register(registration(device_id="no/such"))
        error = error_from_grpc(caught.value)
        assert isinstance(error, RejectedError)
        assert (error.code, caught.value.code()) == ("device-id", grpc.StatusCode.INVALID_ARGUMENT)
        assert (store.devices(), fleet.registered) == ([], [])

    run(scenario)


def test_a_generation_that_the_device_claims_is_the_floor_of_the_next(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register(registration(generation=17))
        intent = DeploymentIntent(
            device_id="gw-1", workload="digits", profile="small", digest=DIGEST, manifest_digest=DIGEST
        )
        assert store.issue_deployment(intent, 1.0).generation == 18

    run(scenario)


def test_batches_are_acknowledged_in_order_and_counted_once(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register()
        batches = [batch(10 + n, *(report(5 * n + k) for k in range(5))) for n in range(30)]
        answers = await fleet.send(*batches, batch(99), batches[0])
        assert [answer.batch_id for answer in answers] == [10 + n for n in range(30)] + [99, 10]
        assert [answer.num_accepted for answer in answers] == [5] * 30 + [0, 5]
        assert sorted(window.sequence for window in store.windows()) == list(range(150))
        device = store.device("gw-1")
        assert device is not None
        assert device.serving_digest == DIGEST

    run(scenario)


def test_impossible_reports_are_refused_alone(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register()
        broken = report(2)
        broken.latency.counts[0] = 0
        (answer,) = await fleet.send(
            batch(1, report(0), report(1, ago_s=-4000), broken, report(3, device_id="gw-9"), report(4))
        )
        assert answer.num_accepted == 2
        assert [(refused.sequence, refused.code) for refused in answer.rejected] == [
            (1, "report-future"),
            (2, "sketch-field"),
            (3, "device-unknown"),
        ]
        assert {refused.boot_id for refused in answer.rejected} == {"boot-1"}
        assert {window.sequence for window in store.windows()} == {0, 4}

    run(scenario)


def test_a_device_that_another_server_registered_is_known(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register()
        async with serving(store) as other:
            (answer,) = await other.send(batch(1, report(0)))
        assert answer.num_accepted == 1

    run(scenario)


def test_too_large_a_batch_ends_its_stream_and_no_other(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fleet.send(batch(1, *(report(n) for n in range(501))))
        assert error_from_grpc(caught.value).code == "batch-too-large"
        assert store.windows() == []
        assert [answer.num_accepted for answer in await fleet.send(batch(2, report(0)))] == [1]

    run(scenario)


def test_nothing_is_acknowledged_before_its_commit_and_waiting_batches_share_one(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register()
        store.gate.clear()
        streams = [asyncio.create_task(fleet.send(batch(n, report(n)))) for n in range(20)]
        while fleet.servicer.num_queued_reports < 20:
            await asyncio.sleep(0.01)
        done, _ = await asyncio.wait(streams, timeout=0.5)
        assert not done
        store.gate.set()
        answers = await asyncio.gather(*streams)
        assert [answer.num_accepted for (answer,) in answers] == [1] * 20
        assert len(store.windows()) == 20
        assert store.num_commits <= 2, "the first ones, and those that came while these were written"

    run(scenario)


def test_a_slow_disk_holds_the_sender_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_writer, "_MAX_QUEUED_BATCHES", 4)
    num_read = 0

    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register()
        store.gate.clear()
        padding = [report(n) for n in range(400)]

        async def requests() -> AsyncIterator[fleet_service_pb2.StreamReportsRequest]:
            nonlocal num_read
            for n in range(200):
                num_read += 1
                yield batch(n, *padding)

        call = fleet.stub.StreamReports(requests())
        first = asyncio.create_task(call.read())
        await asyncio.wait([first], timeout=1.5)
        assert not first.done()
        assert num_read < 150  # a few in the server's queue, a few in HTTP/2's window, and no more
        store.gate.set()
        assert (await first).num_accepted == 400
        call.cancel()

    run(scenario)


def test_a_database_that_fails_ends_the_stream_for_another_try(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register()
        store.fault = TransientError("the disk is full", code="store-busy")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fleet.send(batch(1, report(0)))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        store.fault = ValueError("a fault of the server itself, with secrets in it")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fleet.send(batch(1, report(0)))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secrets" not in (caught.value.details() or "")
        store.fault = None
        assert [answer.num_accepted for answer in await fleet.send(batch(1, report(0)))] == [1]

    run(scenario)


def test_a_client_that_leaves_midway_does_not_stop_the_others(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register()
        store.gate.clear()

        async def requests() -> AsyncIterator[fleet_service_pb2.StreamReportsRequest]:
            yield batch(1, report(0))
            await asyncio.sleep(3600)

        call = fleet.stub.StreamReports(requests())
        await asyncio.sleep(0.2)
        call.cancel()
        await asyncio.sleep(0.1)
        store.gate.set()
        assert [answer.num_accepted for answer in await fleet.send(batch(2, report(0), report(1)))] == [2]
        assert {window.sequence for window in store.windows()} == {0, 1}

    run(scenario)


def test_deployment_states_are_told_once(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register()
        intent = DeploymentIntent(
            device_id="gw-1", workload="digits", profile="small", digest=DIGEST, manifest_digest=DIGEST
        )
        store.issue_deployment(intent, 1.0)
        await fleet.say()
        await fleet.say()
        await fleet.say(state=deployment_pb2.DEPLOYMENT_STATE_ROLLED_BACK)
        assert [status.state for status in fleet.statuses] == [DeploymentState.ACTIVE]
        deployment = store.deployment("gw-1")
        assert deployment is not None
        assert deployment.state is DeploymentState.ACTIVE
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fleet.say(generation=2, digest="no digest")
        assert isinstance(error_from_grpc(caught.value), RejectedError)

    run(scenario)


def test_a_status_before_the_registration_is_to_be_sent_again(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fleet.say()
        error = error_from_grpc(caught.value)
        assert isinstance(error, TransientError)
        assert error.code == "device-unknown"
        await fleet.register()
        await fleet.say()

    run(scenario)


def test_a_clock_ahead_does_not_put_later_words_in_the_shade(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register()
        ahead = deployment_pb2.DeploymentStatus(
            device_id="gw-1",
            generation=1,
            digest="2" * 64,
            state=deployment_pb2.DEPLOYMENT_STATE_TRIAL,
            event_time=timestamp(time.time() + 1e6),
        )
        await fleet.stub.UpdateDeploymentStatus(fleet_service_pb2.UpdateDeploymentStatusRequest(status=ahead))
        await fleet.send(batch(1, report(0, ago_s=-1.0)))
        device = store.device("gw-1")
        assert device is not None
        assert device.serving_digest == DIGEST

    run(scenario)


def test_a_port_in_use_is_an_error(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        first = grpc.aio.server(options=SERVER_OPTIONS)
        port = first.add_insecure_port("127.0.0.1:0")
        await first.start()
        with pytest.raises(RuntimeError):
            grpc.aio.server(options=SERVER_OPTIONS).add_insecure_port(f"127.0.0.1:{port}")
        await first.stop(0)

    run(scenario)


class CrashServer:
    """fleet_crash_server.py as a process."""

    def __init__(self, directory: Path) -> None:
        self.database = directory / "edgeloop.db"
        self.trigger = directory / "die"
        self._port_file = directory / "port"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        self._port_file.unlink(missing_ok=True)
        script = Path(__file__).with_name("fleet_crash_server.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(self.database), str(self._port_file), str(self.trigger)]
        )
        until_s = time.monotonic() + 60
        while not self._port_file.exists():
            assert self._process.poll() is None, "the server did not start"
            assert time.monotonic() < until_s, "the server took over 60 s to start"
            time.sleep(0.05)
        return int(self._port_file.read_text())

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait(60)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)


def test_a_server_killed_between_commit_and_acknowledgement_counts_the_resend_once(tmp_path: Path) -> None:
    server = CrashServer(tmp_path)
    request = batch(1, *(report(n) for n in range(50)))

    def send(port: int, *, register: bool) -> list[int]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
            if register:
                stub.Register(fleet_service_pb2.RegisterRequest(registration=registration()), timeout=60)
            return [answer.num_accepted for answer in stub.StreamReports(iter([request]), timeout=60)]

    try:
        port = server.start()
        server.trigger.touch()
        with pytest.raises(grpc.RpcError) as caught:
            send(port, register=True)
        assert isinstance(error_from_grpc(caught.value), TransientError)
        assert server.wait() == -9
        server.trigger.unlink()
        # As an agent does: what was not acknowledged is sent again, to the server that came back.
        assert send(server.start(), register=False) == [50]
    finally:
        server.stop()
    store = Store(f"sqlite:///{server.database}")
    assert sorted(window.sequence for window in store.windows()) == list(range(50))
    store.close()
