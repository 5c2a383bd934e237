"""How many reports one server core acknowledges a second, end to end, against durable single reports.

The real servicer over real gRPC, real sketches, SQLite on a disk, acknowledged after commit. The server is a
process on one core, the client on another. Both rates come from the same run, so their ratio holds where
neither figure does: ``python -m benchmarks.reports``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path

import grpc.aio

from cloud.domain.devices import Device
from cloud.domain.profiles import Hardware
from cloud.services.fleet import SERVER_OPTIONS, FleetServicer, add_fleet_service
from cloud.store import Store
from edgeloop.sketch import LatencySketch
from edgeloop.v1 import fleet_service_pb2, telemetry_pb2

SAMPLES_A_WINDOW = 300
IN_FLIGHT = 8


def serve(path: Path, core: int | None, pipe: Connection) -> None:
    """The server process: answers until it is told to stop, then says how much CPU it used."""
    if core is not None:
        os.sched_setaffinity(0, {core})

    async def main() -> None:
        store = Store(f"sqlite:///{path}")
        store.migrate()
        hardware = Hardware(architecture="x86_64", num_cores=4, memory_bytes=1 << 32)
        for n in range(num_devices := pipe.recv()):
            store.register_device(
                Device(device_id=f"gateway-{n:04d}", hardware=hardware, boot_id="boot"), None, "", time.time()
            )
        servicer = FleetServicer(store)
        await servicer.start()
        server = grpc.aio.server(options=SERVER_OPTIONS)
        add_fleet_service(server, servicer)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send((port, num_devices))
        while (word := await asyncio.to_thread(pipe.recv)) != "stop":
            assert word == "cpu"
            used = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send(used.ru_utime + used.ru_stime)
        await server.stop(1)
        await servicer.stop()
        num_stored = len(store.windows())
        store.close()
        pipe.send(num_stored)

    asyncio.run(main())


def make_reports(num: int, device: int, boot: str, rng: random.Random) -> list[telemetry_pb2.LatencyReport]:
    """Windows as an agent sends them: a long-tailed latency and the reference kernel beside it."""
    sketches = [
        LatencySketch.of(rng.lognormvariate(1.0, 0.25) for _ in range(SAMPLES_A_WINDOW)).to_proto()
        for _ in range(16)
    ]
    end_s = int(time.time()) - num - 10
    reports = []
    for sequence in range(num):
        report = telemetry_pb2.LatencyReport(
            device_id=f"gateway-{device:04d}",
            boot_id=boot,
            sequence=sequence,
            digest="ab" * 32,
            generation=3,
            workload="digits",
            latency=rng.choice(sketches),
            reference=rng.choice(sketches),
            rss_bytes=80 << 20,
            emulated_slowdown=1,
        )
        report.start_time.seconds = end_s + sequence
        report.end_time.seconds = end_s + sequence + 1
        reports.append(report)
    return reports


async def stream(channel: grpc.aio.Channel, batches: list[bytes], in_flight: int) -> int:
    """Send batches over one stream, at most ``in_flight`` of them unacknowledged; how many were accepted."""
    room = asyncio.Semaphore(in_flight)
    call: grpc.aio.StreamStreamMultiCallable[bytes, fleet_service_pb2.StreamReportsResponse]
    call = channel.stream_stream(
        "/edgeloop.v1.FleetService/StreamReports",
        request_serializer=None,
        response_deserializer=fleet_service_pb2.StreamReportsResponse.FromString,
    )

    async def requests() -> AsyncIterator[bytes]:
        for batch in batches:
            await room.acquire()
            yield batch

    num_accepted = 0
    async for response in call(requests()):
        room.release()
        num_accepted += response.num_accepted
        assert not response.rejected, response.rejected[0].message
    return num_accepted


async def measure(
    port: int, pipe: Connection, *, num_streams: int, num_reports: int, batch: int, in_flight: int, boot: str
) -> dict[str, float]:
    """Acknowledged reports a second, by the clock and by the server's CPU time."""
    rng = random.Random(7)
    batches = []
    for device in range(num_streams):
        reports = make_reports(num_reports // num_streams, device, boot, rng)
        batches.append(
            [
                fleet_service_pb2.StreamReportsRequest(
                    batch_id=start, reports=reports[start : start + batch]
                ).SerializeToString()
                for start in range(0, len(reports), batch)
            ]
        )
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}") for _ in range(num_streams)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    pipe.send("cpu")
    cpu_s = pipe.recv()
    start_s = time.perf_counter()
    accepted = sum(
        await asyncio.gather(
            *(stream(channel, mine, in_flight) for channel, mine in zip(channels, batches, strict=True))
        )
    )
    wall_s = time.perf_counter() - start_s
    pipe.send("cpu")
    cpu_s = pipe.recv() - cpu_s
    await asyncio.gather(*(channel.close() for channel in channels))
    return {
        "num_acknowledged": accepted,
        "reports_per_s": accepted / wall_s,
        "reports_per_cpu_s": accepted / cpu_s,
    }


async def client(port: int, pipe: Connection, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Single, batched, single, batched: a neighbour's burst then hits both."""
    found: dict[str, list[dict[str, float]]] = {"single": [], "batched": []}
    for turn in range(args.rounds):
        found["single"].append(
            await measure(
                port,
                pipe,
                num_streams=1,
                num_reports=args.single,
                batch=1,
                in_flight=1,
                boot=f"single-{turn}",
            )
        )
        found["batched"].append(
            await measure(
                port,
                pipe,
                num_streams=args.streams,
                num_reports=args.reports,
                batch=args.batch,
                in_flight=IN_FLIGHT,
                boot=f"batched-{turn}",
            )
        )
    return {
        name: {
            key: sum(run[key] for run in runs) / (1 if key == "num_acknowledged" else len(runs))
            for key in runs[0]
        }
        for name, runs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reports", type=int, default=40_000, help="reports a batched round")
    parser.add_argument("--single", type=int, default=500, help="reports a single round")
    parser.add_argument("--batch", type=int, default=100, help="reports in one message, at least 50")
    parser.add_argument("--streams", type=int, default=8, help="agents that send at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the database lies; default: a temporary folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    apart = len(cores) > 1
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        server = multiprocessing.get_context("spawn").Process(
            target=serve, args=(Path(directory) / "edgeloop.db", cores[-1] if apart else None, theirs)
        )
        server.start()
        if apart:
            os.sched_setaffinity(0, {cores[0]})
        ours.send(args.streams)
        port, _ = ours.recv()
        found = asyncio.run(client(port, ours, args))
        ours.send("stop")
        num_stored = ours.recv()
        server.join(30)
    num_acknowledged = sum(run["num_acknowledged"] for run in found.values())
    assert num_stored == num_acknowledged, f"{num_acknowledged} acknowledged, {num_stored} stored"
    ratio = found["batched"]["reports_per_s"] / found["single"]["reports_per_s"]
    if args.json:
        print(json.dumps({**found, "ratio": ratio}))
        return
    for name, run in found.items():
        print(
            f"{name:8} {run['reports_per_s']:10,.0f} reports/s   {run['reports_per_cpu_s']:10,.0f} reports "
            f"per second of server CPU   ({run['num_acknowledged']:,.0f} sent)"
        )
    print(f"ratio    {ratio:10.1f} x   (goal: at least 20 x); every acknowledged report is in the database")


if __name__ == "__main__":
    main()
