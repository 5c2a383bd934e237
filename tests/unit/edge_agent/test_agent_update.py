"""The update rules, without disk, network or clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from update_scenes import NOW_S, SETTINGS, active, do, examples, good, in_state, kinds, on_trial, slot

from edge_agent.update import TABLE, step
from edge_agent.update_events import (
    EVENT_TYPES,
    Activate,
    ActivateLater,
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
    Stopping,
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

# --- the table --------------------------------------------------------------------------------------


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


# --- the way through --------------------------------------------------------------------------------


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


# --- failures ---------------------------------------------------------------------------------------


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


# --- killed in each state ---------------------------------------------------------------------------

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


# --- statuses ---------------------------------------------------------------------------------------


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


# --- any order of anything --------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """A device in a world that kills, repeats, reorders and breaks; its shell does as the effects say."""

    def __init__(self) -> None:
        super().__init__()
        self.state = UpdateState()
        # Digests whose bytes are on the disk, and whether this process has something to serve.
        self.serving: Slot | None = None
        self.had_good = False
        self.broken: set[str] = set()
        self.wanted: dict[str, str] = {}
        self.max_generation = 0
        self.endings: dict[int, list[State]] = {}
        self.verified: set[str] = set()

    def feed(self, event: Event) -> None:
        before = self.state
        new, effects = step(before, event, NOW_S, SETTINGS)
        self.state = from_json(to_json(new))
        fresh = [note for note in self.state.outbox if note not in before.outbox]
        for note in fresh:
            if note.state in TERMINAL_STATES:
                self.endings.setdefault(note.generation, []).append(note.state)
        if isinstance(event, Verified) and self.state != before and before.target:
            self.verified.add(before.target.digest)
        for effect in effects:
            match effect:
                # Later is a minute, and then it serves; here that is now.
                case Activate(slot=found) | ActivateLater(slot=found):
                    if found.digest in self.broken:
                        self.feed(ActivationFailed(slot=found, code="model-load", message="m"))
                    else:
                        self.serving = found
                case StopServing():
                    self.serving = None
        self.had_good = self.had_good or self.state.committed is not None

    @property
    def generation(self) -> int:
        return self.state.generation

    @rule(generation=st.integers(1, 12), name=st.integers(1, 5))
    def deployment_arrives(self, generation: int, name: int) -> None:
        self.feed(DeploymentSeen(slot=slot(generation, name)))

    @rule(ahead=st.integers(1, 2), name=st.integers(1, 5))
    def newer_deployment_arrives(self, ahead: int, name: int) -> None:
        self.feed(DeploymentSeen(slot=slot(self.generation + ahead, name)))

    @initialize(name=st.integers(1, 5))
    def has_a_good_model(self, name: int) -> None:
        self.feed(DeploymentSeen(slot=slot(1, name)))
        self.steps_succeed(late=False, num=4)

    @rule(late=st.booleans(), num=st.integers(1, 4))
    def steps_succeed(self, late: bool, num: int) -> None:
        for _ in range(num):
            generation = self.generation - late
            done: dict[State, Event] = {
                State.FETCHING: FetchCompleted(generation=generation),
                State.VERIFYING: Verified(generation=generation),
                State.TESTING: SelfTestPassed(generation=generation),
                State.TRIAL: good(generation),
            }
            if self.state.state in done:
                self.feed(done[self.state.state])

    @rule(code=st.sampled_from(["block-altered", "artifact-missing", "self-test-crash"]))
    def the_step_fails(self, code: str) -> None:
        generation = self.generation
        failures: dict[State, Event] = {
            State.FETCHING: FetchFailed(generation=generation, code=code, message="m"),
            State.VERIFYING: VerifyFailed(generation=generation, code=code, message="m"),
            State.TESTING: SelfTestFailed(generation=generation, code=code, message="m"),
            State.TRIAL: TrialProgress(generation=generation, num_good=0, num_errors=2, clean_s=0.0),
        }
        if self.state.state in failures:
            self.feed(failures[self.state.state])

    @rule(index=st.integers(0, len(EVENT_TYPES) - 1))
    def anything_arrives(self, index: int) -> None:
        event = examples(self.state)[EVENT_TYPES[index]]
        # What only the shell itself may say, it says truthfully.
        if not isinstance(event, Started | ActivationFailed | Verified):
            self.feed(event)

    @rule(clean=st.booleans())
    def the_process_ends_and_starts(self, clean: bool) -> None:
        if clean:
            self.feed(Stopping())
        self.serving = None
        self.feed(Started())

    @precondition(lambda self: self.state.state is State.TRIAL)
    @rule()
    def the_target_does_not_load(self) -> None:
        target = self.state.target
        assert target is not None
        if self.state.committed is None or target.digest != self.state.committed.digest:
            self.feed(ActivationFailed(slot=target, code="model-load", message="m"))

    @invariant()
    def a_generation_never_goes_down(self) -> None:
        assert self.generation >= self.max_generation
        self.max_generation = self.generation

    @invariant()
    def what_serves_was_verified(self) -> None:
        if self.serving is not None:
            assert self.serving.digest in self.verified

    @invariant()
    def a_device_that_had_a_good_model_serves_one(self) -> None:
        if self.had_good:
            assert self.serving is not None
            assert self.state.committed is not None

    @invariant()
    def nothing_quarantined_is_the_target_of_an_attempt(self) -> None:
        if self.state.state in (State.FETCHING, State.VERIFYING, State.TESTING, State.TRIAL):
            assert self.state.target is not None
            assert self.state.target.digest not in self.state.quarantine

    @invariant()
    def each_generation_ends_at_most_once(self) -> None:
        for generation, endings in self.endings.items():
            # The second of a pair takes back the first: the committed model ended the agent at its starts.
            gave_up = [State.ACTIVE, State.ROLLED_BACK]
            assert len(endings) == 1 or endings == gave_up, (generation, endings)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
