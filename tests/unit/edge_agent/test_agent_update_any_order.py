"""The update rules under events in any order."""

from __future__ import annotations

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from update_scenes import NOW_S, SETTINGS, examples, good, slot

from edge_agent.update import step
from edge_agent.update_events import (
    EVENT_TYPES,
    Activate,
    ActivateLater,
    ActivationFailed,
    DeploymentSeen,
    Event,
    FetchCompleted,
    FetchFailed,
    SelfTestFailed,
    SelfTestPassed,
    Started,
    Stopping,
    StopServing,
    TrialProgress,
    Verified,
    VerifyFailed,
)
from edge_agent.update_state import (
    TERMINAL_STATES,
    Slot,
    State,
    UpdateState,
    from_json,
    to_json,
)


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
