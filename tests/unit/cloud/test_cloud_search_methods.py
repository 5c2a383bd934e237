"""A search as a job, with real students: what binds makes it reach for other methods, and it says why."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compute_here import Here
from control_plane_fakes import SETTINGS, World

from cloud.cli.columns import spec_text
from cloud.cli.jobs import parse_spec
from cloud.compression.build import build_student, finish_teacher
from cloud.domain.jobs import JobState
from cloud.domain.methods import Method
from cloud.domain.profiles import Constraints, DeviceProfile, MatchRule
from cloud.domain.specs import CompressionSpec, Precision, Road
from cloud.domain.tasks import StudentTask
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload
from cloud.jobs.tasks import Context
from cloud.registry import Registry
from cloud.services.operations import Operations
from cloud.services.queries import Queries
from cloud.services.trade_off import trade_off
from cloud.training.teacher import TeacherTrainer
from edgeloop.errors import ConfigError
from edgeloop.v1 import control_service_pb2 as pb

torch.set_num_threads(1)
WORKLOAD = Workload(
    name="digits",
    dataset="digits",
    dataset_options={"image_size": 8},
    teacher_options={"base_width": 16, "num_stages": 2},
    training=TrainingBudget(num_epochs=4, batch_size=32, learning_rate=5e-3),
    search=SearchBudget(max_trials=3, num_epochs=2, width_ratios=(0.5,)),
)
PROFILE = DeviceProfile(name="tiny-flash", workload="digits", match=MatchRule())
PLAIN = CompressionSpec(width_ratio=0.5, num_epochs=2, precision=Precision.INT8)


@pytest.mark.timeout(420)  # four real students, 15 CPU-seconds: neighbours may take most of a core
def test_where_bytes_bind_the_search_finds_a_student_that_plain_int8_is_not_and_says_why(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    registry = Registry(str(tmp_path / "registry"))
    trainer = TeacherTrainer(WORKLOAD, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    teacher = finish_teacher(WORKLOAD, trainer, registry=registry)
    task = StudentTask(task_id="plain", workload=WORKLOAD, teacher=teacher, profile=PROFILE, spec=PLAIN)
    plain = build_student(
        task, registry=registry, report=lambda *_: None, dataset=trainer.dataset, device="cpu"
    )
    limit = int(plain.metrics.artifact_bytes * 0.8)
    world.store.apply_workload(WORKLOAD, 1.0)
    world.store.apply_profile(replace(PROFILE, constraints=Constraints(artifact_bytes=limit)), 1.0)
    world.store.save_teacher(teacher, 1.0)
    world.runner.attach(Here(Context(work_dir=str(tmp_path), registry_url=registry.url)))
    queries = Queries(world.store, settings=SETTINGS, now_s=time.time)
    desk = Operations(world.store, queries, settings=SETTINGS, now_s=time.time, poke=lambda: None)

    job_id = desk.compress(pb.CompressStudentsRequest(profile="tiny-flash")).job.job_id
    for _ in range(12):
        world.runner.step()
    job = world.store.job(job_id)
    assert job is not None
    assert job.state is JobState.SUCCEEDED, job.message
    assert "failed" not in job.message

    built = {candidate.digest: candidate for candidate in world.store.candidates("tiny-flash", "digits")}
    assert len(built) == WORKLOAD.search.max_trials
    packed = [c for c in built.values() if c.spec.quantisation or c.spec.sparsity]
    assert packed
    for candidate in packed:
        assert candidate.proposed_reason.startswith("artifact bytes bind: ")
        assert f"of at most {limit}" in candidate.proposed_reason
        assert candidate.metrics.executable_bytes > candidate.metrics.artifact_bytes
    others = [c for c in built.values() if c not in packed]
    assert all("first of the search" in c.proposed_reason for c in others)
    assert all(c.metrics.artifact_bytes > limit for c in others)

    answer = trade_off(world.store, queries, SETTINGS, "tiny-flash")
    (chosen,) = (point for point in answer.points if point.chosen)
    assert chosen.artifact_bytes <= limit
    assert chosen.proposed_reason == built[chosen.digest].proposed_reason
    spec = json.loads(chosen.spec_json)
    assert spec.get("quantisation") or spec.get("sparsity")
    assert chosen.accuracy > 0.5


@pytest.mark.timeout(420)  # a teacher and three real students, 10 CPU-seconds
def test_where_latency_binds_one_without_shortcuts_and_a_shorter_one_follow_and_say_why(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    registry = Registry(str(tmp_path / "registry"))
    workload = replace(
        WORKLOAD,
        training=replace(WORKLOAD.training, num_epochs=2),
        search=SearchBudget(
            max_trials=2, num_epochs=1, width_ratios=(0.5,), methods=(Method.SHORTCUTS, Method.DEPTH)
        ),
    )
    trainer = TeacherTrainer(workload, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    teacher = finish_teacher(workload, trainer, registry=registry)
    assert teacher.num_branches == teacher.num_shortcuts == 2
    world.store.apply_workload(workload, 1.0)
    world.store.apply_profile(replace(PROFILE, constraints=Constraints(latency_p95_ms=1e-6)), 1.0)
    world.store.save_teacher(teacher, 1.0)
    world.runner.attach(Here(Context(work_dir=str(tmp_path), registry_url=registry.url)))
    queries = Queries(world.store, settings=SETTINGS, now_s=time.time)
    desk = Operations(world.store, queries, settings=SETTINGS, now_s=time.time, poke=lambda: None)
    for max_trials in (0, 1):  # the workload's; and one more in another search
        request = pb.CompressStudentsRequest(profile="tiny-flash", max_trials=max_trials)
        job_id = desk.compress(request).job.job_id
        for _ in range(10):
            world.runner.step()
        job = world.store.job(job_id)
        assert job is not None
        assert job.state is JobState.SUCCEEDED, job.message
        assert "failed" not in job.message

    made = world.store.candidates("tiny-flash", "digits")
    (chain,) = (c for c in made if c.spec.shortcuts is False)
    assert (chain.spec.road, chain.spec.num_epochs, chain.spec.depth_ratio) == (Road.PRUNED, 1, None)
    built = {c.spec.depth_ratio: c for c in made if c is not chain}
    assert built.keys() == {None, 0.5}
    assert chain.proposed_reason.startswith(f"latency binds: {built[None].digest[:12]} takes ")
    assert "without its 2 shortcuts a network can be wider" in chain.proposed_reason
    assert chain.spec.width_ratio == 0.5, "no width would do, and none narrower was built"
    assert chain.metrics.num_parameters < built[None].metrics.num_parameters, "a projection less"
    assert built[0.5].spec.width_ratio == built[None].spec.width_ratio == 0.5
    assert built[0.5].metrics.num_parameters < built[None].metrics.num_parameters
    assert built[0.5].proposed_reason.startswith(f"latency binds: {built[None].digest[:12]} takes ")
    assert "1 of 2 branches" in built[0.5].proposed_reason
    (point,) = (p for p in trade_off(world.store, queries, SETTINGS, "tiny-flash").points
                if json.loads(p.spec_json).get("depth_ratio"))  # fmt: skip
    assert point.proposed_reason == built[0.5].proposed_reason
    assert spec_text(point.spec_json) == "pruned x0.5 deep 0.5"


def test_a_depth_is_asked_for_on_the_command_line() -> None:
    assert parse_spec("road=pruned,depth_ratio=0.5,width_ratio=0.25") == CompressionSpec(
        depth_ratio=0.5, width_ratio=0.25
    )
    with pytest.raises(ConfigError, match=r"depth_ratio is 2: it must be a number from 0.01 to 1"):
        parse_spec("depth_ratio=2")
