"""How many devices one control plane holds on one core, with no report lost; and how fast it enrols them.

    python -m benchmarks fleet        (``python -m benchmarks.fleet --devices 500 --hold-s 120`` for less)

A real ``edgeloop serve`` with mutual TLS and its authority, held on one core, beside PostgreSQL and Mosquitto
(SQLite and the embedded broker where those are not installed, or as asked). Simulated devices enrol, each
with a key of its own, hold a session each and report every 30 s, all deployed to and judged by the controller
meanwhile. In the end the database is asked: every report that was made was acknowledged, and is there exactly
once.

Load, database and broker share the other cores, and whatever else the machine does. So rates are also given
by the control plane's own CPU time, which says what a core that is free of others would do. What it costs to
write reports without devices, sessions and TLS is measured by ``python -m benchmarks reports``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.fleet_devices import Counts, Plan, run_devices
from benchmarks.fleet_stack import (
    WORKLOAD,
    ControlPlane,
    busy_s,
    cpu_s,
    new_keys,
    start_broker,
    start_postgres,
)
from cloud.registry import Registry

_LOAD_START_S = 120.0
#: After the last device connected: then all of them were told what to run, too.
_SETTLE_S = 60.0
#: From this share of its time on, a core counts as the limit.
_BUSY = 0.85


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))
    core, others = cores[0], set(cores[1:]) or {cores[0]}
    with ExitStack() as stack:
        keys = new_keys(folder)
        postgres = None if args.database == "sqlite" else start_postgres(folder, others)
        if postgres is not None:
            stack.callback(postgres[0].stop)
        elif args.database == "postgresql":
            raise SystemExit("PostgreSQL is not installed: install it, or say --database sqlite")
        broker = start_broker(folder, keys, others)
        if broker is not None:
            stack.callback(broker[0].stop)
        plane = ControlPlane(
            folder,
            keys,
            database_url=postgres[1] if postgres else "",
            broker=broker[1] if broker else "",
            core=core,
            report_interval_s=round(args.interval_s),
        )
        stack.callback(plane.stop)
        digest = plane.deploy(Registry(str(folder / "state" / "registry")))
        plan = Plan(
            ca_pem=keys.server_ca.read_bytes(),
            enrol=plane.addresses["enrol"],
            fleet=plane.addresses["fleet"],
            digest=digest,
            workload=WORKLOAD,
            num_enrolling=args.enrolling,
            ramp_s=args.ramp_s,
            hold_s=args.hold_s,
            interval_s=args.interval_s,
        )
        pipes, pids = _start_load(plan, plane, args, others, stack)
        found = {
            "devices": args.devices,
            "database": "PostgreSQL" if postgres else "SQLite",
            "broker": "Mosquitto" if broker else "embedded",
            "cores": len(cores),
            "enrolment": _enrol(pipes, pids, plane, args.devices, core, others),
        }
        if args.hold_s > 0:
            found["hold"] = _hold(pipes, plane, args)
        else:
            for pipe in pipes:
                pipe.send("end")
    return found


def _start_load(
    plan: Plan, plane: ControlPlane, args: argparse.Namespace, cores: set[int], stack: ExitStack
) -> tuple[list[Connection], list[int]]:
    tokens = plane.new_tokens([f"gw-{number:05d}" for number in range(args.devices)])
    context = multiprocessing.get_context("spawn")
    pipes, pids = [], []
    for number in range(args.processes):
        ours, theirs = context.Pipe()
        share = dict(list(tokens.items())[number :: args.processes])
        load = context.Process(target=run_devices, args=(plan, share, number, cores, theirs), daemon=True)
        load.start()
        stack.callback(load.join, 10)
        pipes.append(ours)
        assert load.pid is not None
        pids.append(load.pid)
    for pipe in pipes:
        if not pipe.poll(_LOAD_START_S):
            raise SystemExit("a load process did not start: see above")
        pipe.recv()
    return pipes, pids


def _enrol(
    pipes: list[Connection],
    pids: list[int],
    plane: ControlPlane,
    num_devices: int,
    core: int,
    others: set[int],
) -> dict[str, Any]:
    def spent() -> list[float]:
        return [plane.process.usage().cpu_s, busy_s({core}), busy_s(others), sum(map(cpu_s, pids))]

    before, began_s = spent(), time.monotonic()
    for pipe in pipes:
        pipe.send("enrol")
    latencies_s = sorted(latency for pipe in pipes for latency in pipe.recv())
    elapsed_s = time.monotonic() - began_s
    plane_s, core_s, others_s, devices_s = (
        after - earlier for after, earlier in zip(spent(), before, strict=True)
    )
    with _database(plane) as connection:
        (certificates,) = connection.execute(sa.text("SELECT count(*) FROM certificates")).one()
        (num_spent,) = connection.execute(
            sa.text("SELECT count(*) FROM enrolment_tokens WHERE use_time_s > 0")
        ).one()
        (audited,) = connection.execute(
            sa.text("SELECT count(*) FROM audit WHERE action = 'Enrol' AND outcome = 'done'")
        ).one()
    if (certificates, num_spent, audited) != (num_devices, num_devices, num_devices):
        raise SystemExit(
            f"{num_devices} devices enrolled, but the database holds {certificates} certificates, "
            f"{num_spent} spent tokens and {audited} entries of the audit log"
        )
    return {
        "elapsed_s": elapsed_s,
        "enrolments_per_s": num_devices / elapsed_s,
        "cpu_s": plane_s,
        "enrolments_per_cpu_s": num_devices / plane_s,
        "cpu_share": plane_s / elapsed_s,
        "core_share": core_s / elapsed_s,
        "other_cores_share": others_s / elapsed_s / len(others),
        "devices_share": devices_s / elapsed_s / len(others),
        "p50_s": statistics.median(latencies_s),
        "p99_s": _p99(latencies_s),
    }


def limit_of(enrolment: dict[str, Any]) -> str:
    """Which side the rate by the clock was the limit of."""
    if enrolment["cpu_share"] >= _BUSY:
        return "the limit was the control plane"
    if enrolment["other_cores_share"] >= _BUSY:
        return (
            f"the limit was not the control plane: the other cores were {enrolment['other_cores_share']:.0%} "
            f"busy, {enrolment['devices_share']:.0%} with the devices themselves"
        )
    if enrolment["core_share"] >= _BUSY:
        return "the limit was the control plane's core, which others used as well"
    return "no core was busy all the time: the limit was what each enrolment waits for, disk and connections"


def _hold(pipes: list[Connection], plane: ControlPlane, args: argparse.Namespace) -> dict[str, Any]:
    for pipe in pipes:
        pipe.send("hold")
    before, began_s = plane.process.usage(), time.monotonic()
    time.sleep(args.ramp_s)
    ramped, ramped_s = plane.process.usage(), time.monotonic()
    time.sleep(args.hold_s)
    after, after_s = plane.process.usage(), time.monotonic()
    counts: dict[str, Counts] = {}
    for pipe in pipes:
        counts.update(pipe.recv())
    stored = _stored(plane)
    # Sequences count from 0: as many as were made, the last of them among them, are all of them.
    lacking = [
        device_id
        for device_id, count in counts.items()
        if stored.get(device_id, (0, -1)) != (count.num_sent, count.num_sent - 1)
    ]
    sent = [pair for count in counts.values() for pair in count.latencies_s]
    latencies_s = sorted(latency for _, latency in sent)
    settled_s = sorted(latency for at_s, latency in sent if at_s >= args.ramp_s + _SETTLE_S)
    errors = Counter(error for count in counts.values() for error in count.errors)
    return {
        "num_sent": sum(count.num_sent for count in counts.values()),
        "num_acknowledged": sum(count.num_acknowledged for count in counts.values()),
        "num_rejected": sum(count.num_rejected for count in counts.values()),
        "num_stored": sum(number for number, _ in stored.values()),
        "num_devices_lacking": len(lacking),
        "num_never_connected": sum(count.num_connections == 0 for count in counts.values()),
        "num_reconnects": sum(max(0, count.num_connections - 1) for count in counts.values()),
        "errors": dict(errors.most_common(5)),
        "ramp_cpu_share": (ramped.cpu_s - before.cpu_s) / (ramped_s - began_s),
        "hold_cpu_share": (after.cpu_s - ramped.cpu_s) / (after_s - ramped_s),
        "hold_s": after_s - ramped_s,
        "rss_bytes": after.rss_bytes,
        "peak_rss_bytes": after.peak_rss_bytes,
        "p50_s": statistics.median(latencies_s),
        "p99_s": _p99(latencies_s),
        "worst_s": latencies_s[-1],
        "settled_p50_s": statistics.median(settled_s or latencies_s),
        "settled_p99_s": _p99(settled_s or latencies_s),
        "settled_worst_s": (settled_s or latencies_s)[-1],
    }


def _p99(values: list[float]) -> float:
    return values[int(0.99 * (len(values) - 1))]


def _database(plane: ControlPlane) -> sa.Connection:
    url = plane.database_url.replace("postgresql://", "postgresql+psycopg://")
    return sa.create_engine(url).connect()


def _stored(plane: ControlPlane) -> dict[str, tuple[int, int]]:
    """Reports of each device in the database, and the highest sequence among them."""
    statement = (
        "SELECT device_id, count(*), count(DISTINCT sequence), max(sequence) FROM reports GROUP BY device_id"
    )
    with _database(plane) as connection:
        rows = connection.execute(sa.text(statement)).all()
    found: dict[str, tuple[int, int]] = {}
    for device_id, number, distinct, highest in rows:
        if number != distinct:
            raise SystemExit(f"{device_id} has {number} reports in the database, but {distinct} were made")
        found[device_id] = (number, highest)
    return found


def show(found: dict[str, Any]) -> bool:
    """Print it; whether nothing was lost."""
    print(
        f"{found['devices']:,} devices, {found['database']}, broker {found['broker']}; control plane on 1 of "
        f"{found['cores']} cores, everything else on the others"
    )
    enrolment = found["enrolment"]
    print(
        f"enrolments    {enrolment['enrolments_per_s']:8.0f} /s by the clock, "
        f"{enrolment['enrolments_per_cpu_s']:.0f} per CPU second of the control plane (which had "
        f"{enrolment['cpu_share']:.0%} of its core); p50 {enrolment['p50_s'] * 1e3:.0f} ms, "
        f"p99 {enrolment['p99_s'] * 1e3:.0f} ms; each with its spent token, certificate and audit entry"
    )
    print(f"              {limit_of(enrolment)}")
    hold = found.get("hold")
    if hold is None:
        return True
    print(
        f"reports       {hold['num_sent']:8,} made, {hold['num_acknowledged']:,} acknowledged, "
        f"{hold['num_rejected']:,} rejected, {hold['num_stored']:,} in the database; "
        f"{hold['num_devices_lacking']} devices lack any, {hold['num_never_connected']} never connected"
    )
    print(
        f"held for {hold['hold_s']:.0f} s: {hold['hold_cpu_share']:.0%} of the core "
        f"({hold['ramp_cpu_share']:.0%} while connecting), RSS {hold['rss_bytes'] / 1e6:.0f} MB "
        f"(peak {hold['peak_rss_bytes'] / 1e6:.0f}), "
        f"{hold['num_reconnects']} reconnects"
    )
    print(
        f"acknowledged  p50 {hold['p50_s'] * 1e3:.0f} ms, p99 {hold['p99_s'] * 1e3:.0f} ms, worst "
        f"{hold['worst_s'] * 1e3:.0f} ms; from {_SETTLE_S:.0f} s after the last had connected: p50 "
        f"{hold['settled_p50_s'] * 1e3:.0f} ms, p99 {hold['settled_p99_s'] * 1e3:.0f} ms, worst "
        f"{hold['settled_worst_s'] * 1e3:.0f} ms"
    )
    for error, number in hold["errors"].items():
        print(f"  {number} x {error}")
    return (
        hold["num_sent"] == hold["num_acknowledged"] == hold["num_stored"]
        and not hold["num_devices_lacking"]
        and not hold["num_never_connected"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=2000)
    parser.add_argument("--hold-s", type=float, default=180.0, help="0 measures enrolments alone")
    parser.add_argument("--ramp-s", type=float, default=30.0, help="within which all connect")
    parser.add_argument("--interval-s", type=float, default=30.0, help="between two reports of a device")
    parser.add_argument(
        "--enrolling", type=int, default=8, help="devices of each process that enrol at a time"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--database", choices=("auto", "postgresql", "sqlite"), default="auto")
    parser.add_argument("--directory", type=Path, help="for database and state; default: a temporary folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeloop-fleet-", dir=args.directory) as folder:
        found = measure(Path(folder), args)
    if args.json:
        print(json.dumps(found))
        return 0
    if not show(found):
        print("reports were lost, or devices not held", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
