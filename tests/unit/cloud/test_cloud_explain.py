"""The sentences that answer "why does this device run what it runs"."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from control_plane_fakes import HARDWARE, PROFILE, SETTINGS, World, build, prepared

from cloud.domain.decisions import Action, Decision, Verdict
from cloud.domain.devices import DeploymentState, DeploymentStatus, Device
from cloud.services.explain import Situation, explain
from cloud.services.explaining import explain_device
from cloud.services.operations import Operations
from cloud.services.queries import Queries
from cloud.store import LedgerEntry
from edgeloop.errors import RejectedError
from edgeloop.v1 import control_service_pb2 as pb


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    prepared(world)
    return world


def sentences(world: World, device_id: str) -> list[str]:
    queries = Queries(world.store, settings=SETTINGS, now_s=lambda: world.now_s)
    return list(explain_device(world.store, queries, device_id).sentences)


def test_the_whole_story_of_a_device_that_was_given_a_smaller_student(world: World) -> None:
    big, small = build(world.store, PROFILE, 1.0, 0.5)
    world.register("gw-1")
    world.store.set_current(
        PROFILE.name, big.digest, manifest_digest=big.manifest_digest, rollout_id="", now_s=1.0
    )
    for _ in range(12):
        world.step()
        world.obey(["gw-1"])
        device = world.store.device("gw-1")
        assert device is not None
        world.measure(["gw-1"], 16.0 if device.serving_digest == big.digest else 8.0)
    text = "\n".join(sentences(world, "gw-1"))
    assert f"gw-1 runs {small.digest[:12]} (generation 2), as it should." in text
    assert "because of decision gateway-d" in text
    assert "measured p95 16" in text
    assert "objective of 10 ms" in text
    assert "pruned student of width 0.5" in text
    assert "is succeeded" in text
    assert "generation 2 as active" in text
    assert "It measures a p95 of 8" in text


def test_a_device_that_is_new_and_of_no_profile() -> None:
    device = Device(
        device_id="gw-1",
        hardware=HARDWARE,
        message="no profile matches (small: label class is x, not y)",
        connected=True,
    )
    assert explain(Situation(device=device)) == [
        "gw-1 runs nothing, and was told to run nothing yet.",
        "It belongs to no profile: no profile matches (small: label class is x, not y).",
    ]


def test_a_device_that_refused_says_why_and_what_it_runs_instead(world: World) -> None:
    good, bad = build(world.store, PROFILE, 1.0, 0.5)
    world.register("gw-1")
    world.store.set_current(
        PROFILE.name, good.digest, manifest_digest=good.manifest_digest, rollout_id="", now_s=1.0
    )
    world.step()
    world.obey(["gw-1"])
    world.store.set_current(
        PROFILE.name, bad.digest, manifest_digest=bad.manifest_digest, rollout_id="manual", now_s=2.0
    )
    world.step()
    world.store.record_status(
        DeploymentStatus(
            device_id="gw-1",
            generation=2,
            digest=bad.digest,
            state=DeploymentState.REJECTED,
            code="self-test-output",
            message="outputs differ by 0.4",
            event_time_s=world.now_s,
        ),
        world.now_s,
    )
    text = "\n".join(sentences(world, "gw-1"))
    assert (
        f"gw-1 runs {good.digest[:12]} (generation 1), but should run {bad.digest[:12]} (generation 2)."
        in text
    )
    assert "A person asked for" in text
    assert "generation 2 as rejected (self-test-output: outputs differ by 0.4)" in text


@pytest.mark.parametrize("ended", ["aborted", "failed"])
def test_a_device_that_went_back_is_not_said_to_run_what_was_asked_for(world: World, ended: str) -> None:
    good, other = build(world.store, PROFILE, 1.0, 0.5)
    world.register("gw-1")
    world.store.set_current(
        PROFILE.name, good.digest, manifest_digest=good.manifest_digest, rollout_id="", now_s=1.0
    )
    world.step()
    world.obey(["gw-1"])
    world.measure(["gw-1"], 8.0, num_windows=3)
    world.step()
    queries = Queries(world.store, settings=SETTINGS, now_s=lambda: world.now_s)
    operations = Operations(
        world.store, queries, settings=SETTINGS, now_s=lambda: world.now_s, poke=lambda: None
    )
    request = pb.StartRolloutRequest(profile=PROFILE.name, digest=other.digest)
    rollout = operations.start_rollout(request).rollout
    world.step()
    world.obey(["gw-1"])
    if ended == "aborted":
        operations.abort_rollout(pb.AbortRolloutRequest(rollout_id=rollout.rollout_id))
    for _ in range(3):
        world.measure(["gw-1"], 16.0, num_windows=3)
        world.step()
        world.obey(["gw-1"])
    text = "\n".join(sentences(world, "gw-1"))
    assert f"gw-1 runs {good.digest[:12]} (generation 3), as it should." in text
    if ended == "aborted":
        assert f"Profile gateway runs {good.digest[:12]}, so this device should." in text
        assert f"of {other.digest[:12]}: {rollout.rollout_id} is aborted" in text
    else:
        assert f"It went back to {good.digest[:12]}" in text
        assert f"the rollout of {other.digest[:12]} ended as failed" in text
    assert "A person asked for" not in text


def test_what_an_older_rollout_said_last_is_not_told_beside_a_newer_one(world: World) -> None:
    good, other = build(world.store, PROFILE, 1.0, 0.5)
    queries = Queries(world.store, settings=SETTINGS, now_s=lambda: world.now_s)
    operations = Operations(
        world.store, queries, settings=SETTINGS, now_s=lambda: world.now_s, poke=lambda: None
    )

    def start(digest: str) -> str:
        world.now_s += 1.0
        request = pb.StartRolloutRequest(profile=PROFILE.name, digest=digest)
        return operations.start_rollout(request).rollout.rollout_id

    world.register("gw-1")
    older = start(good.digest)
    for _ in range(3):
        world.step()
        world.obey(["gw-1"])
        world.measure(["gw-1"], 8.0, num_windows=3)
    assert f"Rollout {older} is succeeded (canary succeeded): 1 of 1 devices serve it." in sentences(
        world, "gw-1"
    )
    newer = start(other.digest)
    operations.pause_rollout(pb.PauseRolloutRequest(rollout_id=newer))
    told = sentences(world, "gw-1")
    assert f"It came with rollout {older}, which is succeeded." in told
    assert not [sentence for sentence in told if "devices serve it" in sentence]
    (about_newer,) = [sentence for sentence in told if newer in sentence]
    assert f"of {other.digest[:12]}: {newer} is paused (canary waiting): paused by an operator" in about_newer
    assert about_newer.endswith("This device is in its group canary: waiting.")
    # The same student once more: nobody is told anything, and yet the newest rollout is the one that counts.
    again = start(good.digest)
    (about_newest,) = [sentence for sentence in sentences(world, "gw-1") if again in sentence]
    assert f"of the same student: {again} is running" in about_newest


def test_a_device_that_is_away_is_said_to_be(world: World) -> None:
    build(world.store, PROFILE, 0.5)
    world.register("gw-1")
    world.store.set_presence("gw-1", False, world.now_s)
    world.step()
    text = "\n".join(sentences(world, "gw-1"))
    assert "is not connected since generation 1 was published" in text
    assert "it was last heard of at 1970-01-12" in text


def test_a_device_that_keeps_silent_points_to_its_log_and_the_key(world: World) -> None:
    build(world.store, PROFILE, 0.5)
    world.register("gw-1")
    world.store.set_presence("gw-1", True, world.now_s)
    world.step()
    text = "\n".join(sentences(world, "gw-1"))
    assert "has not answered since generation 1 was published" in text
    assert "its log says why" in text
    assert "--director-key" in text


def test_emulation_is_never_hidden() -> None:
    device = Device(
        device_id="gw-1", hardware=HARDWARE, serving_digest="ab" * 32, emulated_slowdown=24, connected=True
    )
    text = "\n".join(explain(Situation(device=device, profile=PROFILE, p95_ms=12.0)))
    assert "over the objective of 10 ms" in text
    assert "24 times slower" in text


def test_the_last_word_on_the_profile_is_told_when_it_is_not_what_led_here() -> None:
    device = Device(device_id="gw-1", hardware=HARDWARE, serving_digest="ab" * 32, connected=True)
    decision = Decision(
        profile=PROFILE.name,
        workload=PROFILE.workload,
        action=Action.ALERT,
        verdict=Verdict.THROTTLED,
        reason="the machines are throttled",
    )
    latest = LedgerEntry(decision_id="gateway-d7", decision=decision, decide_time_s=1.0, last_time_s=2.0)
    text = "\n".join(explain(Situation(device=device, profile=PROFILE, latest=latest)))
    assert "alert (throttled): the machines are throttled" in text
    same = explain(Situation(device=device, profile=PROFILE, latest=latest, led_here=latest))
    assert not [sentence for sentence in same if "last word" in sentence]


def test_an_unknown_device_is_an_error_that_lists_the_known_ones(world: World) -> None:
    world.register("gw-1")
    world.register("gw-2")
    with pytest.raises(RejectedError, match="gw-1, gw-2"):
        sentences(world, "gw-9")


def test_a_rejected_candidate_is_said_to_be_one(world: World) -> None:
    (candidate,) = build(world.store, PROFILE, 0.5)
    world.register("gw-1")
    world.step()
    world.obey(["gw-1"])
    world.store.save_candidate(replace(candidate, rejected_reason="slower than its parent"), 1.0)
    assert "may not ship any more: slower than its parent" in "\n".join(sentences(world, "gw-1"))
