"""A device in each state of the update rules, for the tests of these."""

from __future__ import annotations

from edge_agent.update import step
from edge_agent.update_events import (
    ActivationFailed,
    DeltaGivenUp,
    DeploymentSeen,
    Effect,
    Event,
    FetchCompleted,
    FetchFailed,
    SelfTestFailed,
    SelfTestPassed,
    Started,
    StatusDelivered,
    Steady,
    Stopping,
    TrialProgress,
    Verified,
    VerifyFailed,
)
from edge_agent.update_state import (
    Slot,
    State,
    StatusNote,
    UpdateState,
)
from edge_agent.update_steps import UpdateSettings

SETTINGS = UpdateSettings(trial_requests=5, trial_s=10.0, max_trial_errors=2, max_starts=3)
NOW_S = 1000.0


def slot(generation: int, name: int | None = None) -> Slot:
    digest = f"{name if name is not None else generation:064x}"
    return Slot(
        generation=generation,
        digest=digest,
        manifest_digest="f" + digest[1:],
        workload="tiny",
        profile="small",
        signed=b"signed",
    )


def do(state: UpdateState, *events: Event) -> tuple[UpdateState, list[Effect]]:
    """The state after the events, and the effects of the last."""
    effects: tuple[Effect, ...] = ()
    for event in events:
        state, effects = step(state, event, NOW_S, SETTINGS)
    return state, list(effects)


def good(generation: int, num_good: int = 5) -> TrialProgress:
    return TrialProgress(generation=generation, num_good=num_good, num_errors=0, clean_s=0.0)


def on_trial(state: UpdateState, new: Slot) -> UpdateState:
    generation = new.generation
    return do(
        state,
        DeploymentSeen(slot=new),
        FetchCompleted(generation=generation),
        Verified(generation=generation),
        SelfTestPassed(generation=generation),
    )[0]


def active(*slots: Slot) -> UpdateState:
    state = UpdateState()
    for each in slots:
        state = do(on_trial(state, each), good(each.generation))[0]
    return state


def in_state(name: State) -> UpdateState:
    """A device that serves generation 1 and is in this state with generation 2."""
    first, second = active(slot(1)), slot(2)
    match name:
        case State.IDLE:
            return UpdateState()
        case State.ACTIVE:
            return active(slot(1), second)
        case State.FETCHING:
            return do(first, DeploymentSeen(slot=second))[0]
        case State.VERIFYING:
            return do(in_state(State.FETCHING), FetchCompleted(generation=2))[0]
        case State.TESTING:
            return do(in_state(State.VERIFYING), Verified(generation=2))[0]
        case State.TRIAL:
            return on_trial(first, second)
        case State.REJECTED:
            return do(in_state(State.TESTING), SelfTestFailed(generation=2, code="c", message="m"))[0]
        case State.ROLLED_BACK:
            errors = TrialProgress(generation=2, num_good=0, num_errors=2, clean_s=0.0)
            return do(in_state(State.TRIAL), errors)[0]
        case _:
            raise AssertionError(name)


def examples(state: UpdateState) -> dict[type[Event], Event]:
    """One event of each kind that fits the state's own generation."""
    generation = state.generation
    note = StatusNote(generation=generation, digest="0" * 64, state=State.ACTIVE, event_s=NOW_S)
    found: list[Event] = [
        Started(),
        Stopping(),
        Steady(),
        DeploymentSeen(slot=slot(generation + 1)),
        FetchCompleted(generation=generation),
        FetchFailed(generation=generation, code="c", message="m"),
        DeltaGivenUp(generation=generation, code="delta-base", message="m"),
        Verified(generation=generation),
        VerifyFailed(generation=generation, code="artifact-missing", message="m"),
        SelfTestPassed(generation=generation),
        SelfTestFailed(generation=generation, code="c", message="m"),
        ActivationFailed(slot=state.committed or slot(9), code="c", message="m"),
        good(generation),
        StatusDelivered(note=note),
    ]
    return {type(event): event for event in found}


def kinds(effects: list[Effect]) -> set[type[Effect]]:
    return {type(effect) for effect in effects}
