"""What people ask for: applied as a whole, answered twice the same, refused with what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_plane_fakes import PROFILE, WORKLOAD, build, prepared, teacher_of
from operations_desk import Changes, Desk, profile

from cloud.compute_host import COMPUTE_KEY
from cloud.domain.jobs import JobKind, JobState
from cloud.domain.profiles import Constraints
from cloud.domain.specs import CompressionSpec
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.v1 import control_service_pb2 as pb


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


DIGITS = {"kind": "Workload", "name": "digits", "dataset": "digits"}


def fleet(*profiles: dict[str, Any], workload: str = "digits") -> dict[str, Any]:
    return {"kind": "Fleet", "workload": workload, "profiles": list(profiles)}


def test_documents_are_applied_in_any_order_and_again_without_a_change(desk: Desk) -> None:
    first = desk.apply(fleet(profile("gateway")), DIGITS)
    assert {r.change for r in first.values()} == {Changes.CHANGE_CREATED}
    assert "edgeloop train digits" in first["Workload/digits"].note
    again = desk.apply(fleet(profile("gateway")), DIGITS)
    assert {r.change for r in again.values()} == {Changes.CHANGE_UNCHANGED}


def test_one_wrong_document_and_nothing_is_applied(desk: Desk) -> None:
    with pytest.raises(ConfigError) as caught:
        desk.apply(
            DIGITS, fleet(profile("gateway", num_threads=0)), {**DIGITS, "name": "other", "teecher": "x"}
        )
    assert "1.yaml: profiles[0].num_threads" in caught.value.message
    assert "2.yaml: teecher" in caught.value.message
    assert desk.world.store.workloads() == []


def test_an_unknown_workload_undoes_what_stood_before_it(desk: Desk) -> None:
    with pytest.raises(ConfigError, match="'nowhere' is not known"):
        desk.apply(DIGITS, fleet(profile("gateway"), workload="nowhere"))
    assert desk.world.store.workloads() == []


def test_a_dry_run_tells_the_changes_and_makes_none(desk: Desk) -> None:
    told = desk.apply(DIGITS, fleet(profile("gateway")), validate_only=True)
    assert told["Profile/gateway"].change == Changes.CHANGE_CREATED
    assert desk.world.store.workloads() == []
    assert desk.world.store.profiles() == []


def test_a_profile_that_leaves_the_document_leaves_the_fleet(desk: Desk) -> None:
    desk.apply(DIGITS, fleet(profile("a"), profile("b")))
    told = desk.apply(fleet(profile("a")))
    assert told["Profile/b"].change == Changes.CHANGE_DELETED
    assert [item.name for item in desk.world.store.profiles()] == ["a"]


def test_a_profile_name_belongs_to_one_workload(desk: Desk) -> None:
    desk.apply(DIGITS, {**DIGITS, "name": "other"}, fleet(profile("a")))
    with pytest.raises(ConfigError, match="belongs to workload digits"):
        desk.apply(fleet(profile("a"), workload="other"))


def test_devices_follow_the_profiles_at_once(desk: Desk) -> None:
    desk.apply(DIGITS)
    desk.world.register("gw-1", profile=None)
    told = desk.apply(fleet(profile("gateway")))
    assert told["Profile/gateway"].note == ""
    device = desk.world.store.device("gw-1")
    assert device is not None
    assert device.profile == "gateway"


def test_a_profile_that_no_device_matches_says_which_came_nearest(desk: Desk) -> None:
    desk.world.register("gw-1", profile=None)
    told = desk.apply(DIGITS, fleet(profile("large")))
    note = told["Profile/large"].note
    assert "nearest is gw-1" in note
    assert "label class is gateway, not large" in note


def test_constraints_that_nobody_meets_say_which_binds_and_the_nearest(desk: Desk) -> None:
    desk.apply(DIGITS, fleet(profile("gateway")))
    build(desk.world.store, PROFILE, 0.5, 0.25)
    told = desk.apply(fleet(profile("gateway", constraints={"min_accuracy": 0.95})))
    assert "accuracy floor" in told["Profile/gateway"].note
    assert "floor 0.94" in told["Profile/gateway"].note
    listed = desk.queries.profiles(pb.ListProfilesRequest()).profiles[0]
    assert "accuracy floor" in listed.message


def test_a_profile_that_was_given_up_says_once_what_binds(desk: Desk) -> None:
    demanding = replace(PROFILE, constraints=Constraints(latency_p95_ms=10.0, min_accuracy=0.99))
    prepared(desk.world, profile=demanding)
    build(desk.world.store, demanding, 0.5, 0.25, 0.125)
    for _ in range(6):
        desk.world.step()
        desk.world.compute.finish()
    (listed,) = desk.queries.profiles(pb.ListProfilesRequest()).profiles
    assert listed.verdict == "infeasible"
    assert listed.message.count("binding") == 1


def test_students_of_a_teacher_that_is_gone_ship_no_more_and_are_replaced(desk: Desk) -> None:
    world = desk.world
    world.register("gw-1")
    prepared(world)
    (old,) = build(world.store, PROFILE, 0.3)
    for _ in range(4):
        world.step()
        world.obey(["gw-1"])
        world.measure(["gw-1"], 8.0, num_windows=2)
    assert world.store.current_digest("gateway") == old.digest
    running = desk.operations.compress(pb.CompressStudentsRequest(profile="gateway")).job
    world.step()

    told = desk.apply({**DIGITS, "dataset_options": {"image_size": 12}})
    assert "1 students of the teacher that it had may not ship any more" in told["Workload/digits"].note
    assert desk.operations.job(running.job_id).state is JobState.FAILED
    world.compute.finish()  # what ran for the old teacher comes too late
    world.step()
    assert [c.digest for c in world.store.candidates("gateway")] == [old.digest]
    with pytest.raises(RejectedError, match="may not ship: was built from teacher"):
        desk.operations.start_rollout(pb.StartRolloutRequest(profile="gateway", digest=old.digest))
    (listed,) = desk.queries.profiles(pb.ListProfilesRequest()).profiles
    assert "what serves was built from teacher" in listed.message
    assert world.shipped["gw-1"].digest == old.digest  # better than nothing, until there is another

    workload = world.store.workload("digits")
    assert workload is not None
    world.store.save_teacher(teacher_of(workload), world.now_s)
    for _ in range(8):
        world.step()
        world.compute.finish()
        world.obey(["gw-1"])
        world.measure(["gw-1"], 8.0, num_windows=2)
    current = world.store.current_digest("gateway")
    assert current not in ("", old.digest)
    assert world.shipped["gw-1"].digest == current


def test_students_come_back_with_their_teacher(desk: Desk) -> None:
    prepared(desk.world)
    good, bad = build(desk.world.store, PROFILE, 0.5, 0.25)
    desk.world.store.reject_candidate(bad.digest, "gateway", "is slower than its parent")
    before = desk.world.store.candidates("gateway")
    desk.apply({**DIGITS, "dataset_options": {"image_size": 12}})
    assert all(candidate.rejected_reason for candidate in desk.world.store.candidates("gateway"))
    told = desk.apply(DIGITS)
    assert told["Workload/digits"].note == ""
    assert desk.world.store.candidates("gateway") == before
    assert good.digest in {candidate.digest for candidate in before}


def test_training_is_started_once(desk: Desk) -> None:
    desk.world.store.apply_workload(WORKLOAD, 1.0)
    first = desk.operations.train(pb.TrainTeacherRequest(workload="digits")).job
    again = desk.operations.train(pb.TrainTeacherRequest(workload="digits")).job
    assert first.job_id == again.job_id
    assert desk.num_pokes == 2
    desk.world.step()
    desk.world.compute.finish()
    desk.world.step()
    finished = desk.operations.train(pb.TrainTeacherRequest(workload="digits")).job
    assert (finished.job_id, finished.state) == (first.job_id, pb.JOB_STATE_SUCCEEDED)
    forced = desk.operations.train(pb.TrainTeacherRequest(workload="digits", force=True)).job
    assert forced.job_id != first.job_id


def test_compression_takes_specs_or_has_them_proposed(desk: Desk) -> None:
    prepared(desk.world)
    spec = CompressionSpec(width_ratio=0.3)
    named = desk.operations.compress(
        pb.CompressStudentsRequest(profile="gateway", spec_json=[spec.to_json(), spec.to_json()])
    ).job
    assert named.num_trials == 1
    # Without specs any search under way for the profile will do; what was named is none, nothing follows it.
    proposed = desk.operations.compress(pb.CompressStudentsRequest(profile="gateway", max_trials=2)).job
    assert proposed.job_id != named.job_id
    assert proposed.num_trials == 2
    again = desk.operations.compress(pb.CompressStudentsRequest(profile="gateway")).job
    assert again.job_id == proposed.job_id
    other = desk.operations.compress(
        pb.CompressStudentsRequest(profile="gateway", spec_json=['{"width_ratio": 0.9}'])
    ).job
    assert other.job_id not in (named.job_id, proposed.job_id)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "JSON object"),
        ("{", "spec 1"),
        ('{"width": 1}', "unknown key 'width'"),
        ('{"width_ratio": 2}', "width_ratio"),
    ],
)
def test_a_wrong_spec_names_the_field(desk: Desk, text: str, said: str) -> None:
    prepared(desk.world)
    with pytest.raises(ConfigError, match=said):
        desk.operations.compress(pb.CompressStudentsRequest(profile="gateway", spec_json=[text]))
    assert desk.world.store.jobs() == []


def test_cancelling_ends_a_job_and_cancelling_again_is_no_error(desk: Desk) -> None:
    prepared(desk.world)
    job = desk.operations.compress(pb.CompressStudentsRequest(profile="gateway")).job
    for _ in range(2):
        answer = desk.operations.cancel(pb.CancelJobRequest(job_id=job.job_id)).job
        assert answer.state == pb.JOB_STATE_CANCELLED
    with pytest.raises(RejectedError, match=job.job_id):
        desk.operations.cancel(pb.CancelJobRequest(job_id="job-0"))


def test_lists_join_what_belongs_together(desk: Desk) -> None:
    prepared(desk.world)
    desk.world.register("gw-1")
    build(desk.world.store, PROFILE, 0.5)
    desk.world.step()
    desk.world.obey(["gw-1"])
    desk.world.measure(["gw-1"], 8.0, num_windows=3)
    desk.world.step()
    (device,) = desk.queries.devices(pb.ListDevicesRequest()).devices
    assert (device.generation, device.desired_generation) == (1, 1)
    assert device.serving_digest == device.desired_digest
    assert device.p95_ms == pytest.approx(8.0, rel=0.02)
    (workload,) = desk.queries.workloads(pb.ListWorkloadsRequest()).workloads
    assert workload.teacher.accuracy == teacher_of(WORKLOAD).accuracy
    (candidate,) = desk.queries.candidates(pb.ListCandidatesRequest(profile="gateway")).candidates
    assert candidate.on_front
    assert candidate.predicted_p95_ms == pytest.approx(8.0, rel=0.02)
    measurements = desk.queries.measurements(pb.ListMeasurementsRequest(device_id="gw-1")).measurements
    assert [m.num_samples for m in measurements] == [100, 100, 100]
    (listed,) = desk.queries.profiles(pb.ListProfilesRequest()).profiles
    assert (listed.num_devices, listed.constraints.latency_p95_ms) == (1, 10.0)
    for wrong in (
        lambda: desk.queries.devices(pb.ListDevicesRequest(profile="nope")),
        lambda: desk.queries.candidates(pb.ListCandidatesRequest(workload="nope")),
        lambda: desk.queries.measurements(pb.ListMeasurementsRequest(device_id="nope")),
    ):
        with pytest.raises(RejectedError, match="known are"):
            wrong()


def test_a_job_of_a_removed_profile_ends_with_the_reason(desk: Desk) -> None:
    prepared(desk.world)
    job = desk.operations.compress(pb.CompressStudentsRequest(profile="gateway")).job
    desk.world.store.remove_profile("gateway")
    desk.world.step()
    ended = desk.operations.job(job.job_id)
    assert (ended.state, ended.kind) == (JobState.FAILED, JobKind.COMPRESS)
    assert "removed" in ended.message


def test_where_nothing_runs_jobs_that_is_said_at_once_and_none_is_left_behind(desk: Desk) -> None:
    world = desk.world
    prepared(world)
    done = desk.operations.train(pb.TrainTeacherRequest(workload="digits", force=True)).job
    world.runner.step()
    world.compute.finish()
    world.runner.step()
    world.store.set_meta(COMPUTE_KEY, "none")
    for ask in (
        lambda: desk.operations.train(pb.TrainTeacherRequest(workload="digits", force=True)),
        lambda: desk.operations.compress(pb.CompressStudentsRequest(profile="gateway")),
    ):
        with pytest.raises(ConfigError, match="--compute none") as caught:
            ask()
        assert caught.value.code == "compute-none"
    assert [job.job_id for job in world.store.jobs()] == [done.job_id]
    # What is there already needs nobody to run it.
    assert desk.operations.train(pb.TrainTeacherRequest(workload="digits")).job.job_id == done.job_id
    world.store.set_meta(COMPUTE_KEY, "ray")
    waiting = desk.operations.compress(pb.CompressStudentsRequest(profile="gateway")).job
    world.store.set_meta(COMPUTE_KEY, "none")
    with pytest.raises(ConfigError):
        desk.operations.compress(pb.CompressStudentsRequest(profile="gateway"))
    assert desk.operations.job(waiting.job_id).state is JobState.PENDING
