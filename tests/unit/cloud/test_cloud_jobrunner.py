"""Jobs: what is submitted, what is kept, and that nothing finished is ever run twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from control_plane_fakes import PROFILE, WORKLOAD, FakeCompute, World, teacher_of

from cloud.domain.jobs import Job, JobKind, JobState
from cloud.domain.specs import CompressionSpec
from cloud.domain.tasks import StudentTask, TeacherTask
from cloud.job_plans import compress_job, student_task_id, train_job
from cloud.jobs.results import run_key
from cloud.store import Store
from edgeloop.errors import TransientError

SPECS = (CompressionSpec(width_ratio=0.5), CompressionSpec(width_ratio=0.25))


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.store.apply_workload(WORKLOAD, 1.0)
    world.store.apply_profile(PROFILE, 1.0)
    return world


def run(world: World, *, rounds: int = 3) -> None:
    for _ in range(rounds):
        world.now_s += 1.0
        world.runner.step()


def job_of(store: Store, job_id: str) -> Job:
    job = store.job(job_id)
    assert job is not None
    return job


def test_a_training_job_gives_the_teacher(world: World) -> None:
    world.store.create_job(train_job("t", WORKLOAD, 1.0))
    run(world)
    assert [type(task) for task in world.compute.tasks.values()] == [TeacherTask]
    world.compute.report(0.25)
    run(world, rounds=1)
    assert (job_of(world.store, "t").state, job_of(world.store, "t").progress) == (JobState.RUNNING, 0.25)
    world.compute.finish()
    run(world)
    job = job_of(world.store, "t")
    assert (job.state, job.progress) == (JobState.SUCCEEDED, 1.0)
    assert "0.9900" in job.message
    assert world.store.teacher(WORKLOAD.teacher_key) == teacher_of(WORKLOAD)


def test_a_teacher_that_is_there_is_not_trained_again_unless_forced(world: World) -> None:
    world.store.save_teacher(teacher_of(WORKLOAD), 1.0)
    world.store.create_job(train_job("again", WORKLOAD, 1.0))
    run(world)
    assert job_of(world.store, "again").state is JobState.SUCCEEDED
    assert world.compute.ran == []
    world.store.create_job(train_job("forced", WORKLOAD, 2.0, force=True))
    run(world)
    (task,) = world.compute.tasks.values()
    assert isinstance(task, TeacherTask)
    assert task.attempt == "forced"


def test_another_attempt_at_a_teacher_is_a_run_of_its_own() -> None:
    first = TeacherTask(task_id="t", workload=WORKLOAD)
    assert run_key(first) == run_key(replace(first, task_id="u"))
    assert run_key(first) != run_key(replace(first, attempt="train-digits-1"))


def test_compression_keeps_the_good_students_and_records_the_bad(world: World) -> None:
    world.store.save_teacher(teacher_of(WORKLOAD), 1.0)
    world.store.create_job(compress_job("c", PROFILE, SPECS, 1.0))
    run(world)
    assert all(isinstance(task, StudentTask) for task in world.compute.tasks.values())
    failing = next(
        task_id
        for task_id, task in world.compute.tasks.items()
        if isinstance(task, StudentTask) and task.spec == SPECS[1]
    )
    world.compute.fail(failing, message="loss is not finite")
    world.compute.finish()
    run(world)
    job = job_of(world.store, "c")
    assert job.state is JobState.SUCCEEDED
    assert "1 students built, 1 failed: loss is not finite" in job.message
    assert [candidate.spec for candidate in world.store.candidates("gateway")] == [SPECS[0]]
    assert world.store.failed_specs("gateway") == [SPECS[1]]
    assert job.candidate_digests == tuple(c.digest for c in world.store.candidates("gateway"))


def test_a_job_of_which_every_trial_failed_says_the_first_error(world: World) -> None:
    world.store.save_teacher(teacher_of(WORKLOAD), 1.0)
    world.store.create_job(compress_job("c", PROFILE, SPECS, 1.0))
    run(world)
    for number, task_id in enumerate(list(world.compute.tasks)):
        world.compute.fail(task_id, code="config", message=f"broken {number}")
    run(world)
    job = job_of(world.store, "c")
    assert (job.state, job.message) == (JobState.FAILED, "broken 0")
    # The workload is at fault, not the specs: the search may ask for them again.
    assert world.store.failed_specs("gateway") == []


def test_compression_without_a_teacher_trains_one_first(world: World) -> None:
    world.store.create_job(compress_job("c", PROFILE, SPECS, 1.0))
    run(world)
    training = [job for job in world.store.jobs() if job.kind is JobKind.TRAIN]
    assert len(training) == 1
    assert training[0].job_id in job_of(world.store, "c").message
    world.compute.finish()
    run(world)
    world.compute.finish()
    run(world)
    assert job_of(world.store, "c").state is JobState.SUCCEEDED
    assert len([task for task in world.compute.ran if task.startswith("teacher-")]) == 1


def test_compression_waits_for_a_training_that_runs_already(world: World) -> None:
    world.store.create_job(train_job("t", WORKLOAD, 1.0))
    world.store.create_job(compress_job("c", PROFILE, SPECS, 2.0))
    run(world)
    assert [job.job_id for job in world.store.jobs() if job.kind is JobKind.TRAIN] == ["t"]
    assert "t" in job_of(world.store, "c").message


def test_when_the_teacher_fails_the_compression_says_what_to_do(world: World) -> None:
    world.store.create_job(compress_job("c", PROFILE, SPECS, 1.0))
    run(world)
    world.compute.fail(next(iter(world.compute.tasks)), code="config", message="dataset: no labels")
    run(world)
    job = job_of(world.store, "c")
    assert job.state is JobState.FAILED
    assert "dataset: no labels" in job.message
    assert "edgeloop train digits" in job.message


def test_a_restart_submits_what_is_unfinished_and_only_that(world: World) -> None:
    world.store.save_teacher(teacher_of(WORKLOAD), 1.0)
    world.store.create_job(compress_job("c", PROFILE, SPECS, 1.0))
    run(world)
    first = next(iter(world.compute.tasks))
    rest = {task_id: task for task_id, task in world.compute.tasks.items() if task_id != first}
    world.compute.tasks = {first: world.compute.tasks[first]}
    world.compute.finish()
    run(world)
    world.restart(lose_cluster=True)
    run(world)
    assert set(world.compute.tasks) == set(rest)
    world.compute.finish()
    run(world)
    assert job_of(world.store, "c").state is JobState.SUCCEEDED
    assert len(world.store.candidates("gateway")) == 2
    assert sorted(world.compute.ran.count(task_id) for task_id in set(world.compute.ran)) == [1, 2]


def test_a_student_that_another_job_built_is_taken_over(world: World) -> None:
    world.store.save_teacher(teacher_of(WORKLOAD), 1.0)
    world.store.create_job(compress_job("first", PROFILE, SPECS, 1.0))
    run(world)
    world.compute.finish()
    run(world)
    ran = list(world.compute.ran)
    world.store.create_job(compress_job("second", PROFILE, SPECS[:1], 50.0))
    run(world)
    job = job_of(world.store, "second")
    assert (job.state, len(job.candidate_digests)) == (JobState.SUCCEEDED, 1)
    assert world.compute.ran == ran


def test_a_student_that_was_deleted_from_the_registry_is_built_again(world: World) -> None:
    world.store.save_teacher(teacher_of(WORKLOAD), 1.0)
    world.store.create_job(compress_job("a", PROFILE, SPECS[:1], 1.0))
    run(world)
    world.compute.finish()
    run(world)
    world.deleted_blobs.add(job_of(world.store, "a").trials[0].digest)
    world.store.create_job(compress_job("b", PROFILE, SPECS[:1], 2.0))
    run(world)
    assert len(world.compute.ran) == 2
    world.compute.finish()
    run(world)
    assert job_of(world.store, "b").state is JobState.SUCCEEDED


def test_a_teacher_that_was_trained_again_has_students_of_its_own() -> None:
    old, new = teacher_of(WORKLOAD), teacher_of(WORKLOAD, version="2")
    assert student_task_id(WORKLOAD, old, PROFILE, SPECS[0]) != student_task_id(
        WORKLOAD, new, PROFILE, SPECS[0]
    )


@pytest.mark.parametrize(
    "change",
    [{"instruction_sets": frozenset({"avx512_vnni"})}, {"num_threads": 2}, {"name": "other"}],
    ids=str,
)
def test_a_student_is_named_by_what_of_the_profile_shapes_it(change: dict[str, object]) -> None:
    teacher, other = teacher_of(WORKLOAD), replace(PROFILE, **change)  # type: ignore[arg-type] # chosen above
    assert student_task_id(WORKLOAD, teacher, PROFILE, SPECS[0]) != student_task_id(
        WORKLOAD, teacher, other, SPECS[0]
    )


def test_two_jobs_for_one_student_share_one_task(world: World) -> None:
    world.store.save_teacher(teacher_of(WORKLOAD), 1.0)
    world.store.create_job(compress_job("a", PROFILE, SPECS[:1], 1.0))
    world.store.create_job(compress_job("b", PROFILE, SPECS[:1], 2.0))
    run(world)
    assert len(world.compute.ran) == 1
    world.compute.finish()
    run(world)
    assert {job.state for job in world.store.jobs()} == {JobState.SUCCEEDED}


def test_cancelling_a_job_ends_its_tasks_but_not_those_that_another_job_wants(world: World) -> None:
    world.store.save_teacher(teacher_of(WORKLOAD), 1.0)
    world.store.create_job(compress_job("a", PROFILE, SPECS, 1.0))
    world.store.create_job(compress_job("b", PROFILE, SPECS[:1], 2.0))
    run(world)
    shared = job_of(world.store, "b").trials[0].task_id
    world.store.update_job(replace(job_of(world.store, "a"), state=JobState.CANCELLED))
    run(world)
    assert shared not in world.compute.cancelled
    assert len(world.compute.cancelled) == 1
    world.compute.finish()
    run(world)
    assert job_of(world.store, "b").state is JobState.SUCCEEDED
    assert job_of(world.store, "a").state is JobState.CANCELLED


def test_without_a_cluster_jobs_wait_and_say_for_what(world: World) -> None:
    world.store.save_teacher(teacher_of(WORKLOAD), 1.0)
    world.store.create_job(compress_job("c", PROFILE, SPECS, 1.0))
    world.runner.attach(None, waiting_for="the cluster is starting")
    run(world)
    assert "the cluster is starting" in job_of(world.store, "c").message
    world.runner.attach(world.compute)
    run(world)
    assert len(world.compute.tasks) == 2


def test_a_cluster_that_is_lost_is_reported_and_its_tasks_are_submitted_to_the_next(world: World) -> None:
    lost: list[bool] = []
    world.store.save_teacher(teacher_of(WORKLOAD), 1.0)
    world.runner._on_lost = lambda: lost.append(True)
    world.store.create_job(compress_job("c", PROFILE, SPECS, 1.0))
    run(world)
    world.compute.broken = TransientError("no answer", code="ray-lost")
    run(world)
    assert lost == [True]
    fresh = FakeCompute()
    world.runner.attach(fresh)
    run(world)
    assert len(fresh.tasks) == 2


def test_a_workload_that_changes_under_a_training_ends_it_with_a_reason(world: World) -> None:
    world.store.create_job(train_job("t", WORKLOAD, 1.0))
    world.store.apply_workload(replace(WORKLOAD, teacher="mlp"), 2.0)
    run(world)
    job = job_of(world.store, "t")
    assert job.state is JobState.FAILED
    assert "changed" in job.message


def test_a_result_that_cannot_be_stored_is_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.store.save_teacher(teacher_of(WORKLOAD), 1.0)
    world.store.create_job(compress_job("c", PROFILE, SPECS[:1], 1.0))
    run(world)
    with monkeypatch.context() as patched:

        def full(*_: object) -> bool:
            raise TransientError("disk full", code="store-busy")

        patched.setattr(world.store, "save_candidate", full)
        world.compute.finish()
        run(world, rounds=1)
    assert job_of(world.store, "c").state is JobState.RUNNING
    run(world)
    world.compute.finish()
    run(world)
    assert job_of(world.store, "c").state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("together", "said"),
    [
        (None, "a student reaches accuracy 0.9400, its teacher 0.8500: give training.num_epochs more"),
        (
            0.86,
            "a student reaches accuracy 0.9400, the mean of its teachers 0.8600: give training.num_epochs",
        ),
        (0.935, ""),
    ],
    ids=["one teacher", "several", "several that know as much together"],
)
def test_a_teacher_that_knows_less_than_its_student_is_said(
    world: World, together: float | None, said: str
) -> None:
    teacher = replace(teacher_of(WORKLOAD), accuracy=0.85, ensemble_accuracy=together)
    world.store.save_teacher(teacher, 1.0)
    world.store.create_job(compress_job("c", PROFILE, SPECS[:1], 1.0))
    run(world)
    world.compute.finish()
    run(world)
    job = job_of(world.store, "c")
    assert job.state is JobState.SUCCEEDED
    assert said in job.message
    assert ("a student reaches" in job.message) == bool(said)
