"""The update rules, without disk, network or clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from update_scenes import SETTINGS, active, do, examples, good, in_state, kinds, on_trial, slot

from edge_agent.update import TABLE
from edge_agent.update_events import (
    EVENT_TYPES,
    Activate,
    ActivationFailed,
    CollectGarbage,
    DeploymentSeen,
    Effect,
    Event,
    Fetch,
    FetchCompleted,
    FetchFailed,
    Ignored,
    SelfTest,
    SelfTestFailed,
    SelfTestPassed,
    Started,
    StatusDelivered,
    StopFetch,
    StopSelfTest,
    StopServing,
    TrialProgress,
    Verified,
    Verify,
    VerifyFailed,
)
from edge_agent.update_state import (
    RESTING_STATES,
    TERMINAL_STATES,
    Slot,
    State,
    UpdateState,
    from_json,
    to_json,
)


def test_the_table_has_every_pair_and_only_resting_states() -> None:
    assert set(TABLE) == set(RESTING_STATES)
    for row in TABLE.values():
        assert set(row) == set(EVENT_TYPES)


@pytest.mark.parametrize("event_type", EVENT_TYPES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", RESTING_STATES)
def test_every_event_in_every_state_gives_a_state_that_can_be_written_down(
    name: State, event_type: type[Event]
) -> None:
    state = in_state(name)
    assert state.state is name
    new, effects = do(state, examples(state)[event_type])
    assert from_json(to_json(new)) == new
    assert new.generation >= state.generation
    for effect in effects:
        if isinstance(effect, Activate):
            assert effect.slot in (new.committed, new.target)


def test_the_way_from_nothing_to_active() -> None:
    new = slot(1)
    state, effects = do(UpdateState(), DeploymentSeen(slot=new))
    assert (state.state, effects) == (State.FETCHING, [Fetch(slot=new)])
    state, effects = do(state, FetchCompleted(generation=1))
    assert (state.state, effects) == (State.VERIFYING, [Verify(slot=new)])
    state, effects = do(state, Verified(generation=1))
    assert (state.state, effects) == (State.TESTING, [SelfTest(slot=new)])
    state, effects = do(state, SelfTestPassed(generation=1))
    assert (state.state, effects) == (State.TRIAL, [Activate(slot=new)])
    assert state.committed is None
    state, effects = do(state, good(1, num_good=4))
    assert state.state is State.TRIAL
    state, effects = do(state, good(1))
    assert (state.state, state.committed, effects) == (State.ACTIVE, new, [CollectGarbage()])


def test_a_trial_without_requests_commits_after_its_time_without_an_error() -> None:
    state = in_state(State.TRIAL)
    quiet = TrialProgress(generation=2, num_good=0, num_errors=1, clean_s=9.9)
    assert do(state, quiet)[0].state is State.TRIAL
    assert do(state, replace(quiet, clean_s=10.0))[0].state is State.ACTIVE


@pytest.mark.parametrize("other", [slot(1), slot(2, name=7)], ids=["older", "same generation, other content"])
@pytest.mark.parametrize("name", [state for state in RESTING_STATES if state is not State.IDLE])
def test_old_and_conflicting_deployments_change_nothing(name: State, other: Slot) -> None:
    state = in_state(name)
    new, effects = do(state, DeploymentSeen(slot=other))
    assert new == state
    assert [effect.code for effect in effects if isinstance(effect, Ignored)] == ["generation-old"]
    assert len(effects) == 1


@pytest.mark.parametrize("name", [state for state in RESTING_STATES if state is not State.IDLE])
def test_the_same_deployment_again_changes_nothing_and_is_not_even_mentioned(name: State) -> None:
    state = in_state(name)
    assert state.target is not None
    assert do(state, DeploymentSeen(slot=state.target)) == (state, [])


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        (State.FETCHING, StopFetch()),
        (State.VERIFYING, None),
        (State.TESTING, StopSelfTest()),
        (State.TRIAL, Activate(slot=slot(1))),
    ],
)
def test_a_newer_generation_supersedes_an_unfinished_one(name: State, stop: Effect | None) -> None:
    state, effects = do(in_state(name), DeploymentSeen(slot=slot(3)))
    assert state.state is State.FETCHING
    assert state.generation == 3
    assert effects == [effect for effect in (stop, Fetch(slot=slot(3))) if effect]
    endings = [note for note in state.outbox if note.generation == 2 and note.state in TERMINAL_STATES]
    assert [note.state for note in endings] == [State.SUPERSEDED]


@pytest.mark.parametrize("name", [State.ACTIVE, State.REJECTED, State.ROLLED_BACK])
def test_a_finished_generation_is_not_superseded(name: State) -> None:
    state, _ = do(in_state(name), DeploymentSeen(slot=slot(3)))
    assert [note.state for note in state.outbox if note.generation == 2] == [name]


def test_answers_for_another_generation_do_nothing() -> None:
    state = in_state(State.TESTING)
    for event in (SelfTestPassed(generation=1), FetchCompleted(generation=3), good(1)):
        assert do(state, event) == (state, [])


def test_the_serving_artifact_under_a_new_generation_is_not_tried_again() -> None:
    again = slot(2, name=1)
    state, effects = do(
        active(slot(1)), DeploymentSeen(slot=again), FetchCompleted(generation=2), Verified(generation=2)
    )
    assert state.state is State.ACTIVE
    assert state.committed == again
    assert state.previous is None
    assert effects == [Activate(slot=again), CollectGarbage()]


def test_a_downgrade_is_a_newer_generation_of_older_content() -> None:
    state = active(slot(1), slot(2), slot(3, name=1))
    assert state.generation == 3
    assert state.serving == slot(3, name=1)
    assert state.previous == slot(2)


@pytest.mark.parametrize(
    ("name", "event"),
    [
        (State.FETCHING, FetchFailed(generation=2, code="block-altered", message="m")),
        (State.VERIFYING, VerifyFailed(generation=2, code="manifest-wrong-profile", message="m")),
        (State.TESTING, SelfTestFailed(generation=2, code="self-test-output", message="m")),
    ],
)
def test_a_refused_generation_leaves_the_old_model_serving_and_is_not_tried_again(
    name: State, event: Event
) -> None:
    state, effects = do(in_state(name), event)
    assert state.state is State.REJECTED
    assert state.code == event.code  # type: ignore[union-attr]  # each of the three has one
    assert state.serving == slot(1)
    assert kinds(effects) == {CollectGarbage}
    assert slot(2) not in state.kept
    assert do(state, DeploymentSeen(slot=slot(2))) == (state, [])
    # It was never on trial: a later generation may bring the same artifact again.
    assert do(state, DeploymentSeen(slot=slot(3, name=2)))[0].state is State.FETCHING


def test_a_failed_trial_restores_the_last_good_model_and_quarantines_the_artifact() -> None:
    state, effects = do(
        in_state(State.TRIAL), TrialProgress(generation=2, num_good=3, num_errors=2, clean_s=0.0)
    )
    assert state.state is State.ROLLED_BACK
    assert effects == [Activate(slot=slot(1)), CollectGarbage()]
    assert state.quarantine == (slot(2).digest,)
    state, effects = do(state, DeploymentSeen(slot=slot(3, name=2)))
    assert (state.state, state.code) == (State.REJECTED, "digest-quarantined")
    assert state.serving == slot(1)
    assert Fetch not in kinds(effects)


def test_the_first_model_of_a_device_that_fails_its_trial_leaves_nothing_serving() -> None:
    state = on_trial(UpdateState(), slot(1))
    state, effects = do(state, ActivationFailed(slot=slot(1), code="model-load", message="m"))
    assert state.state is State.ROLLED_BACK
    assert StopServing() in effects


def test_bytes_lost_on_the_disk_are_fetched_again_but_not_for_ever() -> None:
    state = in_state(State.VERIFYING)
    lost = VerifyFailed(generation=2, code="artifact-missing", message="m")
    for _ in range(SETTINGS.max_refetches):
        state, effects = do(state, lost)
        assert (state.state, effects) == (State.FETCHING, [Fetch(slot=slot(2))])
        state, _ = do(state, FetchCompleted(generation=2))
    assert do(state, lost)[0].state is State.REJECTED


@pytest.mark.parametrize("code", ["artifact-missing", "artifact-altered", "manifest-missing"])
def test_bytes_lost_during_the_fetch_are_fetched_again_but_not_for_ever(code: str) -> None:
    state = in_state(State.FETCHING)
    lost = FetchFailed(generation=2, code=code, message="m")
    for _ in range(SETTINGS.max_refetches):
        state, effects = do(state, lost)
        assert (state.state, effects) == (State.FETCHING, [Fetch(slot=slot(2))])
    assert do(state, lost)[0].state is State.REJECTED


def test_a_committed_model_that_was_damaged_gives_way_to_the_one_before_and_is_fetched_again() -> None:
    state, effects = do(
        in_state(State.ACTIVE), ActivationFailed(slot=slot(2), code="artifact-altered", message="m")
    )
    assert effects == [Activate(slot=slot(1)), Fetch(slot=slot(2))]
    assert (state.state, state.serving) == (State.FETCHING, slot(1))
    assert state.generation == 2


AFTER_START = {
    State.IDLE: [CollectGarbage()],
    State.FETCHING: [Activate(slot=slot(1)), Fetch(slot=slot(2))],
    State.VERIFYING: [Activate(slot=slot(1)), Verify(slot=slot(2))],
    State.TESTING: [Activate(slot=slot(1)), SelfTest(slot=slot(2))],
    State.TRIAL: [Activate(slot=slot(2))],
    State.ACTIVE: [Activate(slot=slot(2)), CollectGarbage()],
    State.REJECTED: [Activate(slot=slot(1)), CollectGarbage()],
    State.ROLLED_BACK: [Activate(slot=slot(1)), CollectGarbage()],
}


@pytest.mark.parametrize("name", RESTING_STATES)
def test_killed_in_state(name: State) -> None:
    """What was under way goes on from its own step, and what is good serves first."""
    before = from_json(to_json(in_state(name)))
    state, effects = do(before, Started())
    assert state.state is name
    assert effects == AFTER_START[name]


def test_statuses_wait_until_they_are_delivered() -> None:
    state = active(slot(1))
    (note,) = state.outbox
    assert (note.generation, note.state, note.digest) == (1, State.ACTIVE, slot(1).digest)
    assert do(state, StatusDelivered(note=note))[0].outbox == ()
    assert do(state, StatusDelivered(note=replace(note, generation=9)))[0].outbox == (note,)


def test_only_the_newest_progress_of_a_generation_waits() -> None:
    state = in_state(State.TESTING)
    assert [(note.generation, note.state) for note in state.outbox] == [
        (1, State.ACTIVE),
        (2, State.TESTING),
    ]
