from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_fleet import NEW, OLD, TARGETS, Fleet, canaries, manifest, planned, reconciled, states, step

from cloud.domain import codec
from cloud.domain.devices import DeploymentState
from cloud.domain.reconcile import ProfileTarget
from cloud.domain.rollout import (
    GroupEvidence,
    Rollout,
    RolloutDeviceState,
    RolloutGroupState,
    RolloutState,
    abort,
    advance,
    pause,
    resume,
    running_group,
    supersede,
)


def test_canaries_come_first_and_the_rest_only_after_them():
    fleet = Fleet(4)
    rollout = step(planned(fleet, canary_share=0.25), fleet)
    assert fleet.runs(NEW) == set(canaries(rollout))
    assert len(canaries(rollout)) == 1
    fleet.answer(canaries(rollout)[0], DeploymentState.ACTIVE)
    rollout = step(rollout, fleet, 102.0)
    assert fleet.runs(NEW) == set(fleet.devices)
    assert rollout.state is RolloutState.RUNNING
    for device_id in fleet.devices:
        fleet.answer(device_id, DeploymentState.ACTIVE)
    rollout = step(rollout, fleet, 103.0)
    assert rollout.state is RolloutState.SUCCEEDED
    assert set(states(rollout).values()) == {RolloutDeviceState.SUCCEEDED}
    assert rollout.message == "4 of 4 devices serve it"


def test_canaries_are_connected_where_any_is():
    fleet = Fleet(0)
    for i in range(8):
        fleet.join(f"device-{i}", digest=OLD, connected=i == 5)
    assert canaries(planned(fleet, canary_share=0.1)) == ["device-5"]


@pytest.mark.parametrize(("share", "sizes"), [(0.0, [1, 3]), (0.5, [2, 2]), (1.0, [4]), (0.3, [2, 2])])
def test_the_share_of_canaries_is_at_least_one_device(share, sizes):
    rollout = planned(Fleet(4), canary_share=share)
    assert [len(group.devices) for group in rollout.groups] == sizes


def test_devices_of_another_profile_are_no_part_of_it():
    fleet = Fleet(2)
    fleet.join("stranger", digest=OLD, name="other")
    rollout = step(planned(fleet, canary_share=1.0), fleet)
    assert "stranger" not in states(rollout)
    assert fleet.runs(OLD) == {"stranger"}


def test_without_devices_it_succeeds_at_once():
    rollout = step(planned(Fleet(0), previous=""), Fleet(0))
    assert rollout.state is RolloutState.SUCCEEDED
    assert "those that join" in rollout.message


@pytest.mark.parametrize("answer", [DeploymentState.REJECTED, DeploymentState.ROLLED_BACK])
def test_a_canary_that_refuses_ends_it_and_the_previous_digest_comes_back(answer):
    fleet = Fleet(4)
    rollout = step(planned(fleet), fleet)
    refusing, other = canaries(rollout)
    generation = fleet.devices[refusing].deployment.generation
    fleet.answer(refusing, answer, "self-test-output")
    rollout = step(rollout, fleet, 102.0)
    assert rollout.state is RolloutState.FAILED
    assert "self-test-output" in rollout.message
    assert fleet.runs(OLD) == set(fleet.devices)
    assert fleet.devices[refusing].deployment.generation == generation + 1
    assert states(rollout)[other] is RolloutDeviceState.SUPERSEDED
    untouched = set(fleet.devices) - {refusing, other}
    assert all(fleet.devices[name].deployment.generation == 1 for name in untouched)


def test_a_first_rollout_that_fails_leaves_what_there_is():
    fleet = Fleet(2, digest="")
    rollout = step(planned(fleet, previous="", canary_share=1.0), fleet)
    fleet.answer("device-0", DeploymentState.REJECTED)
    rollout = step(rollout, fleet, 102.0)
    assert rollout.state is RolloutState.FAILED
    assert fleet.runs(NEW) == {"device-0", "device-1"}


def test_an_offline_device_does_not_block_for_ever_nor_fail_a_rollout_alone():
    fleet = Fleet(4)
    rollout = step(planned(fleet, canary_share=1.0, timeout_s=60.0), fleet)
    for i in range(3):
        fleet.answer(f"device-{i}", DeploymentState.ACTIVE)
    rollout = step(rollout, fleet, 150.0)
    assert rollout.state is RolloutState.RUNNING
    rollout = step(rollout, fleet, 165.0)
    assert rollout.state is RolloutState.SUCCEEDED
    assert states(rollout)["device-3"] is RolloutDeviceState.TIMED_OUT
    # Late, it changes nothing any more.
    fleet.answer("device-3", DeploymentState.ACTIVE)
    assert step(rollout, fleet, 170.0) == rollout


def test_devices_that_time_out_count_as_errors():
    fleet = Fleet(4)
    rollout = step(planned(fleet, canary_share=1.0, timeout_s=60.0, error_threshold=0.5), fleet)
    for i in range(2):
        fleet.answer(f"device-{i}", DeploymentState.ACTIVE)
    rollout = step(rollout, fleet, 165.0)
    assert rollout.state is RolloutState.FAILED
    assert "2 of 4" in rollout.message
    assert fleet.runs(OLD) == set(fleet.devices)


def test_a_lower_success_threshold_bears_a_failure():
    fleet = Fleet(4)
    rollout = step(planned(fleet, canary_share=1.0, success_threshold=0.7), fleet)
    for i in range(3):
        fleet.answer(f"device-{i}", DeploymentState.ACTIVE)
    fleet.answer("device-3", DeploymentState.ROLLED_BACK)
    rollout = step(rollout, fleet, 102.0)
    assert rollout.state is RolloutState.SUCCEEDED
    assert states(rollout)["device-3"] is RolloutDeviceState.FAILED


def evidence(p95_ms: float, *, previous: float = 6.0, objective: float = 5.0) -> GroupEvidence:
    return GroupEvidence(
        p95_ms=p95_ms,
        lower_p95_ms=p95_ms * 0.95,
        num_samples=1000 if p95_ms else 0,
        previous_p95_ms=previous,
        objective_p95_ms=objective,
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (evidence(4.0), RolloutState.SUCCEEDED),
        (evidence(5.5), RolloutState.SUCCEEDED),  # over the objective, but better than before
        (evidence(7.0), RolloutState.FAILED),
        (evidence(6.1), RolloutState.SUCCEEDED),  # not beyond doubt
        (evidence(7.0, objective=8.0), RolloutState.SUCCEEDED),
        (evidence(7.0, previous=0.0), RolloutState.SUCCEEDED),  # nothing to compare with
        (evidence(0.0), RolloutState.RUNNING),  # installed is not enough
        (None, RolloutState.SUCCEEDED),  # no objective
    ],
)
def test_a_group_succeeds_on_what_it_measures(found, expected):
    fleet = Fleet(2)
    rollout = step(planned(fleet, canary_share=1.0), fleet, 101.0, evidence(0.0))
    for device_id in fleet.devices:
        fleet.answer(device_id, DeploymentState.ACTIVE)
    rollout = step(rollout, fleet, 102.0, found)
    assert rollout.state is expected
    assert fleet.runs(OLD if expected is RolloutState.FAILED else NEW) == set(fleet.devices)


def test_without_traffic_the_wait_for_latency_ends():
    fleet = Fleet(2)
    rollout = step(planned(fleet, canary_share=1.0, timeout_s=60.0), fleet)
    for device_id in fleet.devices:
        fleet.answer(device_id, DeploymentState.ACTIVE)
    rollout = step(rollout, fleet, 110.0, evidence(0.0))
    assert "waiting for latency" in rollout.message
    assert step(rollout, fleet, 171.0, evidence(0.0)).state is RolloutState.SUCCEEDED


def test_the_next_group_is_not_judged_by_the_canaries_latency():
    fleet = Fleet(2)
    rollout = step(planned(fleet), fleet, 101.0, evidence(0.0))
    for device_id in fleet.devices:
        if fleet.devices[device_id].deployment.digest == NEW:
            fleet.answer(device_id, DeploymentState.ACTIVE)
    rollout, intents = advance(rollout, fleet.all(), 102.0, evidence=evidence(4.0))
    fleet.tell(intents)
    assert running_group(rollout).name == "rest"
    for device_id in fleet.devices:
        fleet.answer(device_id, DeploymentState.ACTIVE)
    rollout = step(rollout, fleet, 103.0, evidence(7.0))
    assert rollout.state is RolloutState.FAILED


def test_while_paused_no_group_starts_and_no_time_runs_out():
    fleet = Fleet(4)
    rollout = step(planned(fleet, timeout_s=60.0), fleet)
    rollout = pause(rollout, 102.0)
    fleet.answer(canaries(rollout)[0], DeploymentState.ACTIVE)
    rollout = step(rollout, fleet, 1000.0)
    assert rollout.state is RolloutState.PAUSED
    assert states(rollout)[canaries(rollout)[0]] is RolloutDeviceState.SUCCEEDED
    assert len(fleet.runs(NEW)) == 2
    rollout = step(resume(rollout, 1000.0), fleet, 1001.0)
    assert rollout.state is RolloutState.RUNNING
    assert RolloutDeviceState.TIMED_OUT not in states(rollout).values()


def test_an_aborted_rollout_brings_the_previous_digest_back():
    fleet = Fleet(4)
    rollout = step(planned(fleet), fleet)
    rollout = abort(rollout, 102.0)
    assert abort(rollout, 103.0) == rollout
    step(rollout, fleet, 103.0)
    assert fleet.runs(OLD) == set(fleet.devices)


def test_a_superseded_rollout_brings_nothing_back():
    fleet = Fleet(4)
    rollout = supersede(step(planned(fleet), fleet), 102.0, by_rollout_id="r2")
    assert rollout.state is RolloutState.SUPERSEDED
    step(rollout, fleet, 103.0)
    assert len(fleet.runs(NEW)) == 2


@pytest.mark.parametrize("change", [pause, resume, abort])
def test_what_has_ended_cannot_be_changed(change):
    rollout = step(planned(Fleet(0)), Fleet(0))
    with pytest.raises(ValueError, match="has ended"):
        change(rollout, 102.0)


def test_a_device_that_leaves_does_not_hold_the_others_up():
    fleet = Fleet(2)
    rollout = step(planned(fleet, canary_share=1.0), fleet)
    fleet.answer("device-0", DeploymentState.ACTIVE)
    fleet.devices["device-1"] = replace(fleet.devices["device-1"], profile="other")
    rollout = step(rollout, fleet, 102.0)
    assert rollout.state is RolloutState.SUCCEEDED
    assert states(rollout)["device-1"] is RolloutDeviceState.REMOVED


def test_a_rollout_survives_json():
    fleet = Fleet(3)
    rollout = step(planned(fleet), fleet)
    assert codec.from_json(Rollout, codec.to_json(rollout)) == rollout


# Reconciling.


def test_a_late_joiner_gets_the_profiles_digest():
    fleet = Fleet(2)
    fleet.join("late")
    (intent,) = reconciled(fleet)
    assert (intent.device_id, intent.digest, intent.manifest_digest) == ("late", OLD, manifest(OLD))


def test_a_device_that_changed_profile_gets_the_new_ones_digest():
    fleet = Fleet(2)
    targets = {**TARGETS, "other": ProfileTarget(digest=NEW, manifest_digest=manifest(NEW))}
    fleet.devices["device-0"] = replace(fleet.devices["device-0"], profile="other")
    (intent,) = reconciled(fleet, targets=targets)
    assert (intent.device_id, intent.profile, intent.digest) == ("device-0", "other", NEW)


@pytest.mark.parametrize("name", ["", "gone", "other"])
def test_a_device_with_nothing_to_run_keeps_what_it_has(name):
    fleet = Fleet(1)
    fleet.devices["device-0"] = replace(fleet.devices["device-0"], profile=name)
    assert reconciled(fleet) == []
    assert fleet.runs(OLD) == {"device-0"}


def test_a_digest_that_was_refused_is_not_said_again():
    fleet = Fleet(1)
    fleet.answer("device-0", DeploymentState.REJECTED)
    assert reconciled(fleet) == []


def test_only_started_groups_run_the_rollouts_digest():
    fleet = Fleet(4)
    rollout, _ = advance(planned(fleet), fleet.all(), 101.0)
    fleet.join("late")
    intents = reconciled(fleet, [rollout])
    assert {i.device_id for i in intents if i.digest == NEW} == set(canaries(rollout))
    assert {i.device_id for i in intents if i.digest == OLD} == {"late"}
    assert all(i.rollout_id == "r1" and i.decision_id == "d1" for i in intents if i.digest == NEW)


def test_after_a_failed_rollout_advance_and_reconcile_agree():
    fleet = Fleet(4)
    rollout = step(planned(fleet), fleet)
    fleet.answer(canaries(rollout)[0], DeploymentState.REJECTED)
    rollout = step(rollout, fleet, 102.0)
    assert reconciled(fleet, [rollout]) == []


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_every_rollout_ends_and_each_device_ends_once(seed, num_devices, canary, success, error):
    rng = random.Random(seed)
    fleet = Fleet(num_devices)
    rollout = planned(
        fleet, canary_share=canary, success_threshold=success, error_threshold=error, timeout_s=50.0
    )
    targets = dict(TARGETS)
    ended: dict[str, RolloutDeviceState] = {}
    now_s = 100.0
    for _ in range(200):
        now_s += rng.choice([1.0, 20.0])
        for device in fleet.all():
            if device.deployment and not device.deployment.state.terminal and rng.random() < 0.3:
                fleet.answer(
                    device.device_id,
                    rng.choice(
                        [
                            DeploymentState.FETCHING,
                            DeploymentState.TRIAL,
                            DeploymentState.ACTIVE,
                            DeploymentState.ACTIVE,
                            DeploymentState.ROLLED_BACK,
                        ]
                    ),
                )
        if rng.random() < 0.05:
            fleet.join(f"late-{len(fleet.devices)}")
        if not rollout.state.is_terminal and rng.random() < 0.05:
            rollout = rng.choice([pause, resume])(rollout, now_s)
        found = None if rng.random() < 0.3 else evidence(rng.choice([0.0, 4.0, 7.0]))
        rollout = step(rollout, fleet, now_s, found)
        for device_id, state in states(rollout).items():
            if state.is_terminal:
                assert ended.setdefault(device_id, state) is state
        if rollout.state is RolloutState.SUCCEEDED:
            targets["gateway"] = ProfileTarget(digest=NEW, manifest_digest=manifest(NEW), rollout_id="r1")
        reconciled(fleet, [rollout], targets)
        if rollout.state is RolloutState.PAUSED and rng.random() < 0.5:
            rollout = resume(rollout, now_s)
    assert rollout.state in (RolloutState.SUCCEEDED, RolloutState.FAILED)
    assert all(state.is_terminal for state in states(rollout).values())
    wanted = targets["gateway"].digest
    assert fleet.runs(wanted) == set(fleet.devices)
    assert all(group.state is not RolloutGroupState.RUNNING for group in rollout.groups) or (
        rollout.state is RolloutState.FAILED
    )
