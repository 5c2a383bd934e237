"""kill -9 of the control plane, and of a training worker: nothing that was finished is done again."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from jobs_harness import Watcher, is_alive, pids, teacher_task, wait_until, workload

from cloud.domain.tasks import TaskSucceeded, TeacherResult
from cloud.jobs import RayCompute

#: Two starts of Ray and of Ray Train, some 15 s each on two idle cores; neighbours make it longer.
pytestmark = [pytest.mark.timeout(150), pytest.mark.slow]

NUM_EPOCHS = 8
DRIVER = """
import sys, time
sys.path.insert(0, sys.argv[3])
from jobs_harness import *
from cloud.jobs import RayCompute
from test_jobs_ray_restart import slow_task

compute = RayCompute(work_dir=sys.argv[1], registry_url=sys.argv[1] + "/registry", num_cpus=2)
compute.start()
compute.submit(slow_task(sys.argv[2]))
while True:
    for event in compute.poll():
        print(event, flush=True)
    time.sleep(0.05)
"""


def slow_task(trace: str):
    work = workload(
        "slow", num_epochs=NUM_EPOCHS, teacher="tiny:slow", teacher_options={"step_s": 0.15}, trace=trace
    )
    return teacher_task("slow-teacher", work)


def epochs(messages: list[str]) -> list[int]:
    """The epochs that were told as finished."""
    return [int(found.group(1)) for text in messages if (found := re.search(r"epoch (\d+)/\d+: loss", text))]


def test_training_goes_on_after_the_last_epoch_when_everything_was_killed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), str(trace), str(Path(__file__).parent)],
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
    before = max(epochs(seen))
    family = psutil.Process(driver.pid).children(recursive=True)
    assert len(family) > 5
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _, left = psutil.wait_procs(family, timeout=20)
    assert not left, "Ray does not outlive the process that started it"

    compute = RayCompute(work_dir=tmp_path, registry_url=str(tmp_path / "registry"), num_cpus=2)
    compute.start()
    try:
        folders = list(Path(tempfile.gettempdir()).glob(f"elray-{driver.pid}-*"))
        assert not folders, "the next start removes what the killed one left"
        watcher = Watcher(compute)
        compute.submit(slow_task(str(trace)))
        watcher.until(lambda: watcher.words("slow-teacher")[-1].fraction > 0.3, "training to go on", 60)
        worker = pids(trace)[-1]
        watcher.until(
            lambda: before + 2 in epochs([word.message for word in watcher.words("slow-teacher")]),
            "two more epochs",
        )
        os.kill(worker, signal.SIGKILL)
        (end,) = watcher.ends(["slow-teacher"], timeout_s=80)
        assert isinstance(end, TaskSucceeded), end
        assert isinstance(end.result, TeacherResult)
        assert end.result.num_epochs == NUM_EPOCHS
        done = epochs([word.message for word in watcher.words("slow-teacher")])
        # The word of an epoch comes before its checkpoint: at most the one that was killed is done again.
        assert min(done) >= before
        assert sorted(set(done)) == list(range(min(done), NUM_EPOCHS + 1))
        assert sum(done.count(epoch) - 1 for epoch in set(done)) <= 1
        assert len(pids(trace)) == 3, "one loading for each start of the training worker"
        told_s = [now_s for now_s, event in watcher.told if "epoch" in getattr(event, "message", "")]
        # The last gap holds the killed worker's restart.
        gaps = sorted(later - earlier for earlier, later in itertools.pairwise(told_s))
        assert gaps[-2] < 2.0
        started_s = time.monotonic()
        compute.submit(slow_task(str(trace)))
        (again,) = Watcher(compute).ends(["slow-teacher"], timeout_s=2)
        assert again == end
        assert time.monotonic() - started_s < 1.0
        assert len(pids(trace)) == 3
    finally:
        ours = psutil.Process().children(recursive=True)
        compute.stop()
    assert not psutil.wait_procs(ours, timeout=10)[1]
    assert not is_alive(worker)
    wait_until(
        lambda: not list(Path(tempfile.gettempdir()).glob(f"elray-{os.getpid()}-*")), "its folder gone"
    )
