"""Compute on a real Ray of our own, shared by all tests here, with the real training and compression."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from jobs_desk import Desk
from jobs_harness import (
    DRIVER,
    NUM_SLOW_EPOCHS,
    STEPS_PER_EPOCH,
    Watcher,
    epochs,
    is_alive,
    num_steps,
    pids,
    ray_folders,
    slow_task,
    student_task,
    teacher_task,
    workload,
)
from machine import dying_with_us, wait_until

from cloud.domain.candidates import Candidate
from cloud.domain.tasks import TaskFailed, TaskSucceeded, TeacherResult
from cloud.jobs.remote import RemoteCompute
from cloud.registry import Registry

#: Ray, then Ray Train with its helpers, start in some 15 s on two idle cores; neighbours make it longer.
pytestmark = [pytest.mark.timeout(420), pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compute")


@pytest.fixture(scope="module")
def started_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the operator stood. It happens to hold folders that are called like our modules."""
    folder = tmp_path_factory.mktemp("started-in")
    (folder / "cloud" / "registry").mkdir(parents=True)
    return folder


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return "ended"


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return "ended"


@pytest.fixture(scope="module")
def compute(home: Path, started_in: Path) -> Iterator[RemoteCompute]:
    compute = RemoteCompute(work_dir=home, registry_url=str(home / "registry"), num_cpus=2)
    before = set(psutil.Process().children(recursive=True))
    with contextlib.chdir(started_in):
        compute.start()
    yield compute
    driver = compute.pid
    assert driver is not None
    ours = [(child, _command(child)) for child in psutil.Process().children(recursive=True)]
    ours = [(child, command) for child, command in ours if child not in before]
    compute.stop()
    gone, left = psutil.wait_procs([child for child, _ in ours], timeout=60)
    assert gone
    assert not left, f"stop() leaves behind {[command for child, command in ours if child in left]}"
    assert not ray_folders(driver), "nor any file"


@pytest.fixture
def watcher(compute: RemoteCompute) -> Watcher:
    return Watcher(compute)


@pytest.fixture(scope="module")
def teacher(compute: RemoteCompute, home: Path) -> TeacherResult:
    watcher = Watcher(compute)
    work = workload("shared", num_epochs=3, import_path=str(home / "import-path"))
    compute.submit(teacher_task("shared-teacher", work))
    (end,) = watcher.ends(["shared-teacher"])
    assert isinstance(end, TaskSucceeded), end
    assert isinstance(end.result, TeacherResult)
    fractions = [word.fraction for word in watcher.words("shared-teacher")]
    assert fractions == sorted(fractions)
    return end.result


def test_ray_is_reachable_from_this_machine_alone(compute: RemoteCompute) -> None:
    assert compute.describe() == "local Ray, 2 CPUs"
    listening = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray ends workers that it needs no more
            listening |= {
                connection.laddr.ip
                for connection in process.net_connections(kind="inet")
                if connection.status == psutil.CONN_LISTEN
            }
    assert listening
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_workers_import_nothing_from_the_directory_that_the_program_was_started_in(
    home: Path, teacher: TeacherResult, started_in: Path
) -> None:
    path = (home / "import-path").read_text().splitlines()
    assert len(path) > 1
    assert not {str(started_in), ""} & set(path)


def test_a_teacher_comes_out_trained_measured_and_registered(home: Path, teacher: TeacherResult) -> None:
    assert teacher.num_epochs == 3
    assert teacher.latency_p50_ms > 0
    assert teacher.num_parameters > 0
    registry = Registry(str(home / "registry"))
    assert len(registry.get(teacher.artifact_digest)) == teacher.artifact_bytes
    assert registry.get(teacher.checkpoint_digest)


def test_a_training_that_ended_keeps_no_process_in_memory(
    compute: RemoteCompute, watcher: Watcher, teacher: TeacherResult
) -> None:
    def kept() -> list[str]:
        children = [_command(child) for child in psutil.Process().children(recursive=True)]
        return [name for name in children if "TrainController" in name or "RayTrainWorker" in name]

    wait_until(lambda: not kept(), "the run's controller to end", timeout_s=60)


def test_a_killed_worker_costs_its_own_task_one_attempt_and_no_other(
    compute: RemoteCompute, watcher: Watcher, teacher: TeacherResult, tmp_path: Path
) -> None:
    hit, other = tmp_path / "hit", tmp_path / "other"
    compute.submit(student_task("hit", workload("shared", trace=str(hit), hold_s=60.0, num_holds=1), teacher))
    compute.submit(student_task("other", workload("shared", trace=str(other)), teacher))
    watcher.until(lambda: pids(hit), "the student to start")
    os.kill(pids(hit)[0], signal.SIGKILL)
    for end in watcher.ends(["hit", "other"]):
        assert isinstance(end, TaskSucceeded), end
        assert isinstance(end.result, Candidate)
    assert len(pids(hit)) == 2
    assert len(pids(other)) == 1
    assert watcher.words("other")[-1].fraction > 0.5


def test_workers_leave_the_processor_to_others(
    compute: RemoteCompute, watcher: Watcher, teacher: TeacherResult, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    compute.submit(
        student_task("nice", workload("shared", trace=str(trace), hold_s=60, num_holds=1), teacher)
    )
    watcher.until(lambda: pids(trace), "the student to start")
    assert psutil.Process(pids(trace)[0]).nice() >= 10
    compute.cancel("nice")
    watcher.ends(["nice"])


def test_a_task_submitted_twice_runs_once_and_is_answered_again_without_running(
    compute: RemoteCompute, watcher: Watcher, teacher: TeacherResult, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    task = student_task("twice", workload("shared", trace=str(trace)), teacher)
    compute.submit(task)
    compute.submit(task)
    (first,) = watcher.ends(["twice"])
    assert isinstance(first, TaskSucceeded), first
    compute.submit(task)
    (again,) = Watcher(compute).ends(["twice"])
    assert again == first
    assert len(pids(trace)) == 1


def test_a_workload_whose_dataset_raises_is_told_to_its_author_and_not_retried(
    compute: RemoteCompute, watcher: Watcher, teacher: TeacherResult, tmp_path: Path
) -> None:
    by_student, by_teacher = tmp_path / "student", tmp_path / "teacher"
    compute.submit(
        student_task("bad-student", workload("bad", trace=str(by_student), fail="no such column"), teacher)
    )
    compute.submit(teacher_task("bad-teacher", workload("bad", trace=str(by_teacher), fail="no such column")))
    for end in watcher.ends(["bad-student", "bad-teacher"]):
        assert isinstance(end, TaskFailed), end
        assert end.code == "config"
        assert "tiny:load" in end.message
        assert "no such column" in end.message
    assert len(pids(by_student)) == len(pids(by_teacher)) == 1


def test_cancelling_ends_the_process_and_frees_its_cpu(
    compute: RemoteCompute, watcher: Watcher, teacher: TeacherResult, tmp_path: Path
) -> None:
    held = [tmp_path / "a", tmp_path / "b"]
    for trace in held:
        work = workload("shared", trace=str(trace), hold_s=60, num_holds=1)
        compute.submit(student_task(trace.name, work, teacher))
    watcher.until(lambda: all(pids(trace) for trace in held), "both students to start")
    after = tmp_path / "after"
    compute.submit(student_task("after", workload("shared", trace=str(after)), teacher))
    for trace in held:
        compute.cancel(trace.name)
        compute.cancel(trace.name)
    compute.cancel("unknown")
    for end in watcher.ends([trace.name for trace in held]):
        assert isinstance(end, TaskFailed)
        assert end.code == "cancelled"
    for trace in held:
        wait_until(lambda trace=trace: not is_alive(pids(trace)[0]), "the worker to end")
    (end,) = watcher.ends(["after"])
    assert isinstance(end, TaskSucceeded), end
    assert [len(pids(trace)) for trace in held] == [1, 1], "a cancelled task is not retried"


@pytest.mark.timeout(420)  # two trainings and a student after them: each waits for new processes of Ray
def test_cancelled_trainings_give_their_processors_back(
    compute: RemoteCompute, watcher: Watcher, teacher: TeacherResult, tmp_path: Path
) -> None:
    """As many as there are processors: had they kept one each, nothing would run any more."""
    for name in ("one", "two"):
        slow = workload(
            name,
            num_epochs=50,
            teacher="tiny:slow",
            teacher_options={"step_s": 0.3},
            trace=str(tmp_path / name),
        )
        compute.submit(teacher_task(name, slow))
    watcher.until(lambda: all(pids(tmp_path / name) for name in ("one", "two")), "both trainings to start")
    for name in ("one", "two"):
        compute.cancel(name)
    watcher.ends(["one", "two"])
    compute.submit(student_task("after", workload("shared", trace=str(tmp_path / "after")), teacher))
    (end,) = watcher.ends(["after"])
    assert isinstance(end, TaskSucceeded), end


def test_a_teacher_waits_for_a_cpu_behind_students_is_shared_and_can_be_cancelled(
    compute: RemoteCompute, watcher: Watcher, teacher: TeacherResult, tmp_path: Path
) -> None:
    """Students hold both CPUs while Ray Train asks for one: nothing may deadlock."""
    for name in ("first", "second"):
        work = workload("shared", trace=str(tmp_path / name), hold_s=8.0, num_holds=1)
        compute.submit(student_task(name, work, teacher))
    slow = workload(
        "held",
        num_epochs=50,
        teacher="tiny:slow",
        teacher_options={"step_s": 0.3},
        trace=str(tmp_path / "teacher"),
    )
    compute.submit(teacher_task("held-a", slow))
    compute.submit(teacher_task("held-b", slow))
    watcher.until(
        lambda: any("epoch 1" in word.message for word in watcher.words("held-b")), "the first epoch"
    )
    compute.cancel("held-a")
    (end,) = watcher.ends(["held-a"])
    assert end == TaskFailed(task_id="held-a", code="cancelled", message="cancelled")
    num_words = len(watcher.words("held-b"))
    watcher.until(lambda: len(watcher.words("held-b")) > num_words, "the shared training to go on")
    (pid,) = pids(tmp_path / "teacher")
    compute.cancel("held-b")
    wait_until(lambda: not is_alive(pid), "the training worker to end")
    for end in watcher.ends(["first", "second"]):
        assert isinstance(end, TaskSucceeded), end


def test_killing_the_control_plane_takes_ray_along_and_training_goes_on_after_the_last_epoch(
    home: Path, compute: RemoteCompute, watcher: Watcher, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    driver = subprocess.Popen(
        dying_with_us([sys.executable, "-c", DRIVER, str(home), str(trace), str(Path(__file__).parent)]),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    seen: list[str] = []
    for line in driver.stdout:
        seen.append(line)
        if epochs([line]) and epochs([line])[0] >= 3:
            break
    assert driver.poll() is None, seen[-3:]
    family = psutil.Process(driver.pid).children(recursive=True)
    assert len(family) > 5
    (ray_driver,) = (child.pid for child in family if "cloud.jobs.driver" in _command(child))
    loaded = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in (driver.pid, ray_driver)}
    assert "_raylet" in loaded[ray_driver]
    assert "_raylet" not in loaded[driver.pid], "the control plane itself loads no Ray"
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left, "Ray does not outlive the process that started it"
    wait_until(lambda: not ray_folders(ray_driver), "its files to be removed")

    before = max(epochs(seen))
    compute.submit(slow_task("slow", trace))
    (end,) = watcher.ends(["slow"])
    assert isinstance(end, TaskSucceeded), end
    assert isinstance(end.result, TeacherResult)
    assert end.result.num_epochs == NUM_SLOW_EPOCHS
    # An epoch's word comes before its checkpoint: the last one told, and the one begun, may be done again.
    assert watcher.epochs("slow")[0] >= before
    assert num_steps(trace) <= (NUM_SLOW_EPOCHS + 2) * STEPS_PER_EPOCH
    compute.submit(slow_task("slow", trace))
    (again,) = Watcher(compute).ends(["slow"])
    assert again == end
    assert len(pids(trace)) == 2, "a finished teacher is not trained again"


def test_a_killed_training_worker_is_replaced_and_goes_on_after_the_last_epoch(
    compute: RemoteCompute, watcher: Watcher, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    compute.submit(slow_task("hit", trace))
    # Only the newest word is read: that of one epoch may be over before anybody looked.
    watcher.until(lambda: max(watcher.epochs("hit"), default=0) >= 3, "the third epoch")
    os.kill(pids(trace)[0], signal.SIGKILL)
    (end,) = watcher.ends(["hit"])
    assert isinstance(end, TaskSucceeded), end
    assert num_steps(trace) <= (NUM_SLOW_EPOCHS + 2) * STEPS_PER_EPOCH
    assert len(pids(trace)) == 2


@pytest.mark.parametrize("victim", ["raylet", "the driver"])
def test_a_ray_that_was_lost_as_a_whole_is_started_again_with_what_was_unfinished(
    compute: RemoteCompute, watcher: Watcher, teacher: TeacherResult, tmp_path: Path, victim: str
) -> None:
    """Killed as a cluster's head or the kernel's lack of memory would: this process stands for ``serve``."""
    trace = tmp_path / "trace"
    work = workload("shared", trace=str(trace), hold_s=60.0, num_holds=1)
    name = f"survivor of {victim}"
    compute.submit(student_task(name, work, teacher))
    watcher.until(lambda: pids(trace), "the student to start")
    driver = compute.pid
    assert driver is not None
    family = psutil.Process(driver).children(recursive=True)
    if victim == "raylet":
        (raylet,) = (process for process in family if _name(process) == "raylet")
        raylet.kill()
    else:
        os.kill(driver, signal.SIGKILL)
    (end,) = watcher.ends([name])
    assert isinstance(end, TaskSucceeded), end
    assert len(pids(trace)) == 2
    assert compute.pid != driver
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left, "the Ray of a driver that died does not outlive it"
    wait_until(lambda: not ray_folders(driver), "its files to be removed")


#: Four real students on the running Ray, in two jobs.
def test_a_search_from_the_command_line_tries_other_methods_and_networks_and_shows_them_measured(
    compute: RemoteCompute, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with Desk(compute, Registry(str(home / "registry")), tmp_path, monkeypatch, capsys) as desk:
        asked = "depth_ratio=0.5,width_ratio=0.5,num_epochs=1,precision=int8"
        desk.says("compress", "-p", "tiny-flash", "--spec", asked)
        shorter = desk.built(asked)
        assert 0 < shorter["num_parameters"] < 0.3 * desk.teacher.num_parameters

        limit = int(shorter["artifact_bytes"] * 0.8)
        desk.constrain(artifact_bytes=limit, latency_p95_ms=1e-6, min_accuracy=0.01)
        assert "distilled small x1" in desk.says("compress", "-p", "tiny-flash")
        points = json.loads(desk.says("pareto", "tiny-flash", "-o", "json"))["points"]
        found = {point["spec"]["road"]: point for point in points if point["proposed_reason"]}
        assert len(found) == 3
        packed = found["pruned"]
        assert packed["spec"]["quantisation"]
        assert packed["spec"]["depth_ratio"] == 0.5
        assert packed["proposed_reason"].startswith(f"artifact bytes bind: {shorter['digest'][:12]} has ")
        assert packed["artifact_bytes"] < shorter["artifact_bytes"]
        assert found["distilled"]["spec"]["network"].startswith("small@")
        assert "latency binds: " in found["distilled"]["proposed_reason"]
        assert found["rules"]["spec"]["rules"]["kind"] == "tree"
        assert all(point["latency_p50_ms"] > 0 and point["accuracy"] > 0.1 for point in found.values())
