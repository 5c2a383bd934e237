"""Real agents with a good model on a disk that takes no writes: they answer, say so, and get over it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_harness import AgentProcess, Cloud, golden_inputs, make_model, ship
from machine import free_port, missing, wait_until

from edgeloop.v1 import telemetry_pb2

pytestmark = [pytest.mark.mosquitto, pytest.mark.timeout(240)]


class TracedAgent(AgentProcess):
    """Started under a strace that makes calls fail; the agent stays the process that was started."""

    faults: tuple[str, ...] = ()

    def command(self) -> list[str]:
        if not self.faults:
            return super().command()
        strace = shutil.which("strace")
        assert strace is not None
        return [
            strace,
            "-D",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "signal=none",
            *self.faults,
            *super().command(),
        ]


def install(agent: AgentProcess) -> str:
    """The agent, stopped, with a committed model; its digest."""
    model = ship(make_model(1, num_hidden=64))
    agent.cloud.publish(model)
    agent.cloud.deploy(agent.device_id, model, 1)
    agent.start().wait_state("active", 1)
    agent.stop()
    agent._log_path.write_text("")
    return model.digest


def infer(port: int) -> dict[str, Any]:
    values = golden_inputs(1)
    body = {
        "inputs": [
            {"name": "x", "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
        ]
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/tiny/infer",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer))


def answers(port: int) -> bool:
    try:
        return len(infer(port)["outputs"][0]["data"]) == 4
    except OSError:
        return False


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in found}


def warnings_of_the_spool(agent: AgentProcess) -> list[str]:
    return [line for line in agent.log.splitlines() if "WARNING edge_agent.spool_file" in line]


@pytest.mark.parametrize(
    ("calls", "error"),
    [
        ("openat", "ENOSPC"),
        ("pwrite64,fallocate,ftruncate", "ENOSPC"),
        ("fdatasync,fsync", "EIO"),
    ],
)
def test_whatever_the_spool_file_refuses_the_committed_model_answers(
    cloud: Cloud, tmp_path: Path, calls: str, error: str
) -> None:
    if shutil.which("strace") is None:
        missing("strace")
    port = free_port()
    agent = TracedAgent(cloud, tmp_path, serve_rest=f"127.0.0.1:{port}")
    digest = install(agent)
    spool = agent.state_dir / "spool.db"
    paths = [word for suffix in ("", "-wal", "-shm", "-journal") for word in ("-P", f"{spool}{suffix}")]
    agent.faults = (*paths, "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}")
    agent.start()
    try:
        status = agent.wait(lambda status: status["num_dropped_reports"] >= 2 and status["server_connected"])
        assert (status["state"], status["serving_digest"], status["num_errors"]) == ("active", digest, 0)
        assert status["spool_problem"]
        assert answers(port)
        found = metrics(port)
        assert found["edgeloop_reports_dropped_total"] >= 2
        assert found["edgeloop_reports_spool_failed"] == 1
        (said,) = warnings_of_the_spool(agent)
        assert "free some room" in said
        assert agent.stop() == 0
    finally:
        agent.kill()
    # On the mended disk reports arrive, and they say what was lost.
    agent.faults = ()
    cloud.fleet.reports.clear()
    agent.start()
    try:
        wait_until(lambda: len(cloud.fleet.reports) >= 2, what="reports of the mended spool")
        assert agent.wait(lambda status: status["num_requests"] > 0)["spool_problem"] == ""
    finally:
        agent.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system; the same is tried under strace")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "edgeloop-test", str(folder)],
        check=False,
        capture_output=True,
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def on_small_disk(cloud: Cloud, folder: Path, port: int) -> AgentProcess:
    """With its state there, and its log elsewhere."""
    settings = folder.parent / "agent.toml"
    settings.write_text("reserve_bytes = 65536\n")
    agent = AgentProcess(cloud, folder, serve_rest=f"127.0.0.1:{port}", config=str(settings))
    agent._log_path = folder.parent / "agent.log"
    return agent


def fill(folder: Path) -> Path:
    """Takes every byte that is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass
    assert shutil.disk_usage(folder).free == 0
    return filler


def test_on_a_full_disk_it_answers_at_once_and_reports_when_there_is_room(
    cloud: Cloud, small_disk: Path
) -> None:
    port = free_port()
    agent = on_small_disk(cloud, small_disk, port)
    digest = install(agent)
    filler = fill(small_disk)
    agent.start()
    try:
        wait_until(lambda: answers(port), what="the first answer")
        wait_until(
            lambda: metrics(port).get("edgeloop_reports_dropped_total", 0) >= 2, what="reports to be dropped"
        )
        said = subprocess.run(
            [
                sys.executable,
                "-m",
                "edge_agent.cli",
                "status",
                "--state-dir",
                str(agent.state_dir),
                "-o",
                "json",
            ],
            capture_output=True,
            check=True,
        )
        status = json.loads(said.stdout)
        assert (status["alive"], status["serving_digest"]) == (True, digest)
        assert status["num_dropped_reports"] >= 1
        assert status["spool_problem"]
        assert len(warnings_of_the_spool(agent)) == 1
        cloud.fleet.reports.clear()
        filler.unlink()
        boot_id = agent.status()["boot_id"]

        def of_this_boot() -> list[telemetry_pb2.LatencyReport]:
            with cloud.fleet.lock:
                return [one for one in cloud.fleet.reports.values() if one.boot_id == boot_id]

        wait_until(of_this_boot, what="reports once there is room")
        agent.wait(lambda status: status["spool_problem"] == "")
        assert all(report.num_dropped_reports >= 2 for report in of_this_boot())
        assert answers(port)
        assert agent.stop() == 0
    finally:
        agent.kill()


def test_on_a_disk_that_became_read_only_it_answers(cloud: Cloud, small_disk: Path) -> None:
    """What ext4 makes of itself after an error."""
    port = free_port()
    agent = on_small_disk(cloud, small_disk, port)
    install(agent)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    agent.start()
    try:
        wait_until(lambda: answers(port), what="the first answer")
        wait_until(
            lambda: metrics(port).get("edgeloop_reports_spool_failed") == 1, what="the spool to be given up"
        )
        assert len(warnings_of_the_spool(agent)) == 1
        second = subprocess.run(agent.command(), capture_output=True, check=False)
        assert (second.returncode, b"in use" in second.stderr) == (3, True)
        assert agent.stop() == 0
    finally:
        agent.kill()
