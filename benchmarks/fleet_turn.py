"""How long reports wait while a fleet is told what to run: many devices a statement against one at a time.

    python -m benchmarks.fleet_turn        (``--database sqlite`` where PostgreSQL is not installed)

A store with its database on a disk, and ``--devices`` devices in it. Every device gets a generation and a
signature while a second thread stores reports of some of them, as streams of a fleet do, and takes the time.
"one by one" is a call for each device, all generations in one transaction and each signature in its own;
"together" is what the controller does, so many devices a turn. Both take turns in one run: their ratio holds
where neither figure does. ``python -m benchmarks fleet`` measures a whole control plane.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.fleet_stack import start_postgres
from cloud.controller import MAX_ISSUED_A_TURN
from cloud.deployer import MAX_STORED_AT_ONCE
from cloud.domain.devices import Deployment, Device
from cloud.domain.profiles import Hardware
from cloud.domain.rollout import DeploymentIntent
from cloud.store import ReportRow, Store
from edgeloop.errors import TransientError
from edgeloop.sketch import LatencySketch

_DIGEST = "ab" * 32
_SIGNED = bytes(300)
_NUM_REPORTS = 4
_PAUSE_S = 0.05
_SKETCH = LatencySketch.of([1.0, 2.0, 3.0]).to_bytes()


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One fleet. ``cpu_s`` is of the thread that tells; ``num_refused`` counts batches of reports that the
    database gave up on (it waits 10 s for a lock)."""

    elapsed_s: float
    cpu_s: float
    waits_s: tuple[float, ...]
    num_refused: int


def one_by_one(store: Store, intents: Sequence[DeploymentIntent]) -> None:
    with store.transaction():
        told = [store.issue_deployment(intent, time.time()) for intent in intents]
    for deployment in told:
        store.set_signed({(deployment.device_id, deployment.generation): _SIGNED})


def together(store: Store, intents: Sequence[DeploymentIntent]) -> None:
    told: list[Deployment] = []
    for first in range(0, len(intents), MAX_ISSUED_A_TURN):
        outcomes = store.issue_deployments(intents[first : first + MAX_ISSUED_A_TURN], time.time())
        told += [outcome for outcome in outcomes if isinstance(outcome, Deployment)]
    for first in range(0, len(told), MAX_STORED_AT_ONCE):
        chunk = told[first : first + MAX_STORED_AT_ONCE]
        store.set_signed({(item.device_id, item.generation): _SIGNED for item in chunk})


WAYS: dict[str, Callable[[Store, Sequence[DeploymentIntent]], None]] = {
    "one by one": one_by_one,
    "together": together,
}


def measure(
    store: Store,
    names: Sequence[str],
    rollout_id: str,
    tell: Callable[[Store, Sequence[DeploymentIntent]], None],
) -> Found:
    """Tell all of them, once, beside their reports."""
    waits_s: list[float] = []
    refused: list[TransientError] = []
    ended = threading.Event()

    def report() -> None:
        rng, numbers = random.Random(7), count()
        while not ended.is_set():
            now_s, began_s = time.time(), time.monotonic()
            rows = [
                _row(name, f"{rollout_id}-{next(numbers)}", now_s) for name in rng.sample(names, _NUM_REPORTS)
            ]
            try:
                store.insert_reports(rows, now_s)
            except TransientError as error:
                refused.append(error)
            waits_s.append(time.monotonic() - began_s)
            time.sleep(_PAUSE_S)

    intents = [
        DeploymentIntent(
            device_id=name,
            workload="digits",
            profile="gateway",
            digest=_DIGEST,
            manifest_digest=_DIGEST,
            rollout_id=rollout_id,
        )
        for name in names
    ]
    reporter = threading.Thread(target=report)
    reporter.start()
    began_s, cpu_s = time.monotonic(), time.thread_time()
    tell(store, intents)
    elapsed_s, cpu_s = time.monotonic() - began_s, time.thread_time() - cpu_s
    ended.set()
    reporter.join()
    told = store.deployments()
    assert len(told) == len(names)
    assert all(item.rollout_id == rollout_id and item.signed for item in told)
    return Found(elapsed_s=elapsed_s, cpu_s=cpu_s, waits_s=tuple(waits_s), num_refused=len(refused))


def _row(name: str, boot_id: str, now_s: float) -> ReportRow:
    return ReportRow(name, boot_id, 0, _DIGEST, 1, "digits", now_s - 30, now_s, 3, _SKETCH, _SKETCH)


def run(url: str, num_devices: int, num_rounds: int) -> dict[str, list[Found]]:
    store = Store(url)
    store.migrate()
    names = [f"gw-{number:05d}" for number in range(num_devices)]
    hardware = Hardware(architecture="aarch64", num_cores=4, memory_bytes=1 << 32)
    with store.transaction():
        for name in names:
            device = Device(device_id=name, hardware=hardware, boot_id="boot")
            store.register_device(device, "gateway", "", time.time())
    found: dict[str, list[Found]] = {way: [] for way in WAYS}
    for number in range(num_rounds):
        for way, tell in WAYS.items():
            found[way].append(measure(store, names, f"{way} {number}", tell))
    store.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--directory", type=Path, help="where the database lies; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeloop-turn-", dir=args.directory) as text:
        folder = Path(text)
        if args.database == "sqlite":
            found = run(f"sqlite:///{folder}/edgeloop.db", args.devices, args.rounds)
        else:
            server = start_postgres(folder, os.sched_getaffinity(0))
            if server is None:
                raise SystemExit("PostgreSQL is not installed: install it, or say --database sqlite")
            try:
                found = run(server[1], args.devices, args.rounds)
            finally:
                server[0].stop()
    worst_s = {way: max(wait for run in runs for wait in run.waits_s) for way, runs in found.items()}
    cpu_s = {way: statistics.mean(run.cpu_s for run in runs) for way, runs in found.items()}
    print(f"{args.devices} devices, {args.database}, {args.rounds} rounds")
    for way, runs in found.items():
        waits_s = [wait for run in runs for wait in run.waits_s]
        print(
            f"{way:10}  told in {statistics.mean(run.elapsed_s for run in runs):6.2f} s, "
            f"{cpu_s[way]:.2f} CPU s; "
            f"reports waited {statistics.median(waits_s) * 1e3:.0f} ms in the middle, "
            f"{worst_s[way] * 1e3:.0f} ms at worst; "
            f"{sum(run.num_refused for run in runs)} of {len(waits_s)} batches refused"
        )
    print(
        f"one by one / together: {worst_s['one by one'] / worst_s['together']:.1f} x the longest wait, "
        f"{cpu_s['one by one'] / cpu_s['together']:.1f} x the processor"
    )


if __name__ == "__main__":
    main()
