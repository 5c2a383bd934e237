"""Elastic families in jobs: trained once for everyone, found again after a restart, failing alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from control_plane_fakes import PROFILE, WORKLOAD, World, family_of, teacher_of

from cloud.domain.families import FamilySettings, family_key
from cloud.domain.jobs import Job, JobKind, JobState
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.tasks import FamilyTask, StudentTask
from cloud.domain.workloads import SearchBudget
from cloud.family_plans import family_job, family_key_of, family_settings, known_family
from cloud.job_plans import compress_job, student_task_id
from cloud.jobs.results import ResultShelf, run_key
from cloud.jobs.weights import RegistryWeights
from cloud.registry import Registry

CUT = CompressionSpec(road=Road.ELASTIC, width_ratio=0.5, num_epochs=0)
OTHER_CUT = replace(CUT, width_ratio=0.25)
PRUNED = CompressionSpec(road=Road.PRUNED, width_ratio=0.5)
OTHER = replace(PROFILE, name="other")


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.store.apply_workload(WORKLOAD, 1.0)
    world.store.apply_profile(PROFILE, 1.0)
    world.store.apply_profile(OTHER, 1.0)
    world.store.save_teacher(teacher_of(WORKLOAD), 1.0)
    return world


def run(world: World, *, rounds: int = 3) -> None:
    for _ in range(rounds):
        world.now_s += 1.0
        world.runner.step()


def job_of(world: World, job_id: str) -> Job:
    job = world.store.job(job_id)
    assert job is not None
    return job


def family_jobs(world: World) -> list[Job]:
    return [job for job in world.store.jobs() if job.kind is JobKind.FAMILY]


def test_two_profiles_share_one_family_and_other_students_do_not_wait_for_it(world: World) -> None:
    world.store.create_job(compress_job("a", PROFILE, (CUT, PRUNED), 1.0))
    world.store.create_job(compress_job("b", OTHER, (CUT, OTHER_CUT), 2.0))
    run(world)
    kinds = sorted(type(task).__name__ for task in world.compute.tasks.values())
    assert kinds == ["FamilyTask", "StudentTask"]
    assert len(family_jobs(world)) == 1
    assert "elastic family is trained first" in job_of(world, "b").message
    world.compute.finish()
    run(world)
    students = [task for task in world.compute.tasks.values() if isinstance(task, StudentTask)]
    assert {task.spec.road for task in students} == {Road.ELASTIC}
    assert all(task.family is not None for task in students)
    world.compute.finish()
    run(world)
    assert {job.state for job in world.store.jobs()} == {JobState.SUCCEEDED}
    assert "0.9100 at its narrowest" in family_jobs(world)[0].message
    assert sum(task_id.startswith("family-") for task_id in world.compute.ran) == 1


def test_a_later_job_cuts_at_once_also_after_a_restart(world: World) -> None:
    world.store.create_job(compress_job("a", PROFILE, (CUT,), 1.0))
    run(world)
    world.compute.finish()
    run(world)
    world.restart(lose_cluster=True)
    world.store.create_job(compress_job("b", OTHER, (OTHER_CUT,), 2.0))
    run(world)
    assert sum(task_id.startswith("family-") for task_id in world.compute.ran) == 1
    assert any(isinstance(task, StudentTask) and task.family for task in world.compute.tasks.values())


def test_a_restart_while_the_family_is_trained_submits_it_again(world: World) -> None:
    world.store.create_job(compress_job("a", PROFILE, (CUT,), 1.0))
    run(world)
    world.restart(lose_cluster=True)
    run(world)
    assert [type(task) for task in world.compute.tasks.values()] == [FamilyTask]
    world.compute.finish()
    run(world)
    world.compute.finish()
    run(world)
    assert job_of(world, "a").state is JobState.SUCCEEDED


def test_a_family_that_fails_takes_only_its_own_students_with_it(world: World) -> None:
    world.store.create_job(compress_job("a", PROFILE, (CUT, PRUNED), 1.0))
    run(world)
    failing = next(task_id for task_id in world.compute.tasks if task_id.startswith("family-"))
    world.compute.fail(failing, message="the loss is nan")
    run(world)
    world.compute.finish()
    run(world)
    job = job_of(world, "a")
    assert job.state is JobState.SUCCEEDED
    assert (
        "1 students built, 1 failed: the elastic family could not be trained (the loss is nan)" in job.message
    )


def test_cancelling_the_last_job_that_needs_a_family_leaves_the_family_job_to_be_cancelled_by_name(
    world: World,
) -> None:
    world.store.create_job(compress_job("a", PROFILE, (CUT,), 1.0))
    run(world)
    (family,) = family_jobs(world)
    world.store.update_job(replace(family, state=JobState.CANCELLED, message="cancelled by an operator"))
    run(world)
    assert world.compute.cancelled == [family.trials[0].task_id]
    job = job_of(world, "a")
    assert job.state is JobState.FAILED
    assert "cancelled by an operator" in job.message


def test_a_family_whose_weights_were_deleted_is_trained_again(world: World) -> None:
    teacher = teacher_of(WORKLOAD)
    task = FamilyTask(task_id="f", workload=WORKLOAD, teacher=teacher, settings=family_settings(WORKLOAD))
    world.store.create_job(compress_job("a", PROFILE, (CUT,), 1.0))
    run(world)
    world.compute.finish()
    run(world)
    world.compute.finish()
    run(world)
    known = known_family(world.store, WORKLOAD, teacher, lambda _digest: True)
    assert known == family_of(task)
    world.deleted_blobs.add(known.checkpoint_digest)
    world.store.create_job(compress_job("b", OTHER, (OTHER_CUT,), 2.0))
    run(world)
    assert [type(open_task) for open_task in world.compute.tasks.values()] == [FamilyTask]


def test_a_family_without_a_teacher_has_the_teacher_trained_first(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store.apply_workload(WORKLOAD, 1.0)
    world.store.apply_profile(PROFILE, 1.0)
    world.store.create_job(compress_job("a", PROFILE, (CUT,), 1.0))
    for _ in range(3):
        run(world)
        world.compute.finish()
    run(world)
    assert [task_id.partition("-")[0] for task_id in world.compute.ran] == ["teacher", "family", "student"]
    assert job_of(world, "a").state is JobState.SUCCEEDED


def test_a_workload_or_teacher_that_changes_under_a_family_ends_it_with_a_reason(world: World) -> None:
    for number, change in enumerate((replace(WORKLOAD, teacher="mlp"), None)):
        world.store.create_job(family_job(f"f{number}", WORKLOAD, teacher_of(WORKLOAD), 1.0))
        run(world, rounds=1)
        if change is not None:
            world.store.apply_workload(change, 2.0)
        else:
            world.store.save_teacher(teacher_of(WORKLOAD, version="2"), 2.0)
        run(world)
        job = job_of(world, f"f{number}")
        assert job.state is JobState.FAILED
        assert "changed meanwhile" in job.message
        world.store.apply_workload(WORKLOAD, 3.0)
    assert not [job for job in world.store.jobs() if job.kind is JobKind.TRAIN]


def test_identities_follow_what_the_family_depends_on() -> None:
    teacher = teacher_of(WORKLOAD)
    longer = replace(WORKLOAD, search=SearchBudget(family_epochs=9))
    retrained = teacher_of(WORKLOAD, version="2")
    keys = {
        family_key_of(WORKLOAD, teacher),
        family_key_of(longer, teacher),
        family_key_of(WORKLOAD, retrained),
    }
    assert len(keys) == 3
    ids = {student_task_id(work, teacher, PROFILE, CUT) for work in (WORKLOAD, longer)}
    assert len(ids) == 2
    ids = {student_task_id(work, teacher, PROFILE, PRUNED) for work in (WORKLOAD, longer)}
    assert len(ids) == 1
    how = FamilySettings(learning_rate=2 * WORKLOAD.training.learning_rate)
    assert family_key(teacher.checkpoint_digest, how) == family_key_of(WORKLOAD, teacher)


def test_a_finished_family_is_found_on_the_shelf_by_whoever_needs_it(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    shelf = ResultShelf(tmp_path / "results")
    task = FamilyTask(task_id="a", workload=WORKLOAD, teacher=teacher_of(WORKLOAD), settings=FamilySettings())
    result = replace(family_of(task), checkpoint_digest=registry.put(b"weights"))
    shelf.put(task, result)
    searched = replace(WORKLOAD, search=SearchBudget(max_trials=1))
    again = replace(task, task_id="b", workload=searched)
    assert run_key(again) == run_key(task)
    assert shelf.find(again, registry) == result
    assert shelf.find(replace(task, settings=FamilySettings(seed=1)), registry) is None


def test_weights_are_kept_by_name_and_count_only_while_the_registry_holds_them(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    weights = RegistryWeights(tmp_path / "weights", registry)
    assert weights.get("k") is None
    with weights.lock("k", lambda *_: None, "it is made"):
        weights.put("k", b"data")
    assert RegistryWeights(tmp_path / "weights", registry).get("k") == b"data"
    for blob in (tmp_path / "registry" / "sha256").rglob("*"):
        if blob.is_file():
            blob.write_bytes(b"rotten")
    assert weights.get("k") is None


def test_a_lock_on_weights_makes_the_second_wait_and_say_so(tmp_path: Path) -> None:
    import threading

    registry = Registry(str(tmp_path / "registry"))
    first, second = (RegistryWeights(tmp_path / "weights", registry) for _ in range(2))
    said, got = threading.Event(), threading.Event()

    def report(_fraction: float, text: str) -> None:
        if "waits: it is made for another student or profile" in text:
            said.set()

    def wait() -> None:
        with second.lock("k", report, "it is made"):
            got.set()

    with first.lock("k", lambda *_: None, "it is made"):
        thread = threading.Thread(target=wait)
        thread.start()
        assert said.wait(60)
        assert not got.is_set()
    thread.join(60)
    assert got.is_set()
