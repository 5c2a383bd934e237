"""The whole loop as a user runs it, while everything that can be killed is killed.

One run serves several promises, since each takes minutes: Ctrl-C stops everything and says how to go on;
``--resume`` repeats nothing; kill -9 of a Ray worker, an agent, the control plane, the broker and the driver
of Ray, each in the stage where it hurts, and the loop still closes by measurement.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


class RunningDemo:
    """A demonstration in a process of its own, whose stages can be waited for."""

    def __init__(self, out: Path, *flags: str) -> None:
        command = [
            sys.executable,
            "-m",
            "cloud.cli",
            "demo",
            "--workload",
            str(EXAMPLE),
            "--out",
            str(out),
            *flags,
        ]
        environment = {**os.environ, "COLUMNS": "160", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            # A shell starts what runs in its background deaf to Ctrl-C, and that is inherited.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="demo-output", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        with self._news:
            while text not in self.output:
                assert self.process.poll() is None, f"ended before {text!r}:\n{self.output}"
                assert self._news.wait(max(0.0, deadline - time.monotonic())) or text in self.output, (
                    f"no {text!r} within {timeout_s} s:\n{self.output}"
                )

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill_one(self, wanted: Callable[[str], bool], *, within_s: float = 60.0) -> int:
        """kill -9 the first process of the demonstration whose command line is wanted; returns its pid."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            for process in self.family():
                try:
                    if wanted(" ".join(process.cmdline())):
                        process.kill()
                        return process.pid
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.1)
        raise AssertionError(f"nothing to kill:\n{self.output}")

    def end(self, timeout_s: float) -> int:
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended within {timeout_s} s:\n{self.output}") from None
        self._reader.join(10)
        return code


def rows(database: Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return connection.execute(query).fetchall()


# Over 60 s because it is the demonstration itself, once through, with every restart on the way.
@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1800)
def test_the_loop_closes_though_everything_is_killed_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = RunningDemo(out)
    try:
        first.wait_for("students:", 300)
        family = first.family()
        first.process.send_signal(signal.SIGINT)
        assert first.end(60) == 130, first.output
        assert "--resume" in first.output
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, f"left running after Ctrl-C: {alive}"
    finally:
        first.process.kill()
    trained = rows(out / "cloud" / "edgeloop.db", "SELECT count(*) FROM teachers")

    demo = RunningDemo(out, "--resume")
    try:
        demo.wait_for("students:", 90)
        demo.kill_one(lambda command: command.startswith("ray::"))
        demo.wait_for("calibration:", 300)
        demo.kill_one(lambda command: "edge_agent" in command and "gateway-small-1" in command)
        demo.kill_one(lambda command: "cloud.cli serve" in command)
        demo.wait_for("loop:", 240)
        demo.kill_one(lambda command: "cloud.broker" in command)
        demo.kill_one(lambda command: "cloud.jobs.driver" in command)
        demo.kill_one(lambda command: "edge_agent" in command and "gateway-large-2" in command)
        code = demo.end(480)
    finally:
        demo.process.kill()
    assert code == 0, demo.output
    report = json.loads((out / "report.json").read_text())
    assert report["closed"] is True
    assert rows(out / "cloud" / "edgeloop.db", "SELECT count(*) FROM teachers") == trained
    for device in report["devices"]:
        rounds = report["profiles"][device["profile"]]["rounds"]
        assert device["state"] == "active"
        assert device["serving_digest"] == rounds[-1]["digest"]
        assert device["generation"] >= rounds[-1]["generation"]
    assert demo.output.count("starting it again") >= 3
    assert demo.output.count("control plane ended") == 1, "not by the loss of its broker, or of Ray"
