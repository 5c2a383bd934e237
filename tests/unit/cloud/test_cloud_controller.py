"""The loop in virtual time: measured, decided, built, rolled out, and never twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_plane_fakes import PROFILE, WORKLOAD, World, build, digest_of, prepared

from cloud import controller as controller_module
from cloud import deployer as deployer_module
from cloud.controller import PAUSED_KEY, Controller
from cloud.deployer import DEFAULT_LIFETIME_S, Deployer
from cloud.domain.decisions import Action
from cloud.domain.devices import DeploymentState
from cloud.domain.jobs import JobKind
from cloud.domain.profiles import RolloutPlan
from cloud.domain.rollout import RolloutState, abort
from cloud.store import Store
from edgeloop.trust import DirectorKey, timestamp_s

DEVICES = ("gw-1", "gw-2")
#: A device takes this many times as long as where students are built: width 1 measures 16 ms, half of it 8.
SLOWDOWN = 40


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    prepared(world)
    for device_id in DEVICES:
        world.register(device_id)
    return world


def measure(world: World) -> None:
    """Each device reports a window of what it serves itself."""
    for device in world.store.devices():
        candidate = world.store.candidate(device.serving_digest, PROFILE.name)
        if candidate is not None:
            world.measure([device.device_id], SLOWDOWN * candidate.metrics.latency_p50_ms)


def live(world: World, seconds: int, *, between: Callable[[], None] = lambda: None) -> None:
    """Devices obey and report, the cluster finishes, the controller steps, once a second."""
    for _ in range(seconds):
        world.step()
        between()
        world.compute.finish()
        world.obey(DEVICES)
        measure(world)


def serve_width(world: World, width: float) -> str:
    """Have the fleet serve a student of this width, as if an operator had started there."""
    (candidate,) = build(world.store, PROFILE, width)
    world.store.set_current(
        PROFILE.name, candidate.digest, manifest_digest=candidate.manifest_digest, rollout_id="", now_s=1.0
    )
    world.step()
    world.obey(DEVICES)
    return candidate.digest


def current_ms(world: World) -> float:
    candidate = world.store.candidate(world.store.current_digest(PROFILE.name), PROFILE.name)
    assert candidate is not None
    return SLOWDOWN * candidate.metrics.latency_p50_ms


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


def test_every_generation_that_a_device_hears_of_is_higher_than_the_last(world: World) -> None:
    serve_width(world, 1.0)
    live(world, 60)
    for heard in world.generations.values():
        assert heard == sorted(set(heard))


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


def test_a_device_that_joins_late_gets_what_its_profile_serves(world: World) -> None:
    digest = serve_width(world, 0.55)
    world.register("gw-3")
    world.step()
    assert world.opened(world.shipped["gw-3"].payload, "gw-3").digest == digest
    assert world.store.rollouts() == []


def test_a_device_of_no_profile_is_told_nothing(world: World) -> None:
    serve_width(world, 0.55)
    world.register("stranger", profile=None)
    world.step()
    assert "stranger" not in world.shipped


def test_a_device_that_accepted_a_higher_generation_than_was_issued_is_told_again_above_it(
    world: World,
) -> None:
    digest = serve_width(world, 0.55)
    device = world.store.device("gw-1")
    assert device is not None
    world.store.register_device(replace(device, generation=41), PROFILE.name, "", world.now_s)
    world.step()
    deployment = world.opened(world.shipped["gw-1"].payload, "gw-1")
    assert (deployment.generation, deployment.digest) == (42, digest)
    world.step()
    assert world.opened(world.shipped["gw-1"].payload, "gw-1").generation == 42


def test_a_new_director_key_signs_everything_again_without_a_new_generation(world: World) -> None:
    serve_width(world, 0.55)
    world.director = DirectorKey.generate()
    world.restart()
    world.step()
    assert world.opened(world.shipped["gw-1"].payload, "gw-1").generation == 1


def test_what_was_signed_is_published_byte_for_byte_after_a_restart(world: World) -> None:
    serve_width(world, 0.55)
    before = dict(world.shipped)
    world.restart()
    world.step()
    assert world.shipped == before


def test_what_is_still_wanted_is_signed_again_long_before_it_expires(world: World) -> None:
    serve_width(world, 0.55)
    before = world.shipped["gw-1"].payload
    world.now_s += DEFAULT_LIFETIME_S / 2 + 60
    world.step()
    after = world.shipped["gw-1"].payload
    assert after != before
    old, new = world.opened(before, "gw-1"), world.opened(after, "gw-1")
    assert (new.generation, new.digest) == (old.generation, old.digest)
    assert timestamp_s(new.expire_time) == pytest.approx(world.now_s + DEFAULT_LIFETIME_S, abs=60)
    world.now_s += 3600
    world.step()
    assert world.shipped["gw-1"].payload == after


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


# -- killed between any two of its steps


class KilledError(BaseException):
    """kill -9: nothing catches it, and nothing is cleaned up after it."""


CUTS: list[tuple[type, str, bool]] = [
    (Store, "commit_decision", False),
    (Store, "commit_decision", True),
    (Store, "save_rollout", False),
    (Store, "save_rollout", True),
    (Store, "set_current", True),
    (Store, "issue_deployments", False),
    (Store, "issue_deployments", True),
    (Store, "set_signed", False),
    (Store, "set_signed", True),
    (Deployer, "ship", False),
    (Controller, "_reconcile", False),
]


@pytest.mark.parametrize(
    ("owner", "method", "after"), CUTS, ids=[f"{m}-{'after' if a else 'before'}" for _, m, a in CUTS]
)
def test_killed_anywhere_it_goes_on_without_a_second_generation_for_a_decision(
    world: World, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, after: bool
) -> None:
    serve_width(world, 1.0)
    plain = getattr(owner, method)
    calls = 0

    def fragile(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 1:
            if after:
                plain(*args, **kwargs)
            raise KilledError
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, method, fragile)
    num_kills = 0
    for _ in range(60):
        try:
            world.step()
        except KilledError:
            num_kills += 1
            world.restart()
        world.compute.finish()
        world.obey(DEVICES)
        measure(world)
    monkeypatch.undo()
    live(world, 10)
    assert num_kills
    assert current_ms(world) <= 10.0
    for device_id, heard in world.generations.items():
        assert heard == sorted(set(heard)), device_id
    told = [(d.device_id, d.decision_id, d.digest) for d in deployments_ever(world)]
    assert len(told) == len(set(told))
    built = [task_id for task_id in world.compute.ran if task_id.startswith("student-")]
    assert len(built) == len(set(built))
    jobs = [job for job in world.store.jobs() if job.kind is JobKind.COMPRESS]
    assert len({job.decision_id for job in jobs}) == len(jobs)


def test_a_fleet_is_told_a_bounded_number_of_devices_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "MAX_ISSUED_A_TURN", 2)
    (candidate,) = build(world.store, PROFILE, 0.55)
    world.store.set_current(
        PROFILE.name, candidate.digest, manifest_digest=candidate.manifest_digest, rollout_id="", now_s=1.0
    )
    for number in range(3, 6):
        world.register(f"gw-{number}")
    has_more, num_told = [], []
    for _ in range(4):
        world.now_s += 1.0
        has_more.append(world.controller.step(world.now_s))
        num_told.append(len(world.shipped))
    assert has_more == [True, True, False, False]
    assert num_told == [2, 4, 5, 5]
    assert set(map(tuple, world.generations.values())) == {(1,)}


def test_killed_while_signatures_are_stored_it_has_told_nobody_and_signs_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployer_module, "MAX_STORED_AT_ONCE", 2)
    for number in range(3, 6):
        world.register(f"gw-{number}")
    plain = Store.set_signed
    batches: list[int] = []

    def fragile(store: Store, payloads: Mapping[tuple[str, int], bytes]) -> None:
        batches.append(len(payloads))
        if len(batches) == 2:
            raise KilledError
        plain(store, payloads)

    monkeypatch.setattr(Store, "set_signed", fragile)
    with pytest.raises(KilledError):
        serve_width(world, 0.55)
    assert world.shipped == {}
    first = {deployment.device_id: deployment.signed for deployment in world.store.deployments()}
    assert sum(map(bool, first.values())) == 2
    world.restart()
    world.step()
    assert batches == [2, 2, 2, 1]
    assert {name: shipment.payload for name, shipment in world.shipped.items()} == {
        deployment.device_id: deployment.signed for deployment in world.store.deployments()
    }
    assert all(world.shipped[name].payload == signed for name, signed in first.items() if signed)
    assert set(map(tuple, world.generations.values())) == {(1,)}


def test_nobody_waits_while_it_looks_over_a_fleet_that_needs_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading all devices, and all that they measured, takes long in a large fleet."""
    serve_width(world, 0.55)
    live(world, 5)
    in_transaction: list[str] = []

    def watched(name: str) -> Callable[..., Any]:
        plain = getattr(Store, name)

        def read(store: Store, **kwargs: Any) -> Any:
            if getattr(store._local, "connection", None) is not None:
                in_transaction.append(name)
            return plain(store, **kwargs)

        return read

    for name in ("devices", "deployments", "windows"):
        monkeypatch.setattr(Store, name, watched(name))
    live(world, 3)
    assert in_transaction == []


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


def deployments_ever(world: World) -> list[Any]:
    """Every generation that was ever issued, not the newest alone."""
    import sqlalchemy as sa

    from cloud.store import schema

    with world.store._engine.connect() as connection:
        return list(connection.execute(sa.select(schema.deployments)))


def test_a_choice_that_is_no_candidate_changes_nothing(world: World) -> None:
    world.store.set_current(
        PROFILE.name, digest_of("gone"), manifest_digest=digest_of("m"), rollout_id="", now_s=1.0
    )
    for _ in range(5):
        world.step()
    assert world.store.rollouts() == []
