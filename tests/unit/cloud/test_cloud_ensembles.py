"""Several teachers for one workload: each trained by a task of its own, students taught by their mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compute_here import Here
from control_plane_fakes import PROFILE, WORKLOAD, World, family_of, teacher_of

from cloud.compression.teacher_weights import load_teacher, load_wisdom
from cloud.domain.families import FamilySettings
from cloud.domain.jobs import JobKind, JobState
from cloud.domain.specs import CompressionSpec, Precision, Road
from cloud.domain.tasks import FamilyTask, StudentTask, TeacherTask
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.ensembles import scored
from cloud.job_plans import compress_job, student_task_id, train_job
from cloud.jobs.tasks import Context
from cloud.registry import Registry
from cloud.resources import WorkloadDocument
from cloud.services.views import teacher_info
from cloud.training.datasets import load_dataset
from cloud.training.ensemble import MeanOfOutputs
from cloud.training.teacher import measure_accuracy

torch.set_num_threads(1)
THREE = replace(WORKLOAD, training=TrainingBudget(num_teachers=3, seed=5))


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.store.apply_workload(THREE, 1.0)
    world.store.apply_profile(PROFILE, 1.0)
    return world


def run(world: World, *, rounds: int = 3) -> None:
    for _ in range(rounds):
        world.now_s += 1.0
        world.runner.step()


def test_each_teacher_is_a_task_and_a_kill_repeats_none_that_was_done(world: World) -> None:
    world.store.create_job(train_job("t", THREE, 1.0))
    run(world)
    tasks = list(world.compute.tasks.values())
    assert [task.workload.training.seed for task in tasks] == [5, 6, 7]
    assert all(isinstance(task, TeacherTask) and task.workload.training.num_teachers == 1 for task in tasks)
    held = {task.task_id: world.compute.tasks.pop(task.task_id) for task in tasks[1:]}
    world.compute.finish()
    run(world)
    assert world.store.teacher(THREE.teacher_key) is None, "one is not all"
    world.restart(lose_cluster=True)
    run(world)
    assert set(world.compute.tasks) == set(held)
    world.compute.finish()
    run(world)
    job = world.store.job("t")
    assert job is not None
    assert job.state is JobState.SUCCEEDED
    assert "3 teachers trained: accuracy 0.9900, 0.9900, 0.9900" in job.message
    teacher = world.store.teacher(THREE.teacher_key)
    assert teacher is not None
    assert len(teacher.other_checkpoints) == 2
    assert len({teacher.checkpoint_digest, *teacher.other_checkpoints}) == 3


def test_one_that_fails_ends_the_training_and_the_others_are_kept(world: World) -> None:
    world.store.create_job(compress_job("c", PROFILE, (CompressionSpec(),), 1.0))
    run(world)
    (training,) = (job for job in world.store.jobs() if job.kind is JobKind.TRAIN)
    first, bad, last = (trial.task_id for trial in training.trials)
    world.compute.fail(bad, code="config", message="the loss is nan")
    world.compute.tasks.pop(last)
    world.compute.finish()
    run(world)
    job = world.store.job("c")
    assert job is not None
    assert job.state is JobState.FAILED
    assert "could not be trained (the loss is nan)" in job.message
    assert world.store.teacher(THREE.members[0].teacher_key) is not None
    assert first.endswith(THREE.members[0].teacher_key)


def test_what_learns_from_several_is_not_what_learns_from_one() -> None:
    assert WORKLOAD.members == (WORKLOAD,)
    assert "num_teachers" not in WORKLOAD.to_json(), "or identities given before would change"
    assert Workload.from_json(THREE.to_json()) == THREE
    alone = replace(THREE, training=replace(THREE.training, num_teachers=1))
    assert THREE.members[0].teacher_key == alone.teacher_key != THREE.teacher_key
    one = replace(teacher_of(alone), accuracy=0.9)
    other = replace(teacher_of(alone, version="2"), accuracy=0.95)
    both = type(one).ensemble(THREE.teacher_key, [one, other])
    assert both.checkpoint_digest == other.checkpoint_digest, "the better one is narrowed"
    assert both.other_checkpoints == (one.checkpoint_digest,)
    assert both.train_s == one.train_s + other.train_s
    spec = CompressionSpec()
    assert student_task_id(THREE, both, PROFILE, spec) != student_task_id(THREE, other, PROFILE, spec)
    settings = FamilySettings(num_epochs=1)
    families = [
        family_of(FamilyTask(task_id="f", workload=THREE, teacher=teacher, settings=settings))
        for teacher in (both, other)
    ]
    assert families[0].family_key != families[1].family_key


def test_the_document_takes_one_to_eight_teachers() -> None:
    document = {"kind": "Workload", "name": "w", "dataset": "digits", "training": {"num_teachers": 4}}
    assert WorkloadDocument.model_validate(document).to_domain().training.num_teachers == 4
    for training, said in (
        ({"num_teachers": 0}, "num_teachers"),
        ({"num_teachers": 9}, "num_teachers"),
        ({"num_teachers": 2, "seed": 2**31 - 1}, "lower seed"),
    ):
        with pytest.raises(ValueError, match=said):
            WorkloadDocument.model_validate(document | {"training": training})


def test_a_student_learns_from_the_mean_of_two_real_teachers(tmp_path: Path) -> None:
    world = World(tmp_path)
    registry = Registry(str(tmp_path / "registry"))
    here = Here(Context(work_dir=str(tmp_path), registry_url=registry.url))
    world.runner.attach(here)
    world.get_blob = registry.get
    work = Workload(
        name="digits",
        dataset="digits",
        dataset_options={"image_size": 8},
        teacher_options={"base_width": 8, "num_stages": 1},
        training=TrainingBudget(num_epochs=1, batch_size=64, num_teachers=2),
    )
    world.store.apply_workload(work, 1.0)
    world.store.apply_profile(PROFILE, 1.0)
    spec = CompressionSpec(
        road=Road.DISTILLED, width_ratio=0.5, num_epochs=1, alpha=1.0, hint_weight=0.1,
        precision=Precision.FP32,
    )  # fmt: skip
    world.store.create_job(compress_job("c", PROFILE, (spec,), 1.0))
    run(world, rounds=8)
    job = world.store.job("c")
    assert job is not None
    assert job.state is JobState.SUCCEEDED, job.message
    assert [type(task) for task in here.ran] == [TeacherTask, TeacherTask, StudentTask]
    teacher = world.store.teacher(work.teacher_key)
    assert teacher is not None
    dataset = load_dataset(work)
    lead = load_teacher(work, dataset, teacher, registry=registry)
    wisdom = load_wisdom(work, dataset, teacher, lead, registry=registry)
    assert isinstance(wisdom, MeanOfOutputs)
    inputs = torch.from_numpy(dataset.validation.inputs[:8])
    outputs = [member(inputs) for member in wisdom.members]
    assert not torch.allclose(*outputs)
    assert torch.allclose(wisdom(inputs), (outputs[0] + outputs[1]) / 2, atol=1e-6)

    # What the mean reaches is known, without anything being run for it.
    reached = [
        measure_accuracy(wisdom, split, torch.device("cpu")) for split in (dataset.validation, dataset.test)
    ]
    assert teacher.ensemble_accuracy == pytest.approx(reached[0], abs=0.006)
    assert teacher.ensemble_test_accuracy == pytest.approx(reached[1], abs=0.006)
    assert teacher.taught_accuracy == teacher.ensemble_accuracy
    (training,) = (job for job in world.store.jobs() if job.kind is JobKind.TRAIN)
    assert f"their mean {teacher.ensemble_accuracy:.4f} on the validation split" in training.message
    assert teacher_info(teacher).ensemble_accuracy == teacher.ensemble_accuracy
    members = [world.store.teacher(member.teacher_key) for member in work.members]
    known = [member for member in members if member is not None]
    for unknown in ([replace(known[0], outputs_digest=""), known[1]],
                    [replace(known[0], outputs_digest="0" * 64), known[1]]):  # fmt: skip
        assert scored(
            replace(teacher, ensemble_accuracy=None), unknown, work, registry.get
        ).taught_accuracy == (teacher.accuracy)

    # The same student from the lead alone is another one: the second teacher was listened to.
    alone = replace(teacher, other_checkpoints=())
    before = world.store.candidates(PROFILE.name, "digits")
    here.submit(StudentTask(task_id="alone", workload=work, teacher=alone, profile=PROFILE, spec=spec))
    (end,) = here.poll()
    assert end.result.digest not in {candidate.digest for candidate in before}  # type: ignore[union-attr]
