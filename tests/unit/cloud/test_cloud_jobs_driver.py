"""The driver of Ray as a process: real ones where its death matters, without Ray in them."""

from __future__ import annotations

import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from control_plane_fakes import WORKLOAD, teacher_of
from machine import wait_until

from cloud.domain.tasks import Task, TaskEvent, TaskFailed, TaskSucceeded, TeacherTask
from cloud.jobs import remote
from cloud.jobs.driver import Driver
from cloud.jobs.driver_process import DriverProcess
from cloud.jobs.link import Link
from cloud.jobs.messages import Alive, Cancel, Described, Started, Stop, Submit, heard, said
from cloud.jobs.remote import RemoteCompute
from edgeloop.backoff import Backoff
from edgeloop.errors import TransientError

WAIT_S = 60.0
#: Stands where the driver of Ray does: it has what it wants at once, and then does what it is told.
PREFACE = """
import os, socket, sys, time
from cloud.jobs.link import Link
from cloud.jobs.messages import *
link = Link(socket.socket(fileno=int(sys.argv[1])))
link.receive()
link.send(Started(description="no Ray"))
"""
#: Makes an end of whatever it is given, but for what is called "held": that needs the gate.
OBEDIENT = (
    PREFACE
    + """
while (message := link.receive()) is not None and not isinstance(message, Stop):
    if isinstance(message, Submit) and (message.task.task_id != "held" or os.path.exists(os.environ["GATE"])):
        link.send(said(TaskFailed(task_id=message.task.task_id, code="failed", message="as told")))
"""
)
#: Reads nothing and says nothing, as one that hangs in native code.
DEAF = PREFACE + "time.sleep(600)"
#: What an abort in native code looks like.
ABORTING = (
    PREFACE
    + """
sys.stderr.write("global_state_accessor.cc:61: Check failed: no head of the cluster\\n")
sys.stderr.write("*** StackTrace Information ***\\n")
sys.stderr.write("/x/_raylet.so(+0x13b9d0a) [0x7f0123456789] ray::operator<<()\\n")
sys.stderr.flush()
os.abort()
"""
)


def task(name: str) -> TeacherTask:
    return TeacherTask(task_id=name, workload=WORKLOAD)


def process_of(script: str, gate: Path) -> DriverProcess:
    environment = {**os.environ, "GATE": str(gate)}
    return DriverProcess(
        [sys.executable, "-P", "-c", script], environment=environment, silence_s=remote.START_SILENCE_S
    )


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def computes(scripts: list[str], gate: Path, tmp_path: Path) -> RemoteCompute:
    """One whose drivers are these programs, the last one for ever."""
    left = list(scripts)
    return RemoteCompute(
        work_dir=tmp_path,
        registry_url=str(tmp_path),
        launch=lambda: process_of(left.pop(0) if len(left) > 1 else left[0], gate),
        backoff=Backoff(0.01, 0.02, random.Random(1)),
    )


def until_ended(compute: RemoteCompute, names: set[str]) -> list[TaskEvent]:
    found: list[TaskEvent] = []

    def ended() -> bool:
        found.extend(event for event in compute.poll() if isinstance(event, TaskFailed))
        return {event.task_id for event in found} >= names

    wait_until(ended, f"{names} to end", timeout_s=WAIT_S)
    return found


def test_a_killed_driver_costs_no_task_and_leaves_this_process_alone(
    gate: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compute = computes([OBEDIENT], gate, tmp_path)
    compute.start()
    try:
        compute.submit(task("quick"))
        compute.submit(task("held"))
        assert [event.task_id for event in until_ended(compute, {"quick"})] == ["quick"]
        first = compute.pid
        assert first is not None
        gate.touch()
        os.kill(first, signal.SIGKILL)
        assert [event.task_id for event in until_ended(compute, {"held"})] == ["held"]
        assert compute.pid != first
        assert f"(process {first}) was ended by SIGKILL" in caplog.text
    finally:
        compute.stop()
    assert compute.pid is None


def test_an_abort_in_native_code_is_told_by_its_reason_and_not_by_its_stack(
    gate: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compute = computes([ABORTING, OBEDIENT], gate, tmp_path)
    compute.start()
    try:
        compute.submit(task("a"))
        until_ended(compute, {"a"})
    finally:
        compute.stop()
    (line,) = [record.getMessage() for record in caplog.records if "unfinished tasks" in record.getMessage()]
    assert "was ended by SIGABRT; it said last: Check failed: no head of the cluster; starting" in line
    assert "StackTrace" not in line
    assert "raylet.so" not in line


def test_a_driver_that_hears_nothing_holds_nobody_up(
    gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENCE_S", 10 * WAIT_S)  # longer than this test may take
    compute = computes([DEAF, OBEDIENT], gate, tmp_path)
    compute.start()
    try:
        names = {f"task-{number}" for number in range(1000)}  # more than a socket holds
        for name in names:
            compute.submit(task(name))
        assert compute.poll() == []
        assert compute.pid is not None
        os.kill(compute.pid, signal.SIGKILL)
        assert len(until_ended(compute, names)) == len(names)
    finally:
        compute.stop()


def test_a_driver_that_says_nothing_is_ended(
    gate: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENCE_S", 0.05)  # from the moment on at which it has Ray
    scripts = [DEAF, OBEDIENT]

    def launch() -> DriverProcess:
        if len(scripts) == 1:
            monkeypatch.setattr(remote, "SILENCE_S", 10 * WAIT_S)
        return process_of(scripts.pop(0), gate)

    compute = RemoteCompute(work_dir=tmp_path, registry_url=str(tmp_path), launch=launch)
    compute.start()
    try:
        compute.submit(task("a"))
        until_ended(compute, {"a"})
    finally:
        compute.stop()
    assert "did not answer" in caplog.text


def test_a_program_that_cannot_be_started_is_an_error_of_start(tmp_path: Path) -> None:
    compute = RemoteCompute(
        work_dir=tmp_path,
        registry_url=str(tmp_path),
        launch=partial(DriverProcess, [str(tmp_path / "nothing")], environment={}, silence_s=1.0),
    )
    with pytest.raises(TransientError, match="cannot be started"):
        compute.start()


def test_the_driver_dies_with_the_process_that_started_it() -> None:
    """The real driver, before it is told to begin: nothing but the kernel and its socket end it."""
    code = (
        "import os, time\n"
        "from cloud.jobs.driver_process import DriverProcess\n"
        "driver = DriverProcess(environment=os.environ, silence_s=60)\n"
        "print(driver.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        driver = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        gone, _ = psutil.wait_procs([driver], timeout=WAIT_S)
    assert gone


def test_the_control_plane_imports_neither_ray_nor_torch_and_the_driver_no_torch() -> None:
    absences = {"cloud.serve": ("ray", "torch"), "cloud.jobs.driver": ("ray", "torch", "grpc", "sqlalchemy")}
    for module, absent in absences.items():
        code = f"import {module}, sys; print([m for m in {absent!r} if m in sys.modules])"
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert answer.stdout.strip() == "[]", module


class Cluster:
    """In the place of Ray: what it was asked is told in ``asked``, and ``answers`` come out of ``poll``."""

    def __init__(self) -> None:
        self.asked: queue.Queue[str] = queue.Queue()
        self.answers: queue.Queue[TaskEvent | Exception] = queue.Queue()

    def start(self) -> None:
        self.asked.put("start")

    def submit(self, task: Task) -> None:
        self.asked.put(f"submit {task.task_id}")

    def cancel(self, task_id: str) -> None:
        self.asked.put(f"cancel {task_id}")

    def describe(self) -> str:
        return "a cluster"

    def poll(self) -> list[TaskEvent]:
        try:
            answer = self.answers.get_nowait()
        except queue.Empty:
            return []
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    def stop(self) -> None:
        self.asked.put("stop")


@pytest.fixture
def driven() -> Iterator[tuple[Link, Cluster, threading.Thread, list[Exception]]]:
    ours, theirs = socket.socketpair()
    link, cluster = Link(ours, silence_s=WAIT_S), Cluster()
    errors: list[Exception] = []

    def run() -> None:
        try:
            Driver(Link(theirs), cluster).run()
        except TransientError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield link, cluster, thread, errors
    link.close()
    thread.join(WAIT_S)


Driven = tuple[Link, Cluster, threading.Thread, list[Exception]]


def test_a_driver_does_what_it_is_told_in_order_and_says_what_came_of_it(driven: Driven) -> None:
    link, cluster, thread, errors = driven
    for message in (Submit.of(task("a")), Cancel(task_id="a"), Submit.of(task("a")), Submit.of(task("b"))):
        link.send(message)
    event = TaskSucceeded(task_id="a", result=teacher_of(WORKLOAD))
    cluster.answers.put(event)
    assert link.receive() == Started(description="a cluster")
    while isinstance(message := link.receive(), Alive | Described):
        pass
    assert heard(message) == event  # type: ignore[arg-type]
    assert message == said(event)
    link.send(Stop())
    thread.join(WAIT_S)
    assert not errors
    asked = [cluster.asked.get(timeout=WAIT_S) for _ in range(6)]
    assert asked == ["start", "submit a", "cancel a", "submit a", "submit b", "stop"]


def test_a_driver_says_that_it_lives_while_nothing_happens(driven: Driven) -> None:
    link, *_ = driven
    assert link.receive() == Started(description="a cluster")
    assert link.receive() == Alive()


def test_a_driver_whose_ray_is_lost_goes_on_with_nothing(driven: Driven) -> None:
    _, cluster, thread, errors = driven
    cluster.answers.put(TransientError("Ray does not answer", code="ray-lost"))
    thread.join(WAIT_S)
    assert [str(error) for error in errors] == ["Ray does not answer"]
