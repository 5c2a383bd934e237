"""Starts of a process that ends again and again: which model is blamed, and what serves."""

from __future__ import annotations

import pytest
from update_scenes import SETTINGS, active, do, in_state, kinds, on_trial, slot

from edge_agent.update_events import (
    Activate,
    ActivateLater,
    ActivationFailed,
    CollectGarbage,
    DeploymentSeen,
    Effect,
    Fetch,
    FetchFailed,
    Started,
    Steady,
    Stopping,
)
from edge_agent.update_state import (
    State,
    UpdateState,
    from_json,
    to_json,
)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        (State.VERIFYING, State.REJECTED),
        (State.TESTING, State.REJECTED),
        (State.TRIAL, State.ROLLED_BACK),
    ],
)
def test_a_crash_loop_ends_and_the_last_good_model_serves(name: State, ending: State) -> None:
    state = in_state(name)
    for _ in range(SETTINGS.max_starts - 1):
        state, effects = do(state, Started())
        assert state.state is name
    state, effects = do(state, Started())
    assert (state.state, state.code) == (ending, "crash-loop")
    assert Activate(slot=slot(1)) in effects
    assert (slot(2).digest in state.quarantine) == (ending is State.ROLLED_BACK)
    assert do(state, Started())[0].state is ending


@pytest.mark.parametrize("name", [State.FETCHING, State.VERIFYING, State.TESTING, State.TRIAL])
def test_stops_on_purpose_are_no_crash_loop(name: State) -> None:
    state = in_state(name)
    for _ in range(10):
        state, _ = do(state, Stopping(), Started())
    assert state.state is name


def crashed(state: UpdateState, times: int) -> tuple[UpdateState, list[Effect]]:
    """After so many processes that ended soon, in the next one."""
    return do(from_json(to_json(state)), *[Started()] * (times + 1))


def test_a_committed_model_that_ends_the_agent_three_times_gives_way_to_the_one_before() -> None:
    before = active(slot(1), slot(2))
    state, effects = crashed(before, 2)
    assert (state.state, effects[0]) == (State.ACTIVE, Activate(slot=slot(2)))
    state, effects = crashed(before, 3)
    assert (state.state, state.code) == (State.ROLLED_BACK, "crash-loop")
    assert effects == [Activate(slot=slot(1)), CollectGarbage()]
    assert state.quarantine == (slot(2).digest,)
    assert (state.committed, state.previous) == (slot(1), None)
    note = state.outbox[-1]
    assert (note.generation, note.digest, note.state, note.code) == (
        2,
        slot(2).digest,
        State.ROLLED_BACK,
        "crash-loop",
    )
    # The same artifact is not taken again, and the next crash begins a count of its own.
    assert do(state, DeploymentSeen(slot=slot(3, name=2)))[0].code == "digest-quarantined"
    assert crashed(state, 1)[1][0] == Activate(slot=slot(1))


@pytest.mark.parametrize("name", [State.FETCHING, State.REJECTED, State.ROLLED_BACK])
def test_a_crash_loop_of_the_committed_model_is_its_own_whatever_came_after_it(name: State) -> None:
    state = active(slot(1), slot(2))
    new = slot(3)
    if name is State.ROLLED_BACK:
        state, _ = do(on_trial(state, new), ActivationFailed(slot=new, code="model-load", message="m"))
    else:
        state, _ = do(state, DeploymentSeen(slot=new))
    if name is State.REJECTED:
        state, _ = do(state, FetchFailed(generation=3, code="block-altered", message="m"))
    state, effects = crashed(state, 3)
    assert (state.state, state.generation) == (name, 3)
    assert effects[0] == Activate(slot=slot(1))
    assert slot(2).digest in state.quarantine
    assert [(n.generation, n.code) for n in state.outbox if n.state is State.ROLLED_BACK][-1] == (
        2,
        "crash-loop",
    )
    if name is State.FETCHING:
        assert effects[1] == Fetch(slot=new)


def test_a_crash_loop_while_the_same_artifact_is_fetched_again_ends_that_too() -> None:
    state, _ = do(active(slot(1), slot(2)), DeploymentSeen(slot=slot(3, name=2)))
    state, effects = crashed(state, 3)
    assert (state.state, state.code, state.serving) == (State.REJECTED, "digest-quarantined", slot(1))
    assert Fetch not in kinds(effects)


def test_having_served_well_or_being_stopped_clears_the_count() -> None:
    before = active(slot(1), slot(2))
    state, _ = do(crashed(before, 2)[0], Steady())
    assert do(state, Started())[0].state is State.ACTIVE
    state = before
    for _ in range(10):
        state, _ = do(state, Started(), Stopping())
    assert do(state, Started())[1][0] == Activate(slot=slot(2))


def test_a_crash_loop_without_a_model_before_leaves_the_cloud_time_and_still_serves_in_the_end() -> None:
    state, effects = crashed(active(slot(1)), 3)
    assert (state.state, state.committed) == (State.ACTIVE, slot(1))
    assert effects == [ActivateLater(slot=slot(1)), CollectGarbage()]
    assert [note.code for note in state.outbox if note.state is State.ROLLED_BACK] == ["crash-loop"]
    again, effects = do(state, Started())
    assert effects[0] == ActivateLater(slot=slot(1))
    assert again.outbox == state.outbox
    assert do(again, Steady(), Started())[1][0] == Activate(slot=slot(1))


def test_a_state_of_an_agent_that_did_not_count_is_read() -> None:
    old = to_json(active(slot(1)))
    del old["num_unsteady"]
    assert from_json(old).num_unsteady == 0
