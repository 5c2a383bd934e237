"""The loop in virtual time: measured, decided, built, rolled out, and never twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_plane_fakes import PROFILE, WORKLOAD, World, build, digest_of, prepared
from controller_scene import DEVICES, current_ms, live, measure, serve_width

from cloud import controller as controller_module
from cloud.controller import PAUSED_KEY
from cloud.domain.decisions import Action
from cloud.domain.devices import DeploymentState
from cloud.domain.profiles import RolloutPlan
from cloud.domain.rollout import RolloutState, abort


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    prepared(world)
    for device_id in DEVICES:
        world.register(device_id)
    return world


def test_a_profile_that_misses_gets_a_smaller_student_and_then_rests(world: World) -> None:
    first = serve_width(world, 1.0)
    live(world, 60)
    assert world.store.current_digest(PROFILE.name) != first
    assert current_ms(world) <= 10.0
    assert {device.serving_digest for device in world.store.devices()} == {
        world.store.current_digest(PROFILE.name)
    }
    before = (world.store.current_digest(PROFILE.name), world.store.jobs(), dict(world.generations))
    live(world, 60)
    assert (world.store.current_digest(PROFILE.name), world.store.jobs(), dict(world.generations)) == before


def test_a_profile_with_slack_gets_a_more_accurate_student(world: World) -> None:
    first = serve_width(world, 0.125)
    live(world, 90)
    chosen = world.store.candidate(world.store.current_digest(PROFILE.name), PROFILE.name)
    old = world.store.candidate(first, PROFILE.name)
    assert chosen is not None
    assert old is not None
    assert chosen.metrics.accuracy > old.metrics.accuracy
    assert current_ms(world) <= 10.0


def test_a_profile_that_fits_is_left_alone(world: World) -> None:
    first = serve_width(world, 0.55)
    live(world, 60)
    assert world.store.current_digest(PROFILE.name) == first
    assert world.store.jobs() == []
    assert world.generations == {"gw-1": [1], "gw-2": [1]}


def test_a_profile_without_teacher_waits_and_says_how_to_get_one(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store.apply_workload(WORKLOAD, 1.0)
    world.store.apply_profile(PROFILE, 1.0)
    world.step()
    (entry,) = world.store.decisions(PROFILE.name)
    assert entry.decision.action is Action.HOLD
    assert "edgeloop train digits" in entry.decision.reason
    assert world.store.jobs() == []


def test_a_new_profile_is_built_for_and_rolled_out_by_itself(world: World) -> None:
    live(world, 40)
    assert world.store.current_digest(PROFILE.name)
    assert {device.serving_digest for device in world.store.devices()} == {
        world.store.current_digest(PROFILE.name)
    }


def test_what_the_controller_had_built_says_which_decision_asked_for_it_and_why(world: World) -> None:
    live(world, 40)
    decisions = {entry.decision_id: entry.decision for entry in world.store.decisions(PROFILE.name)}
    built = world.store.candidates(PROFILE.name)
    assert built
    for candidate in built:
        decision_id, _, why = candidate.proposed_reason.partition(": ")
        assert why == decisions[decision_id].reason


def test_nothing_is_started_while_a_rollout_or_a_job_is_under_way(world: World) -> None:
    serve_width(world, 1.0)
    jobs: list[int] = []
    rollouts: list[int] = []
    live(
        world,
        60,
        between=lambda: (
            jobs.append(len(world.store.jobs(unfinished_only=True))),
            rollouts.append(len(world.store.rollouts(unfinished_only=True))),
        )[0],
    )
    assert max(jobs) == max(rollouts) == 1
    assert max(a + b for a, b in zip(jobs, rollouts, strict=True)) == 1


def test_while_paused_it_measures_and_explains_but_starts_nothing(world: World) -> None:
    world.store.set_meta(PAUSED_KEY, "1")
    first = serve_width(world, 1.0)
    live(world, 30)
    assert (world.store.jobs(), world.store.rollouts()) == ([], [])
    assert world.store.current_digest(PROFILE.name) == first
    newest = world.store.decisions(PROFILE.name)[0].decision
    assert newest.measured_p95_ms == pytest.approx(16.0, rel=0.02)
    assert "edgeloop resume" in newest.reason
    world.store.set_meta(PAUSED_KEY, "")
    live(world, 40)
    assert world.store.current_digest(PROFILE.name) != first


def test_a_paused_controller_freezes_its_own_rollouts(world: World) -> None:
    profile = replace(PROFILE, rollout=RolloutPlan(canary_share=0.5))
    world.store.apply_profile(profile, 1.0)
    build(world.store, profile, 0.5)
    world.step()
    (rollout,) = world.store.rollouts()
    assert rollout.decision_id
    world.store.set_meta(PAUSED_KEY, "1")
    for _ in range(20):
        world.step()
        world.obey(DEVICES)
    (rollout,) = world.store.rollouts()
    assert rollout.state is RolloutState.RUNNING
    assert len(world.shipped) == 1


def test_an_artifact_that_devices_reject_is_not_spread_further(world: World) -> None:
    profile = replace(PROFILE, rollout=RolloutPlan(canary_share=0.5))
    world.store.apply_profile(profile, 1.0)
    first = serve_width(world, 1.0)
    for _ in range(12):
        world.step()
        world.compute.finish()
        served = {d.device_id: d.serving_digest for d in world.store.devices()}
        asked = {i: world.opened(s.payload, i).digest for i, s in world.shipped.items()}
        for device_id in DEVICES:
            good = asked.get(device_id) == first
            world.obey([device_id], DeploymentState.ACTIVE if good else DeploymentState.REJECTED)
        assert sum(digest != first for digest in asked.values()) <= 1
        assert set(served.values()) <= {first, ""}
        world.measure(DEVICES, 16.0)
    assert RolloutState.FAILED in {rollout.state for rollout in world.store.rollouts()}


def test_an_error_in_one_profile_is_said_once_and_stops_no_other(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(PROFILE, name="another")
    world.store.apply_profile(other, 1.0)
    build(world.store, PROFILE, 0.5)
    candidates = world.store.candidates

    def broken(profile: str | None = None, workload: str | None = None) -> Any:
        if profile == "another":
            raise RuntimeError("rotten row")
        return candidates(profile, workload)

    monkeypatch.setattr(world.store, "candidates", broken)
    live(world, 10)
    assert world.store.current_digest(PROFILE.name)
    said = [record for record in caplog.records if "rotten row" in record.getMessage()]
    assert len(said) == 1
    assert "another" in said[0].getMessage()


def test_a_profile_name_of_full_length_gives_ids_that_can_travel(world: World) -> None:
    profile = replace(PROFILE, name="g" * 63)
    world.store.apply_profile(profile, 1.0)
    world.register("gw-9", profile)
    build(world.store, profile, 0.5)
    world.step()
    assert "gw-9" in world.shipped


def test_a_rollout_that_was_aborted_while_it_was_judged_stays_aborted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(world.store, PROFILE, 0.5)
    world.step()
    (rollout,) = world.store.rollouts(unfinished_only=True)
    plain = controller_module.group_evidence

    def aborted_meanwhile(*args: Any, **kwargs: Any) -> Any:
        world.store.save_rollout(abort(rollout, world.now_s), world.now_s)
        return plain(*args, **kwargs)

    monkeypatch.setattr(controller_module, "group_evidence", aborted_meanwhile)
    world.obey(DEVICES)
    measure(world)
    world.step()
    found = world.store.rollout(rollout.rollout_id)
    assert found is not None
    assert found.state is RolloutState.ABORTED


def test_a_choice_that_is_no_candidate_changes_nothing(world: World) -> None:
    world.store.set_current(
        PROFILE.name, digest_of("gone"), manifest_digest=digest_of("m"), rollout_id="", now_s=1.0
    )
    for _ in range(5):
        world.step()
    assert world.store.rollouts() == []
