"""Bad inputs by the road that a user's job takes: what is said names the field, what was finished is kept.

The real training and building run in this process, behind the same ``finish`` that workers use; Ray alone is
left out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compute_here import Here
from control_plane_fakes import World

from cloud.domain.jobs import Job, JobState
from cloud.domain.profiles import Constraints, DeviceProfile, MatchRule
from cloud.domain.specs import CompressionSpec, Precision, Road
from cloud.domain.tasks import (
    TeacherTask,
)
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.job_plans import compress_job
from cloud.jobs.tasks import Context

torch.set_num_threads(1)

SOURCE = """
import numpy as np

def load(wrong=""):
    rng = np.random.default_rng(0)
    answer = {"num_classes": 4}
    for split, count in (("train", 64), ("validation", 32), ("test", 32)):
        if wrong == "few" and split == "train":
            count = 4
        labels = np.arange(count) % 4
        inputs = rng.normal(size=(count, 1, 8, 8)) * 0.1 + labels[:, None, None, None] - 1.5
        if wrong == "nan" and split == "validation":
            inputs[7, 0, 3, 3] = np.nan
        if wrong == "class" and split == "test":
            labels[labels == 2] = 1
        answer[f"{split}_inputs"], answer[f"{split}_labels"] = inputs.astype(np.float32), labels
    return answer
"""
GOOD = CompressionSpec(width_ratio=0.5, num_epochs=1, precision=Precision.FP32)
PROFILE = DeviceProfile(name="gateway", workload="bands", match=MatchRule())


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    (tmp_path / "bands.py").write_text(SOURCE)
    here = Here(Context(work_dir=str(tmp_path), registry_url=str(tmp_path / "registry")))
    world.runner.attach(here)
    world.compute = here  # type: ignore[assignment]
    return world


def workload(world: World, *, wrong: str = "", training: TrainingBudget | None = None) -> Workload:
    folder = Path(world.url.removeprefix("sqlite:///")).parent
    return Workload(
        name="bands",
        dataset="bands:load",
        dataset_options={"wrong": wrong} if wrong else {},
        source_dir=str(folder),
        teacher_options={"base_width": 8, "num_stages": 1},
        training=training or TrainingBudget(num_epochs=2, batch_size=16),
    )


def compress(world: World, job_id: str, profile: DeviceProfile, *specs: CompressionSpec) -> Job:
    world.store.create_job(compress_job(job_id, profile, specs, world.now_s))
    for _ in range(8):
        world.now_s += 1.0
        world.runner.step()
    job = world.store.job(job_id)
    assert job is not None
    assert job.state.finished
    return job


@pytest.mark.parametrize(
    ("wrong", "training", "said"),
    [
        ("nan", None, "validation_inputs holds NaN or infinity, first in sample 7"),
        ("class", None, "test_labels has no sample of class 2"),
        ("few", None, "train_inputs: 4 samples are too few to calibrate on"),
        (
            "",
            TrainingBudget(num_epochs=2, batch_size=16, weight_decay=1e38),
            "the loss is nan at epoch 1, batch",
        ),
    ],
    ids=["NaN in data", "class missing", "calibration empty", "NaN loss"],
)
def test_a_wrong_workload_ends_its_job_with_the_field_and_builds_nothing(
    world: World, wrong: str, training: TrainingBudget | None, said: str
) -> None:
    world.store.apply_workload(workload(world, wrong=wrong, training=training), 1.0)
    world.store.apply_profile(PROFILE, 1.0)
    job = compress(world, "c", PROFILE, GOOD)
    assert job.state is JobState.FAILED
    assert said in job.message
    assert "edgeloop train bands" in job.message
    kinds = [type(task) for task in world.compute.ran]
    assert kinds == [TeacherTask], "tried once, and nothing was built on it"


def test_what_was_finished_before_a_mistake_is_kept_and_not_made_again(world: World) -> None:
    world.store.apply_workload(workload(world), 1.0)
    strict = replace(PROFILE, name="strict", constraints=Constraints(artifact_bytes=30))
    for profile in (PROFILE, strict):
        world.store.apply_profile(profile, 1.0)
    untrained = CompressionSpec(road=Road.SCRATCH, width_ratio=0.5, num_epochs=0)
    job = compress(world, "c", PROFILE, GOOD, untrained)
    assert job.state is JobState.SUCCEEDED
    assert "1 students built, 1 failed: num_epochs is 0 on road scratch" in job.message
    (kept,) = world.store.candidates("gateway", "bands")

    small = compress(world, "too-small", strict, GOOD, CompressionSpec(road=Road.RULES))
    assert small.state is JobState.FAILED
    assert "profile strict: constraints.artifact_bytes is 30: the narrowest student" in small.message
    told = [trial.message for trial in small.trials]
    assert "constraints.artifact_bytes is 30: rules for 4 classes take over 32 bytes" in told[1]

    num_ran = len(world.compute.ran)
    again = compress(world, "again", PROFILE, GOOD)
    assert again.state is JobState.SUCCEEDED
    assert len(world.compute.ran) == num_ran
    assert world.store.candidates("gateway", "bands") == [kept]
