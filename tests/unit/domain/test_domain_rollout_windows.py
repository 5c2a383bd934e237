"""When devices are told: windows, rates, groups as the plan names them, those that join late."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_fleet import NEW, OLD, PROFILE, Fleet, manifest, planned, states, step

from cloud.domain import codec
from cloud.domain.devices import DeploymentState
from cloud.domain.profiles import GroupPlan
from cloud.domain.reconcile import ProfileTarget, reconcile
from cloud.domain.rollout import (
    Rollout,
    RolloutDeviceState,
    RolloutGroupState,
    RolloutState,
    abort,
    advance,
    pause,
    resume,
)
from cloud.domain.windows import MaintenanceWindow, opening

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
