"""Reports to FleetService: acknowledged after their commit, counted once, down to a server that is killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import grpc.aio
import pytest
from fleet_scene import DIGEST, Fleet, GatedStore, Run, batch, registration, report, run_alone, serving

from cloud.services import report_writer
from cloud.store import Store
from edgeloop.errors import TransientError, error_from_grpc
from edgeloop.v1 import (
    fleet_service_pb2,
    fleet_service_pb2_grpc,
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a scenario against a server of its own."""

    return partial(run_alone, tmp_path)


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
