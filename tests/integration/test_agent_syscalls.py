"""A real agent that is stopped at its writes, fsyncs, renames and unlinks: strace does it at exactly the Nth.

Two ways are swept: from the fetch of generation 2 to its commit, and the rollback of a crash loop. Each point
is (system call, N, fault); after the fault the agent is started again and must serve the old model or the new
one, with every stored byte verified. CI takes a sample with a fixed seed; EDGELOOP_SWEEP=full takes them all,
or those of the system calls that EDGELOOP_SWEEP_CALLS names (`fsync,fdatasync`), or of each call those with
N = M modulo K (EDGELOOP_SWEEP_PART=M/K: the parts together are the whole), and goes on after a failure.
"""

from __future__ import annotations

import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from agent_harness import AgentProcess, Cloud, make_model, ship
from machine import dying_with_us, missing, wait_until

from edge_agent.journal import Journal
from edge_agent.update_state import Slot, State
from edge_agent.verify import check_state

pytestmark = pytest.mark.mosquitto

FULL = os.environ.get("EDGELOOP_SWEEP") == "full"
CALLS = frozenset(filter(None, os.environ.get("EDGELOOP_SWEEP_CALLS", "").split(",")))
PART, NUM_PARTS = map(int, os.environ.get("EDGELOOP_SWEEP_PART", "1/1").split("/"))
SYSCALLS = ("write", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "mkdir")
FAULTS = {"KILL": "signal=KILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}
NUM_SAMPLED = 2
SETTLE_S = 0.7
ENDED = {"active", "rejected", "rolled-back"}


class Scene:
    """A stopped agent that serves generation 1, copied for each fault."""

    def __init__(self, cloud: Cloud, folder: Path, strace: str) -> None:
        self.cloud, self.folder, self.strace = cloud, folder, strace
        self.old, self.new = (ship(make_model(seed, num_hidden=256)) for seed in (1, 2))
        cloud.publish(self.old)
        cloud.deploy("gw-1", self.old, 1)
        first = AgentProcess(cloud, folder, rate_hz="100", log_level="error").start()
        first.wait_state("active", 1)
        first.stop()
        self.template = first.state_dir
        cloud.publish(self.new)
        self.signed = cloud.deploy("gw-1", self.new, 2)
        self.number = 0
        self._counts: dict[str, dict[str, int]] = {}

    def prepare(self, way: str) -> AgentProcess:
        self.number += 1
        place = self.folder / f"{way}-{self.number}"
        shutil.copytree(self.template, place / "gw-1")
        (place / "gw-1" / "status.json").unlink()
        shutil.copy(self.folder / "replay.npz", place / "replay.npz")
        agent = AgentProcess(self.cloud, place, rate_hz="100", log_level="error", trial_requests="5")
        if way == "rollback":
            blobs = agent.state_dir / "blobs"
            (blobs / "artifacts" / self.new.digest).write_bytes(self.new.data)
            (blobs / "manifests" / self.new.manifest_digest).write_bytes(self.new.raw_manifest)
            target = Slot(
                generation=2,
                digest=self.new.digest,
                manifest_digest=self.new.manifest_digest,
                workload="tiny",
                profile="small",
                signed=self.signed,
            )
            journal = Journal(agent.state_dir)
            journal.save(replace(journal.load(), state=State.TRIAL, target=target, num_starts=2))
        return agent

    def run(self, agent: AgentProcess, *options: str) -> None:
        """Under strace, until the update has ended or the agent has."""
        words = [self.strace, "-f", "--seccomp-bpf", "-qq", *options]
        with (agent.state_dir.parent / "strace.log").open("wb") as log:
            process = subprocess.Popen(
                dying_with_us([*words, *dying_with_us(agent.command())]),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until_s = time.monotonic() + 30
        try:
            while process.poll() is None and time.monotonic() < until_s:
                status = agent.status()
                if status.get("generation") == 2 and status["state"] in ENDED:
                    # The report spool is opened, and told of the end, only after that.
                    time.sleep(SETTLE_S)
                    break
                time.sleep(0.02)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)

    def counts(self, way: str) -> dict[str, int]:
        """The most that one thread makes of each call: strace counts by thread. Asked once for each way."""
        if way not in self._counts:
            agent = self.prepare(way)
            trace = agent.state_dir.parent / "trace"
            self.run(agent, "-e", f"trace={','.join(SYSCALLS)}", "-o", str(trace))
            found: collections.Counter[tuple[str, str]] = collections.Counter()
            for line in trace.read_text(errors="replace").splitlines():
                if call := re.match(r"(\d+) +(\w+)\(", line):
                    found[call[1], call[2]] += 1
            counts: dict[str, int] = {}
            for (_, name), number in found.items():
                counts[name] = max(counts.get(name, 0), number)
            assert {"write", "fsync", "rename"} <= set(counts), counts
            shutil.rmtree(agent.state_dir.parent)
            self._counts[way] = counts
        return self._counts[way]

    def check(self, agent: AgentProcess, way: str, point: tuple[str, int, str]) -> None:
        """Started again without any fault."""
        state = Journal(agent.state_dir).load()
        assert state.committed is not None, point
        agent.start()
        try:
            ends = {"rolled-back"} if way == "rollback" else {"active", "rejected"}
            status = agent.wait(
                lambda status: (
                    status["generation"] == 2 and status["state"] in ends and status["num_requests"] > 3
                )
            )
            wanted = {"active": self.new.digest, "rejected": self.old.digest, "rolled-back": self.old.digest}
            assert status["serving_digest"] == wanted[status["state"]], (point, status)
            assert status["num_errors"] == 0, (point, status)
            if status["state"] == "rejected":
                assert status["code"] in {"storage-full", "storage-failed", "self-test-crash"}, (
                    point,
                    status,
                )
            checks = check_state(agent.state_dir, (self.cloud.key.public_bytes,))
            assert all(check.good for check in checks), (point, checks)
            # Nothing leaks: no temporary file, no half of an artifact.
            wait_until(
                lambda: not [p for p in (agent.state_dir / "blobs").rglob("*") if p.name.startswith(".")],
                what="temporary files to go",
            )
            partial = agent.state_dir / "blobs" / "partial"
            wait_until(lambda: not list(partial.iterdir()), what="blocks to go")
        finally:
            agent.kill()
        shutil.rmtree(agent.state_dir.parent)


@pytest.fixture(scope="module")
def scene(module_mosquitto, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One for all: each point gets a copy of its own of the stopped agent."""
    strace = shutil.which("strace")
    if strace is None:
        missing("strace")
    assert strace is not None
    cloud = Cloud(module_mosquitto.host, module_mosquitto.port)
    yield Scene(cloud, tmp_path_factory.mktemp("syscalls"), strace)
    cloud.close()


@pytest.mark.slow  # every point starts an agent twice
@pytest.mark.timeout(7200 if FULL else 420)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("way", ["update", "rollback"])
def test_stopped_at_any_write_it_serves_old_or_new_and_all_of_it_verifies(scene, way, fault) -> None:
    counts = scene.counts(way)
    points = [(name, n) for name, number in sorted(counts.items()) for n in range(1, number + 1)]
    if not FULL:
        assert NUM_PARTS == 1, "EDGELOOP_SWEEP_PART is for EDGELOOP_SWEEP=full"
        points = random.Random(f"{way} {fault}").sample(points, NUM_SAMPLED)
    elif CALLS:
        assert set(counts) >= CALLS, f"EDGELOOP_SWEEP_CALLS names {sorted(CALLS)}; there are {sorted(counts)}"
        points = [point for point in points if point[0] in CALLS]
    points = [point for point in points if (point[1] - PART) % NUM_PARTS == 0]
    failures = []
    for name, n in points:
        agent = scene.prepare(way)
        scene.run(
            agent,
            *("-e", f"trace={name}", "-e", "signal=none"),
            *("-e", f"inject={name}:{FAULTS[fault]}:when={n}", "-o", "/dev/null"),
        )
        try:
            scene.check(agent, way, (name, n, fault))
        except AssertionError as error:
            if not FULL:
                raise
            failures.append(f"{name} {n} {fault}: {error}")
    print(json.dumps({"way": way, "fault": fault, "points": len(points), "counts": counts}), file=sys.stderr)
    assert not failures, "\n\n".join(failures)
