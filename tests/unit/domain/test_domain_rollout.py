from __future__ import annotations

import random
from dataclasses import replace

import pytest
from domain_values import digest_of, profile
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.domain import codec
from cloud.domain.devices import Deployment, DeploymentState
from cloud.domain.profiles import GroupPlan, RolloutPlan
from cloud.domain.reconcile import ProfileTarget, reconcile
from cloud.domain.rollout import (
    FleetDevice,
    GroupEvidence,
    Rollout,
    RolloutDeviceState,
    RolloutGroupState,
    RolloutState,
    abort,
    advance,
    pause,
    plan_rollout,
    resume,
    running_group,
    supersede,
)
from cloud.domain.windows import MaintenanceWindow, opening

OLD, NEW = digest_of("old"), digest_of("new")
PROFILE = profile()


def manifest(digest: str) -> str:
    return digest_of(f"manifest {digest}")


class Fleet:
    """Devices that are told things; a test says what they answer."""

    def __init__(self, num_devices: int = 4, *, digest: str = OLD) -> None:
        self.devices: dict[str, FleetDevice] = {}
        for i in range(num_devices):
            self.join(f"device-{i}", digest=digest)

    def join(
        self, device_id: str, *, digest: str = "", connected: bool = True, name: str = "gateway"
    ) -> None:
        told = None
        if digest:
            told = Deployment(
                device_id=device_id,
                workload="digits",
                profile=name,
                generation=1,
                digest=digest,
                manifest_digest=manifest(digest),
                rollout_id="r0",
                state=DeploymentState.ACTIVE,
            )
        self.devices[device_id] = FleetDevice(
            device_id=device_id, profile=name, connected=connected, deployment=told
        )

    def tell(self, intents) -> None:
        for intent in intents:
            device = self.devices[intent.device_id]
            generation = (device.deployment.generation if device.deployment else 0) + 1
            self.devices[intent.device_id] = replace(
                device,
                deployment=Deployment(
                    device_id=intent.device_id,
                    workload=intent.workload,
                    profile=intent.profile,
                    generation=generation,
                    digest=intent.digest,
                    manifest_digest=intent.manifest_digest,
                    rollout_id=intent.rollout_id,
                    decision_id=intent.decision_id,
                ),
            )

    def answer(self, device_id: str, state: DeploymentState, message: str = "") -> None:
        device = self.devices[device_id]
        assert device.deployment is not None
        self.devices[device_id] = replace(
            device, deployment=replace(device.deployment, state=state, message=message)
        )

    def all(self) -> list[FleetDevice]:
        return list(self.devices.values())

    def runs(self, digest: str) -> set[str]:
        return {d.device_id for d in self.all() if d.deployment and d.deployment.digest == digest}


def planned(fleet: Fleet, *, previous: str = OLD, rollout_id: str = "r1", **plan) -> Rollout:
    return plan_rollout(
        rollout_id=rollout_id,
        profile=PROFILE,
        digest=NEW,
        manifest_digest=manifest(NEW),
        previous_digest=previous,
        previous_manifest_digest=manifest(previous) if previous else "",
        devices=fleet.all(),
        now_s=100.0,
        decision_id="d1",
        plan=RolloutPlan(**plan),
    )


def step(rollout, fleet, now_s=101.0, evidence=None):
    rollout, intents = advance(rollout, fleet.all(), now_s, evidence=evidence)
    fleet.tell(intents)
    again, more = advance(rollout, fleet.all(), now_s, evidence=evidence)
    assert more == []
    return again


def canaries(rollout: Rollout) -> list[str]:
    return [record.device_id for record in rollout.groups[0].devices]


def states(rollout: Rollout) -> dict[str, RolloutDeviceState]:
    return {record.device_id: record.state for group in rollout.groups for record in group.devices}


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

PROFILES = (PROFILE, profile(name="other"))
TARGETS = {"gateway": ProfileTarget(digest=OLD, manifest_digest=manifest(OLD), rollout_id="r0")}


def reconciled(fleet, rollouts=(), targets=TARGETS, profiles=PROFILES):
    intents = reconcile(profiles=profiles, devices=fleet.all(), rollouts=rollouts, targets=targets)
    fleet.tell(intents)
    assert reconcile(profiles=profiles, devices=fleet.all(), rollouts=rollouts, targets=targets) == []
    return intents


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


# -- rate, windows, groups, late joiners ------------------------------------------------------------------

NIGHT = MaintenanceWindow(schedule="0 2 * * *", duration="01:00")
DAY_S = 86_400.0
#: 1970-01-02, 02:00 UTC.
TWO_S = DAY_S + 2 * 3600


def in_zone(fleet: Fleet, device_id: str, time_zone: str, **other) -> None:
    fleet.devices[device_id] = replace(fleet.devices[device_id], time_zone=time_zone, **other)


def test_devices_are_told_within_their_own_window_alone():
    fleet = Fleet(2)
    in_zone(fleet, "device-0", "UTC")
    in_zone(fleet, "device-1", "America/New_York")  # five hours behind
    rollout = planned(fleet, canary_share=1.0, maintenance_window=NIGHT, timeout_s=DAY_S)
    rollout = step(rollout, fleet, TWO_S - 1)
    assert fleet.runs(NEW) == set()
    rollout = step(rollout, fleet, TWO_S)
    assert fleet.runs(NEW) == {"device-0"}
    rollout = step(rollout, fleet, TWO_S + 5 * 3600)
    assert fleet.runs(NEW) == {"device-0", "device-1"}


def test_a_device_that_has_nothing_to_run_waits_for_no_window():
    fleet = Fleet(0)
    fleet.join("new")
    step(planned(fleet, previous="", maintenance_window=NIGHT), fleet, TWO_S - 3600)
    assert fleet.runs(NEW) == {"new"}


def test_a_device_that_is_away_in_its_window_is_told_nothing_and_not_waited_for():
    fleet = Fleet(2)
    in_zone(fleet, "device-1", "", connected=False, last_seen_s=50.0)
    rollout = planned(fleet, canary_share=1.0, maintenance_window=NIGHT, error_threshold=1.0)
    rollout = step(rollout, fleet, TWO_S)
    fleet.answer("device-0", DeploymentState.ACTIVE)
    rollout = step(rollout, fleet, TWO_S + 3599)
    assert rollout.state is RolloutState.RUNNING
    rollout = step(rollout, fleet, TWO_S + 3600)
    assert states(rollout)["device-1"] is RolloutDeviceState.MISSED
    assert rollout.state is RolloutState.SUCCEEDED
    assert fleet.runs(NEW) == {"device-0"}
    # Bringing the profile up to date keeps to the window as well.
    night = replace(PROFILE, rollout=rollout.plan)
    targets = {PROFILE.name: ProfileTarget(digest=NEW, manifest_digest=manifest(NEW))}
    for connected, now_s, told in (
        (True, TWO_S + 7200, 0),
        (False, TWO_S + DAY_S, 0),
        (True, TWO_S + DAY_S, 1),
    ):
        in_zone(fleet, "device-1", "", connected=connected)
        intents = reconcile(
            profiles=[night], devices=fleet.all(), rollouts=[rollout], targets=targets, now_s=now_s
        )
        assert len(intents) == told


def test_what_failed_is_taken_back_outside_of_the_window():
    fleet = Fleet(2)
    rollout = step(planned(fleet, canary_share=1.0, maintenance_window=NIGHT), fleet, TWO_S)
    assert fleet.runs(NEW) == {"device-0", "device-1"}
    step(abort(rollout, TWO_S + 7200), fleet, TWO_S + 7200)
    assert fleet.runs(OLD) == {"device-0", "device-1"}


def test_groups_are_as_the_plan_names_them_with_thresholds_of_their_own():
    fleet = Fleet(10)
    groups = (
        GroupPlan(name="lab", target_percentage=10),
        GroupPlan(name="few", target_percentage=50, error_threshold=0.9, success_threshold=0.5),
        GroupPlan(name="all"),
    )
    rollout = planned(fleet, groups=groups, error_threshold=0.1)
    assert [(group.name, len(group.devices)) for group in rollout.groups] == [
        ("lab", 1),
        ("few", 5),
        ("all", 4),
    ]
    rollout = step(rollout, fleet)
    fleet.answer(rollout.groups[0].devices[0].device_id, DeploymentState.ACTIVE)
    rollout = step(rollout, fleet, 102.0)
    few = [record.device_id for record in rollout.groups[1].devices]
    for device_id in few[:2]:
        fleet.answer(device_id, DeploymentState.REJECTED)
    for device_id in few[2:]:
        fleet.answer(device_id, DeploymentState.ACTIVE)
    rollout = step(rollout, fleet, 103.0)
    assert rollout.groups[1].state is RolloutGroupState.SUCCEEDED  # 2 of 5 failed: under its own threshold
    fleet.answer(rollout.groups[2].devices[0].device_id, DeploymentState.REJECTED)
    rollout = step(rollout, fleet, 104.0)
    assert rollout.state is RolloutState.FAILED  # 1 of 4 is over the plan's


def test_devices_that_join_late_are_taken_into_the_last_group():
    fleet = Fleet(1)
    rollout = step(planned(fleet), fleet)
    fleet.join("late", digest=OLD)
    rollout = step(rollout, fleet, 102.0)
    assert [(group.name, len(group.devices)) for group in rollout.groups] == [("canary", 1), ("rest", 1)]
    assert fleet.runs(NEW) == {"device-0"}
    fleet.answer("device-0", DeploymentState.ACTIVE)
    rollout = step(rollout, fleet, 103.0)
    fleet.join("later", digest=OLD)
    rollout = step(rollout, fleet, 104.0)
    assert fleet.runs(NEW) == {"device-0", "late", "later"}


@given(
    seed=st.integers(0, 2**32),
    num_devices=st.integers(1, 12),
    rate=st.integers(1, 5),
    with_window=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_rate_and_windows_hold_whatever_happens_and_every_rollout_ends(seed, num_devices, rate, with_window):
    rng = random.Random(seed)
    fleet = Fleet(num_devices)
    zones = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo"]
    zone_of = {device_id: rng.choice(zones) for device_id in fleet.devices}
    for device_id, zone in zone_of.items():
        in_zone(fleet, device_id, zone, connected=rng.random() < 0.8)
    plan = {"max_per_minute": rate, "maintenance_window": NIGHT if with_window else None, "timeout_s": 300.0}
    rollout = planned(fleet, **plan)
    told_s: list[float] = []
    now_s = 100.0
    for _ in range(4000):
        now_s += rng.choice([5.0, 20.0, 45.0]) if not with_window else rng.choice([60.0, 240.0, 600.0])
        if rng.random() < 0.02:
            rollout = resume(pause(rollout, now_s), now_s)
        before = fleet.runs(NEW)
        # As after a restart: what is known is what was written down.
        rollout = codec.from_json(Rollout, codec.to_json(rollout))
        rollout, intents = advance(rollout, fleet.all(), now_s)
        fleet.tell(intents)
        if rollout.state.is_terminal:
            break
        for device_id in fleet.runs(NEW) - before:
            told_s.append(now_s)
            if with_window:
                assert fleet.devices[device_id].connected
                found = opening(NIGHT, zone_of[device_id], now_s)
                assert found.open_s <= now_s < found.close_s
        assert sum(time_s > now_s - 60.0 for time_s in told_s) <= rate
        for device_id in sorted(fleet.runs(NEW)):
            if rng.random() < 0.5:
                fleet.answer(device_id, rng.choice([DeploymentState.ACTIVE] * 9 + [DeploymentState.REJECTED]))
    assert rollout.state.is_terminal
    ended = [record for group in rollout.groups for record in group.devices]
    assert len(ended) == num_devices
    assert all(record.state.is_terminal for record in ended)
