"""Devices, generations and deployment states."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from cloud_store_values import D1, D2, DEVICE, INTENT, M2, PROFILE, STATUS, report
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloud.domain.devices import Deployment, DeploymentState, Device
from cloud.store import Store
from cloud.store.deployments import MAX_HISTORY_PER_DEVICE
from edgeloop.errors import RejectedError


def register(store: Store, device: Device = DEVICE, now_s: float = 1.0) -> Device:
    return store.register_device(device, PROFILE.name, "", now_s)


def found(store: Store) -> Device:
    device = store.device(DEVICE.device_id)
    assert device is not None
    return device


def test_registering_twice_is_one_device_whose_first_time_stays(store: Store) -> None:
    register(store, now_s=1.0)
    stored = register(store, replace(DEVICE, agent_version="0.2.0"), now_s=5.0)
    assert store.devices() == [stored]
    assert (stored.register_time_s, stored.last_seen_s, stored.agent_version) == (1.0, 5.0, "0.2.0")
    assert (stored.profile, stored.connected) == (PROFILE.name, True)
    assert store.device_ids() == {"gw-1"}
    assert store.device("gw-2") is None


def test_a_device_without_a_profile_is_found_by_that(store: Store) -> None:
    store.register_device(DEVICE, None, "no profile matches", 1.0)
    assert [device.message for device in store.devices(profile="")] == ["no profile matches"]
    assert store.devices(profile=PROFILE.name) == []
    store.set_device_profile("gw-1", PROFILE.name, "")
    assert [device.message for device in store.devices(profile=PROFILE.name)] == [""]


def test_presence_and_being_heard_of(store: Store) -> None:
    assert not store.set_presence("gw-1", True, 1.0)
    register(store, now_s=1.0)
    assert store.set_presence("gw-1", False, 9.0)
    assert (found(store).connected, found(store).last_seen_s) == (False, 1.0)
    store.set_presence("gw-1", True, 10.0)
    assert (found(store).connected, found(store).last_seen_s) == (True, 10.0)
    store.touch("gw-1", 11.0)
    assert found(store).last_seen_s == 11.0


def test_the_claimed_generation_never_goes_down(store: Store) -> None:
    register(store, replace(DEVICE, generation=7))
    assert register(store, replace(DEVICE, generation=2, boot_id="boot-2")).generation == 7


def test_the_same_wish_is_issued_once(store: Store) -> None:
    register(store)
    first = store.issue_deployment(INTENT, 1.0)
    assert (first.generation, first.state) == (1, DeploymentState.PENDING)
    assert store.issue_deployment(INTENT, 2.0) == first
    store.record_status(STATUS, 3.0)
    again = store.issue_deployment(INTENT, 4.0)
    assert (again.generation, again.state) == (1, DeploymentState.ACTIVE)


def test_another_wish_and_back_each_get_a_new_generation(store: Store) -> None:
    register(store)
    other = replace(INTENT, digest=D2, manifest_digest=M2)
    assert [store.issue_deployment(wish, 1.0).generation for wish in (INTENT, other, INTENT)] == [1, 2, 3]
    (newest,) = store.deployments()
    assert (newest.generation, newest.digest) == (3, D1)
    assert store.deployment("gw-1") == newest


def test_a_device_that_knows_a_higher_generation_is_told_again_above_it(store: Store) -> None:
    register(store)
    assert store.issue_deployment(INTENT, 1.0).generation == 1
    register(store, replace(DEVICE, generation=40))  # this database was restored from an old copy
    assert store.issue_deployment(INTENT, 2.0).generation == 41
    assert store.issue_deployment(INTENT, 3.0).generation == 41


def test_a_device_that_never_registered_is_told_nothing(store: Store) -> None:
    with pytest.raises(RejectedError) as caught:
        store.issue_deployment(INTENT, 1.0)
    assert caught.value.code == "device-unknown"
    assert store.deployment("gw-1") is None


def test_signed_bytes_stay_with_their_generation(store: Store) -> None:
    register(store)
    store.issue_deployment(INTENT, 1.0)
    store.set_signed({("gw-1", 1): b"\x00signed", ("gw-1", 9): b"no such generation"})
    assert [deployment.signed for deployment in store.deployments(profile=PROFILE.name)] == [b"\x00signed"]
    assert store.deployments(profile="other") == []


def test_a_deployment_goes_through_its_states_and_ends_once(store: Store) -> None:
    register(store)
    store.issue_deployment(INTENT, 1.0)

    def say(state: DeploymentState, *, progress: float = 0.0, message: str = "") -> bool:
        status = replace(STATUS, state=state, progress=progress, message=message, event_time_s=2.0)
        return store.record_status(status, 2.0)

    assert say(DeploymentState.FETCHING, progress=0.25)
    assert not say(DeploymentState.FETCHING, progress=0.25)
    assert say(DeploymentState.FETCHING, progress=0.5)
    assert say(DeploymentState.TRIAL)
    assert say(
        DeploymentState.FETCHING, progress=0.75
    )  # delayed: kept in the history, but it is no step back
    deployment = store.deployment("gw-1")
    assert deployment is not None
    assert deployment.state is DeploymentState.TRIAL
    assert say(DeploymentState.ROLLED_BACK, message="crashed 3 times")
    assert not say(DeploymentState.ROLLED_BACK, message="again")
    assert not say(DeploymentState.ACTIVE)
    deployment = store.deployment("gw-1")
    assert deployment is not None
    assert (deployment.state, deployment.message) == (DeploymentState.ROLLED_BACK, "crashed 3 times")
    assert len([status for status in store.history("gw-1") if status.state.terminal]) == 1
    assert len(store.history("gw-1", limit=2)) == 2


def test_what_was_active_is_rolled_back_only_by_a_crash_loop(store: Store) -> None:
    register(store)
    store.issue_deployment(INTENT, 1.0)
    assert store.record_status(replace(STATUS, state=DeploymentState.ACTIVE, event_time_s=2.0), 2.0)
    late = replace(STATUS, state=DeploymentState.ROLLED_BACK, event_time_s=3.0)
    assert not store.record_status(replace(late, code="trial-errors"), 3.0)
    assert store.record_status(replace(late, code="crash-loop"), 3.0)
    assert not store.record_status(replace(late, code="crash-loop", event_time_s=4.0), 4.0)
    deployment = store.deployment("gw-1")
    assert deployment is not None
    assert (deployment.state, deployment.code) == (DeploymentState.ROLLED_BACK, "crash-loop")


def test_a_late_word_on_an_old_generation_does_not_touch_the_new_one(store: Store) -> None:
    register(store)
    store.issue_deployment(INTENT, 1.0)
    store.issue_deployment(replace(INTENT, digest=D2, rollout_id="rollout-2"), 2.0)
    assert store.record_status(replace(STATUS, state=DeploymentState.SUPERSEDED), 3.0)
    deployment = store.deployment("gw-1")
    assert deployment is not None
    assert (deployment.generation, deployment.state) == (2, DeploymentState.PENDING)


def test_a_status_about_another_digest_is_refused(store: Store) -> None:
    register(store)
    store.issue_deployment(INTENT, 1.0)
    with pytest.raises(RejectedError) as caught:
        store.record_status(replace(STATUS, digest=D2), 2.0)
    assert caught.value.code == "deployment-digest"
    assert store.history("gw-1") == []


def test_a_status_of_a_generation_from_elsewhere_raises_the_next_one(store: Store) -> None:
    register(store)
    assert store.record_status(replace(STATUS, generation=12), 1.0)
    assert store.issue_deployment(INTENT, 2.0).generation == 13


def test_history_is_bounded(store: Store) -> None:
    register(store)
    with store.transaction():
        for generation in range(1, MAX_HISTORY_PER_DEVICE + 50):
            store.record_status(replace(STATUS, generation=generation), float(generation))
    history = store.history("gw-1", limit=10 * MAX_HISTORY_PER_DEVICE)
    assert len(history) == MAX_HISTORY_PER_DEVICE
    assert history[0].generation == MAX_HISTORY_PER_DEVICE + 49


def test_what_a_device_serves_is_its_newest_word_within_a_boot(store: Store) -> None:
    register(store)
    store.insert_reports([report(5, digest=D1, generation=1)], 1.0)
    store.insert_reports([report(4, digest=D2, generation=9)], 2.0)  # delayed
    assert (found(store).serving_digest, found(store).serving_generation) == (D1, 1)
    store.insert_reports([report(99, digest=D2, generation=9, boot_id="an earlier boot")], 3.0)
    assert found(store).serving_digest == D1
    store.record_status(
        replace(STATUS, generation=2, digest=D2, state=DeploymentState.TRIAL, event_time_s=500.0), 4.0
    )
    assert (found(store).serving_digest, found(store).serving_generation) == (D2, 2)
    assert found(store).last_seen_s == 4.0
    # After a restart the device itself knows best, even when its clock went back.
    register(store, replace(DEVICE, boot_id="boot-2", serving_digest=D1, generation=2))
    assert found(store).serving_digest == D1
    store.insert_reports([report(0, boot_id="boot-2", digest=D2, generation=2)], 5.0)
    assert found(store).serving_digest == D2


def test_a_whole_fleet_is_told_in_a_few_statements(store: Store) -> None:
    """Devices' rows are held meanwhile, and reports wait for them."""
    names = [f"gw-{number:04d}" for number in range(1, 1201)]
    with store.transaction():
        for name in names:
            register(store, replace(DEVICE, device_id=name, generation=40 if name == "gw-0002" else 0))
    store.issue_deployment(replace(INTENT, device_id="gw-0001"), 1.0)
    wishes = [replace(INTENT, device_id=name) for name in [*names, "stranger", "gw-0003"]]
    statements: list[str] = []

    def heard(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    sa.event.listen(store._engine, "before_cursor_execute", heard)
    outcomes = store.issue_deployments(wishes, 2.0)
    store.set_signed({(name, 1): b"signed" for name in names})
    sa.event.remove(store._engine, "before_cursor_execute", heard)
    assert len(statements) <= 12
    stranger, twice = outcomes[1200:]
    assert isinstance(stranger, RejectedError)
    assert stranger.code == "device-unknown"
    assert twice == outcomes[2]
    found = {deployment.device_id: deployment for deployment in store.deployments()}
    assert [found[name] for name in names if name != "gw-0002"] == [
        replace(outcome, signed=b"signed")
        for outcome in outcomes[:1200]
        if isinstance(outcome, Deployment) and outcome.device_id != "gw-0002"
    ]
    assert found["gw-0001"].issue_time_s == 1.0
    assert (found["gw-0002"].generation, found["gw-0002"].signed) == (41, b"")
    again = store.issue_deployments(wishes[:1200], 3.0)
    assert [outcome.generation for outcome in again if isinstance(outcome, Deployment)] == [
        found[name].generation for name in names
    ]


def test_devices_that_accepted_more_than_they_were_told_are_found(store: Store) -> None:
    for name, generation in (("ahead", 9), ("level", 1), ("untold", 9)):
        register(store, replace(DEVICE, device_id=name))
        if name != "untold":
            store.issue_deployment(replace(INTENT, device_id=name), 1.0)
        register(store, replace(DEVICE, device_id=name, generation=generation))
    assert store.devices_ahead() == {"ahead"}


def test_what_was_told_lately_is_read_by_time_and_not_by_reading_all(store: Store) -> None:
    register(store)
    asked: list[tuple[str, Any]] = []

    def heard(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        asked.append((statement, parameters))

    sa.event.listen(store._engine, "before_cursor_execute", heard)
    store.statuses_since(100.0, limit=10)
    sa.event.remove(store._engine, "before_cursor_execute", heard)
    ((statement, parameters),) = (item for item in asked if "deployment_history" in item[0])
    with store._read() as connection:
        explain = "EXPLAIN QUERY PLAN"
        if connection.dialect.name == "postgresql":
            explain = "EXPLAIN"
            # A table of no rows is read whole and sorted, whatever indexes there are.
            for way in ("seqscan", "bitmapscan", "sort"):
                connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
        plan = "\n".join(map(str, connection.exec_driver_sql(f"{explain} {statement}", parameters)))
    assert "deployment_history_by_time" in plan
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan


def test_two_control_planes_issue_one_generation_for_one_wish(store_url: str) -> None:
    stores = [Store(store_url) for _ in range(2)]
    for store in stores:
        store.migrate()
    register(stores[0])
    wishes = [replace(INTENT, rollout_id=f"rollout-{n}") for n in range(20)]

    def issue(store: Store) -> list[int]:
        return [store.issue_deployment(wish, 1.0).generation for wish in wishes]

    with ThreadPoolExecutor(2) as pool:
        issued = list(pool.map(issue, stores))
    for generations in issued:
        assert generations == sorted(generations)
    newest = stores[0].deployment("gw-1")
    assert newest is not None
    assert newest.rollout_id == "rollout-19"
    for store in stores:
        store.close()


class Generations(RuleBasedStateMachine):
    """Whatever devices claim and controllers repeat, a generation is new or it is the same deployment."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.store = Store(f"sqlite:///{self.directory.name}/edgeloop.db")
        self.store.migrate()
        register(self.store)
        self.issued: dict[int, tuple[str, str]] = {}
        self.claimed = 0

    @rule(generation=st.integers(0, 60))
    def claims(self, generation: int) -> None:
        register(self.store, replace(DEVICE, generation=generation))
        self.claimed = max(self.claimed, generation)

    @rule(rollout=st.sampled_from(["r1", "r2", "r3"]), digest=st.sampled_from([D1, D2]))
    def issues(self, rollout: str, digest: str) -> None:
        before = max(self.issued, default=0)
        deployment = self.store.issue_deployment(replace(INTENT, rollout_id=rollout, digest=digest), 1.0)
        wish = (rollout, digest)
        if deployment.generation in self.issued:
            assert self.issued[deployment.generation] == wish
            assert deployment.generation == before
        else:
            assert deployment.generation > max(before, self.claimed)
        assert deployment.generation >= self.claimed
        self.issued[deployment.generation] = wish

    @precondition(lambda self: self.issued)
    @rule(data=st.data(), state=st.sampled_from([s for s in DeploymentState if s != "pending"]))
    def reports(self, data: st.DataObject, state: DeploymentState) -> None:
        generation = data.draw(st.sampled_from(sorted(self.issued)))
        status = replace(STATUS, generation=generation, digest=self.issued[generation][1], state=state)
        self.store.record_status(status, 1.0)
        assert not self.store.record_status(status, 2.0)
        self.claimed = max(self.claimed, generation)

    @invariant()
    def the_newest_is_the_highest(self) -> None:
        deployment = self.store.deployment("gw-1")
        assert (deployment.generation if deployment else 0) == max(self.issued, default=0)

    @invariant()
    def each_generation_ended_at_most_once(self) -> None:
        ended = [s.generation for s in self.store.history("gw-1", limit=10_000) if s.state.terminal]
        assert len(ended) == len(set(ended))  # no status of this machine says crash-loop

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()


TestGenerations = Generations.TestCase
TestGenerations.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_refusal_is_kept_and_moves_nothing(store: Store) -> None:
    register(store)
    deployment = store.issue_deployment(INTENT, 1.0)
    refused = replace(
        STATUS, generation=0, digest=D2, state=DeploymentState.REFUSED, code="signature-unknown-key"
    )
    assert store.record_status(refused, 2.0)
    assert store.record_status(replace(refused, code="deployment-wrong-device", event_time_s=200.0), 3.0)
    assert not store.record_status(refused, 3.0)
    assert [status.code for status in store.history("gw-1")] == ["deployment-wrong-device"]
    # Not even one that names a generation that nobody issued, or that was issued with another digest.
    assert store.record_status(replace(refused, generation=999), 4.0)
    assert store.record_status(replace(refused, generation=deployment.generation), 4.0)
    assert found(store).generation == 0
    assert store.deployment("gw-1") == deployment
    # And what follows is heard as ever.
    assert store.record_status(replace(STATUS, generation=deployment.generation, digest=D1), 5.0)
