"""Rollouts that people ask for: started once, superseded, refused, paused and aborted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from control_plane_fakes import PROFILE, build, prepared
from operations_desk import Desk

from cloud.domain.profiles import Constraints
from cloud.domain.rollout import RolloutState
from edgeloop.errors import RejectedError
from edgeloop.v1 import control_service_pb2 as pb


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_rollout_takes_the_best_candidate_and_a_retry_starts_no_second(desk: Desk) -> None:
    prepared(desk.world, profile=replace(PROFILE, constraints=Constraints(artifact_bytes=60_000)))
    desk.world.register("gw-1")
    _, best, _ = build(desk.world.store, PROFILE, 1.0, 0.5, 0.25)
    request = pb.StartRolloutRequest(profile="gateway", request_id="once")
    rollout = desk.operations.start_rollout(request).rollout
    assert rollout.digest == best.digest
    assert desk.operations.start_rollout(request).rollout == rollout
    assert len(desk.world.store.rollouts()) == 1
    with pytest.raises(RejectedError, match="choose a new one"):
        desk.operations.start_rollout(
            pb.StartRolloutRequest(profile="gateway", digest="f" * 12, request_id="once")
        )


def test_a_newer_rollout_supersedes_the_one_that_runs(desk: Desk) -> None:
    prepared(desk.world)
    desk.world.register("gw-1")
    first, second = build(desk.world.store, PROFILE, 0.5, 0.25)
    for candidate in (first, second):
        desk.operations.start_rollout(pb.StartRolloutRequest(profile="gateway", digest=candidate.digest[:12]))
    states = {rollout.digest: rollout.state for rollout in desk.world.store.rollouts()}
    assert states == {first.digest: RolloutState.SUPERSEDED, second.digest: RolloutState.RUNNING}


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (pb.StartRolloutRequest(profile="nope"), "known are gateway"),
        (pb.StartRolloutRequest(profile="gateway", digest="ffffff"), "candidate 'ffffff' is not known"),
        (pb.StartRolloutRequest(profile="gateway", digest="*"), "at least 6"),
        (pb.StartRolloutRequest(profile="gateway", canary_share=1.5), "canary_share"),
        (pb.StartRolloutRequest(profile="gateway", canary_share=float("nan")), "canary_share"),
        (pb.StartRolloutRequest(profile="gateway", request_id="a b"), "request_id"),
    ],
    ids=["profile", "candidate", "digest", "share", "nan", "request-id"],
)
def test_a_rollout_that_cannot_be_is_refused(desk: Desk, request_: pb.StartRolloutRequest, said: str) -> None:
    prepared(desk.world)
    build(desk.world.store, PROFILE, 0.5)
    with pytest.raises(RejectedError) as caught:
        desk.operations.start_rollout(request_)
    assert said in caught.value.message
    assert desk.world.store.rollouts() == []


def test_a_rejected_candidate_is_not_rolled_out(desk: Desk) -> None:
    prepared(desk.world)
    (candidate,) = build(desk.world.store, PROFILE, 0.5)
    desk.world.store.reject_candidate(candidate.digest, "gateway", "slower than its parent")
    with pytest.raises(RejectedError, match="slower than its parent"):
        desk.operations.start_rollout(pb.StartRolloutRequest(profile="gateway", digest=candidate.digest))
    with pytest.raises(RejectedError, match="edgeloop compress"):
        desk.operations.start_rollout(pb.StartRolloutRequest(profile="gateway"))


def test_when_no_candidate_fits_the_refusal_says_what_could_be_met(desk: Desk) -> None:
    prepared(desk.world, profile=replace(PROFILE, constraints=Constraints(artifact_bytes=10_000)))
    build(desk.world.store, PROFILE, 0.5, 0.25)
    with pytest.raises(RejectedError, match="25000 artifact bytes"):
        desk.operations.start_rollout(pb.StartRolloutRequest(profile="gateway"))


def test_a_rollout_is_paused_resumed_and_aborted_and_then_has_ended(desk: Desk) -> None:
    prepared(desk.world)
    desk.world.register("gw-1")
    build(desk.world.store, PROFILE, 0.5)
    rollout_id = desk.operations.start_rollout(pb.StartRolloutRequest(profile="gateway")).rollout.rollout_id
    paused = desk.operations.pause_rollout(pb.PauseRolloutRequest(rollout_id=rollout_id)).rollout
    assert paused.state == pb.ROLLOUT_STATE_PAUSED
    resumed = desk.operations.resume_rollout(pb.ResumeRolloutRequest(rollout_id=rollout_id)).rollout
    assert resumed.state == pb.ROLLOUT_STATE_RUNNING
    for _ in range(2):
        aborted = desk.operations.abort_rollout(pb.AbortRolloutRequest(rollout_id=rollout_id)).rollout
        assert aborted.state == pb.ROLLOUT_STATE_ABORTED
    with pytest.raises(RejectedError, match="ended already"):
        desk.operations.pause_rollout(pb.PauseRolloutRequest(rollout_id=rollout_id))
    with pytest.raises(RejectedError, match="is not known"):
        desk.operations.pause_rollout(pb.PauseRolloutRequest(rollout_id="other"))
