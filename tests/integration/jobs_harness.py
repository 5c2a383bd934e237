"""What the tests of compute share: tiny tasks, and waiting for what becomes of them."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.tasks import StudentTask, TaskEvent, TaskProgress, TeacherResult, TeacherTask
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.jobs.remote import RemoteCompute

SOURCE_DIR = str(Path(__file__).parent / "jobs_workload")
TINY_NET = {"base_width": 8, "num_stages": 1}
#: A control plane of its own, to be killed: it trains until then, and prints what it is told.
DRIVER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from jobs_harness import slow_task
from cloud.jobs.remote import RemoteCompute

compute = RemoteCompute(work_dir=sys.argv[1], registry_url=sys.argv[1] + "/registry", num_cpus=2)
compute.start()
compute.submit(slow_task("slow", Path(sys.argv[2])))
while True:
    for event in compute.poll():
        print(event, flush=True)
    time.sleep(0.05)
"""


def workload(
    name: str,
    *,
    num_epochs: int = 1,
    teacher: str = "residual-cnn",
    teacher_options: Mapping[str, Any] = TINY_NET,
    **dataset_options: Any,
) -> Workload:
    return Workload(
        name=name,
        dataset="tiny:load",
        dataset_options=dataset_options,
        source_dir=SOURCE_DIR,
        teacher=teacher,
        teacher_options=teacher_options,
        training=TrainingBudget(num_epochs=num_epochs, batch_size=16),
    )


def teacher_task(task_id: str, work: Workload) -> TeacherTask:
    return TeacherTask(task_id=task_id, workload=work)


def student_task(task_id: str, work: Workload, teacher: TeacherResult) -> StudentTask:
    return StudentTask(
        task_id=task_id,
        workload=work,
        teacher=teacher,
        profile=DeviceProfile(name="small", workload=work.name, match=MatchRule()),
        spec=CompressionSpec(road=Road.PRUNED, width_ratio=0.5, num_epochs=1),
    )


NUM_SLOW_EPOCHS = 8


def slow_task(task_id: str, trace: Path) -> TeacherTask:
    """A teacher whose epochs take 0.6 s each at least."""
    options = {"step_s": 0.15, "trace": f"{trace}-steps"}
    work = workload(
        "slow", num_epochs=NUM_SLOW_EPOCHS, teacher="tiny:slow", teacher_options=options, trace=str(trace)
    )
    return teacher_task(task_id, work)


STEPS_PER_EPOCH = 4


def num_steps(trace: Path) -> int:
    """Training steps of all processes that worked on a slow task together."""
    return len(Path(f"{trace}-steps").read_text().splitlines())


def epochs(messages: Sequence[str]) -> list[int]:
    """The epochs that were told as finished."""
    return [int(found.group(1)) for text in messages if (found := re.search(r"epoch (\d+)/\d+: loss", text))]


def ray_folders(pid: int) -> list[Path]:
    """What is left of a runtime that this process started."""
    return list(Path(tempfile.gettempdir()).glob(f"elray-{pid}-*"))


class Watcher:
    """Polls as the controller does, and keeps all that it was told."""

    def __init__(self, compute: RemoteCompute) -> None:
        self.compute = compute
        self.told: list[tuple[float, TaskEvent]] = []

    def poll(self) -> None:
        now_s = time.monotonic()
        self.told += [(now_s, event) for event in self.compute.poll()]

    def ends(self, task_ids: Sequence[str], timeout_s: float = 240.0) -> list[Any]:
        """The final event of each task, in the order asked for."""
        self.until(lambda: all(self.end(task_id) for task_id in task_ids), f"{task_ids} to end", timeout_s)
        return [self.end(task_id) for task_id in task_ids]

    def end(self, task_id: str) -> TaskEvent | None:
        found = [event for _, event in self.told if event.task_id == task_id and not is_progress(event)]
        assert len(found) < 2, f"{task_id} ended twice: {found}"
        return found[0] if found else None

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 240.0) -> None:
        limit_s = time.monotonic() + timeout_s
        while True:
            self.poll()
            if condition():
                return
            assert time.monotonic() < limit_s, f"waited {timeout_s} s for {what}; told: {self.told[-5:]}"
            time.sleep(0.05)

    def epochs(self, task_id: str) -> list[int]:
        return epochs([word.message for word in self.words(task_id)])

    def words(self, task_id: str) -> list[TaskProgress]:
        return [
            event for _, event in self.told if isinstance(event, TaskProgress) and event.task_id == task_id
        ]


def is_progress(event: TaskEvent) -> bool:
    return isinstance(event, TaskProgress)


def pids(trace: Path) -> list[int]:
    """Of the processes that loaded the data, one for each time."""
    return [int(line) for line in trace.read_text().split()] if trace.exists() else []


def is_alive(pid: int) -> bool:
    try:
        return not Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return False
