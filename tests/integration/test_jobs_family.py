"""An elastic family on a real Ray: killed half-way, finished, shared; then students cut from it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from jobs_harness import Watcher, pids, workload

from cloud.compression.build import finish_teacher
from cloud.domain.candidates import Candidate
from cloud.domain.families import FamilyResult, FamilySettings
from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.tasks import FamilyTask, StudentTask, TaskSucceeded
from cloud.jobs.remote import RemoteCompute
from cloud.registry import Registry
from cloud.training.teacher import TeacherTrainer

#: Ray, then Ray Train with its helpers, start in some 15 s on two idle cores; neighbours make it longer.
pytestmark = [pytest.mark.timeout(420), pytest.mark.slow, pytest.mark.alone]

NUM_EPOCHS = 30


def test_a_killed_family_goes_on_after_its_last_epoch_and_students_of_two_profiles_are_cut_from_it(
    tmp_path: Path,
) -> None:
    trace = tmp_path / "trace"
    work = workload("elastic", teacher_options={"base_width": 16, "num_stages": 2}, trace=str(trace))
    registry = Registry(str(tmp_path / "registry"))
    trainer = TeacherTrainer(work, device="cpu")
    trainer.run_epoch()
    teacher = finish_teacher(work, trainer, registry=registry)
    compute = RemoteCompute(work_dir=tmp_path / "work", registry_url=registry.url, num_cpus=2)
    compute.start()
    try:
        watcher = Watcher(compute)
        settings = FamilySettings(num_epochs=NUM_EPOCHS)
        families = [
            FamilyTask(task_id=name, workload=work, teacher=teacher, settings=settings) for name in "ab"
        ]
        for task in families:
            compute.submit(task)
        watcher.until(lambda: max(watcher.epochs("a"), default=0) >= 3, "the third epoch")
        before = max(watcher.epochs("a"))
        os.kill(pids(trace)[-1], signal.SIGKILL)
        first, second = watcher.ends(["a", "b"])
        assert isinstance(first, TaskSucceeded), first
        assert isinstance(second, TaskSucceeded), second
        family = first.result
        assert isinstance(family, FamilyResult)
        assert family == second.result
        assert family.num_epochs == NUM_EPOCHS
        assert len(pids(trace)) == 3, "one load for the teacher, one a training process: two tasks, one run"
        resumed = [word.message for word in watcher.words("a") if "resumed after epoch" in word.message]
        after_kill = [epoch for epoch in watcher.epochs("a") if epoch > before]
        assert resumed or min(after_kill) >= before, "it did not begin again"

        for name in ("small", "large"):
            compute.submit(
                StudentTask(
                    task_id=name,
                    workload=work,
                    teacher=teacher,
                    profile=DeviceProfile(name=name, workload=work.name, match=MatchRule()),
                    spec=CompressionSpec(road=Road.ELASTIC, width_ratio=0.5, num_epochs=0),
                    family=family,
                )
            )
        for end in watcher.ends(["small", "large"]):
            assert isinstance(end, TaskSucceeded), end
            assert isinstance(end.result, Candidate)
            assert end.result.spec.road is Road.ELASTIC
            assert registry.exists(end.result.digest)
    finally:
        compute.stop()
