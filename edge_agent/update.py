"""Which model this device runs, and how it moves from one to the next. No I/O, no clock reads.

Rules:
- One transition table; every (state, event) pair is in it.
- The newest deployment wins. An older one, or other content under a known generation, is ignored
  ("generation-old"), so lost, doubled and reordered messages are harmless. A downgrade is a *newer*
  generation that points at older content.
- What serves goes on serving until its successor has been fetched, verified and tested. A failure at any
  step leaves, or restores, the last known good.
- Damage on this device's disk is not the deployment's fault: lost bytes are fetched again, a bounded number
  of times, while another good model serves.
- A generation that was rejected or rolled back is not tried again. An artifact that failed its trial is
  quarantined on this device: no later generation brings it back.
- The caller saves the returned state before it carries out the returned effects. Every effect may be
  carried out twice: after a restart in any state, `Started` gives the effects that converge.
- Starts in a state that may itself kill the process (verifying, testing, trial) are counted. A crash loop
  ends in rejected or rolled-back.
- Starts after which the committed model does not serve for a while are counted too, in the states that blame
  nothing else. After `max_unsteady_starts` in a row the model before it serves and the digest is quarantined:
  the one case in which a generation that ended as active is reported as rolled-back after all. Where there is
  no model before it, it is loaded only after the cloud could be heard.
- Each accepted generation ends in exactly one of active, rejected, rolled-back, superseded. Statuses wait
  in the state's outbox until the report spool has them on disk.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from edge_agent.update_events import (
    EVENT_TYPES,
    Activate,
    ActivateLater,
    ActivationFailed,
    CollectGarbage,
    DeltaGivenUp,
    DeploymentSeen,
    Effect,
    Event,
    Fetch,
    FetchFailed,
    Ignored,
    SelfTest,
    SelfTestFailed,
    Started,
    StatusDelivered,
    Steady,
    StopFetch,
    Stopping,
    StopSelfTest,
    StopServing,
    TrialProgress,
    Verify,
    VerifyFailed,
)
from edge_agent.update_state import (
    TERMINAL_STATES,
    UNFINISHED_STATES,
    Slot,
    State,
    StatusNote,
    UpdateState,
)

MAX_QUARANTINE = 64
MAX_OUTBOX = 64
# What the blob store says of bytes that it cannot give back as it got them.
STORAGE_CODES = frozenset({"artifact-missing", "artifact-altered", "manifest-missing", "manifest-altered"})


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateSettings:
    trial_requests: int = 20
    trial_s: float = 30.0
    # A trial with this many failed requests is over.
    max_trial_errors: int = 3
    # A process that starts this often in one risky state is in a crash loop.
    max_starts: int = 3
    # The committed model may be followed by so many starts in a row, each of a process that did not last...
    max_unsteady_starts: int = 3
    # ...this long.
    steady_s: float = 60.0
    # Stored bytes of one generation that are lost or damaged this often mean a broken disk.
    max_refetches: int = 2


Step = tuple[UpdateState, tuple[Effect, ...]]
Handler = Callable[[UpdateState, Event, float, UpdateSettings], Step]


# --- building blocks --------------------------------------------------------------------------------


def _target(state: UpdateState) -> Slot:
    """Every state but idle has one."""
    assert state.target is not None
    return state.target


def _note(
    state: UpdateState,
    reported: State,
    now_s: float,
    code: str = "",
    message: str = "",
    slot: Slot | None = None,
) -> UpdateState:
    """Adds a status of the slot (the target) to the outbox, which keeps endings longer than progress."""
    slot = slot or _target(state)
    note = StatusNote(
        generation=slot.generation,
        digest=slot.digest,
        state=reported,
        code=code,
        message=message,
        event_s=now_s,
    )
    # Only the newest word about how far the same generation has come is worth sending.
    outbox = tuple(
        old for old in state.outbox if old.generation != note.generation or old.state in TERMINAL_STATES
    )
    return replace(state, outbox=(*outbox, note)[-MAX_OUTBOX:])


def _enter(state: UpdateState, new: State, now_s: float, code: str = "", message: str = "") -> UpdateState:
    moved = replace(state, state=new, num_starts=0, code=code, message=message)
    return _note(moved, new, now_s, code, message)


def _serve_good(state: UpdateState) -> tuple[Effect, ...]:
    return (Activate(slot=state.committed),) if state.committed else ()


def _reject(state: UpdateState, now_s: float, code: str, message: str) -> Step:
    return _enter(state, State.REJECTED, now_s, code, message), (CollectGarbage(),)


def _quarantined(state: UpdateState, digest: str) -> UpdateState:
    others = [known for known in state.quarantine if known != digest]
    return replace(state, quarantine=(*others, digest)[-MAX_QUARANTINE:])


def _roll_back(state: UpdateState, now_s: float, code: str, message: str) -> Step:
    back = _enter(_quarantined(state, _target(state).digest), State.ROLLED_BACK, now_s, code, message)
    serve: tuple[Effect, ...] = _serve_good(back) or (StopServing(),)
    return back, (*serve, CollectGarbage())


def _commit(state: UpdateState, now_s: float) -> Step:
    committed, previous = state.committed, state.previous
    # The same artifact under a new generation is no predecessor to return to.
    if committed is not None and committed.digest != _target(state).digest:
        previous = committed
    done = replace(state, committed=_target(state), previous=previous, num_unsteady=0)
    return _enter(done, State.ACTIVE, now_s), (CollectGarbage(),)


# --- handlers ---------------------------------------------------------------------------------------


def _ignore(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    return state, ()


def _deployment(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    assert isinstance(event, DeploymentSeen)
    new, old = event.slot, state.target
    if old is not None and new.generation <= old.generation:
        if new.generation == old.generation and new.same_content(old):
            return state, ()
        return state, (
            Ignored(
                generation=new.generation,
                digest=new.digest,
                code="generation-old",
                message=f"generation {new.generation} was ignored: this device is at {old.generation}",
            ),
        )
    effects: list[Effect] = []
    if state.state in UNFINISHED_STATES:
        state = _note(
            state,
            State.SUPERSEDED,
            now_s,
            "superseded",
            f"generation {new.generation} came before this ended",
        )
        stop: dict[State, Effect] = {State.FETCHING: StopFetch(), State.TESTING: StopSelfTest()}
        if state.state in stop:
            effects.append(stop[state.state])
        elif state.state is State.TRIAL:
            # An unproven model does not go on serving when nobody waits for its proof any more; but
            # without a good one it is the best there is.
            effects.extend(_serve_good(state))
    accepted = replace(state, target=new, num_refetches=0)
    if new.digest in state.quarantine:
        rejected, more = _reject(
            accepted,
            now_s,
            "digest-quarantined",
            f"artifact {new.digest[:12]} failed on this device before; deploy another one",
        )
        return rejected, (*effects, *more)
    return _enter(accepted, State.FETCHING, now_s), (*effects, Fetch(slot=new))


def _fetched(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    return _enter(state, State.VERIFYING, now_s), (Verify(slot=_target(state)),)


def _verified(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    if state.committed is not None and state.committed.digest == _target(state).digest:
        # The bytes that serve already, under a new generation: proven here, nothing to try out.
        done, effects = _commit(state, now_s)
        return done, (Activate(slot=_target(state)), *effects)
    return _enter(state, State.TESTING, now_s), (SelfTest(slot=_target(state)),)


def _tested(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    return _enter(state, State.TRIAL, now_s), (Activate(slot=_target(state)),)


def _failed(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    assert isinstance(event, FetchFailed | SelfTestFailed)
    return _reject(state, now_s, event.code, event.message)


def _delta_given_up(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    assert isinstance(event, DeltaGivenUp)
    return _note(state, State.FETCHING, now_s, event.code, event.message), ()


def _refetch(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    """The stored bytes are not what was stored: the disk lost them, the deployment is not to blame."""
    assert isinstance(event, VerifyFailed | ActivationFailed)
    if event.code not in STORAGE_CODES or state.num_refetches >= settings.max_refetches:
        return _reject(state, now_s, event.code, event.message)
    again = _enter(state, State.FETCHING, now_s, event.code, event.message)
    return replace(again, num_refetches=state.num_refetches + 1), (Fetch(slot=_target(state)),)


def _progress(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    assert isinstance(event, TrialProgress)
    if event.num_errors >= settings.max_trial_errors:
        return _roll_back(
            state,
            now_s,
            "trial-errors",
            f"{event.num_errors} of {event.num_good + event.num_errors} requests failed on trial",
        )
    if event.num_good >= settings.trial_requests or event.clean_s >= settings.trial_s:
        return _commit(state, now_s)
    return state, ()


def _activation_failed(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    """The last known good does not load (its file was damaged): fall back to the one before it."""
    assert isinstance(event, ActivationFailed)
    bad = event.slot
    if state.committed is None or bad.digest != state.committed.digest:
        if state.previous is not None and bad.digest == state.previous.digest:
            return replace(state, previous=None), ()
        return state, ()
    fallen = replace(state, committed=state.previous, previous=None, num_unsteady=0)
    serve: tuple[Effect, ...] = _serve_good(fallen) or (StopServing(),)
    if state.state is State.ACTIVE:
        # The target itself is what was damaged, and the cloud still has it.
        return _enter(fallen, State.FETCHING, now_s, event.code, event.message), (
            *serve,
            Fetch(slot=_target(state)),
        )
    return fallen, serve


def _trial_activation_failed(
    state: UpdateState, event: Event, now_s: float, settings: UpdateSettings
) -> Step:
    assert isinstance(event, ActivationFailed)
    if event.slot.digest == _target(state).digest:
        if event.code in STORAGE_CODES:
            fetching, effects = _refetch(state, event, now_s, settings)
            return fetching, (*_serve_good(fetching), *effects)
        return _roll_back(state, now_s, event.code, event.message)
    return _activation_failed(state, event, now_s, settings)


def _delivered(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    assert isinstance(event, StatusDelivered)
    return replace(state, outbox=tuple(note for note in state.outbox if note != event.note)), ()


def _stopping(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    """-1 start: the one that follows a stop on purpose counts back to what it was. Once a stop is enough."""
    return replace(state, num_starts=max(state.num_starts - 1, -1)), ()


def _stopping_resting(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    """Whoever is stopped on purpose did not crash: its start does not count."""
    return replace(state, num_unsteady=max(state.num_unsteady - 1, 0)), ()


def _steady(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    return replace(state, num_unsteady=0), ()


def _serve_steady(state: UpdateState, now_s: float, settings: UpdateSettings) -> Step:
    """Counts this start, and what is to serve in it."""
    bad, before = state.committed, state.previous
    if bad is None:
        return state, ()
    # It need not grow for ever.
    state = replace(state, num_unsteady=min(state.num_unsteady + 1, settings.max_unsteady_starts + 2))
    if state.num_unsteady <= settings.max_unsteady_starts:
        return state, _serve_good(state)
    ended = f"the agent ended {settings.max_unsteady_starts} times soon after it began to serve this"
    if before is None:
        if state.num_unsteady == settings.max_unsteady_starts + 1:
            message = f"{ended}, and no model is before it: it is loaded late from now on; deploy another"
            state = _note(state, State.ROLLED_BACK, now_s, "crash-loop", message, slot=bad)
        return state, (ActivateLater(slot=bad),)
    state = replace(_quarantined(state, bad.digest), committed=before, previous=None, num_unsteady=0)
    if state.state is State.ACTIVE:
        state = _enter(state, State.ROLLED_BACK, now_s, "crash-loop", ended)
    elif bad.generation != state.generation:
        state = _note(state, State.ROLLED_BACK, now_s, "crash-loop", ended, slot=bad)
    return state, _serve_good(state)


def _start_resting(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    state, serve = _serve_steady(state, now_s, settings)
    return state, (*serve, CollectGarbage())


def _start_fetching(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    state, serve = _serve_steady(state, now_s, settings)
    if _target(state).digest in state.quarantine:
        state, more = _reject(
            state,
            now_s,
            "digest-quarantined",
            f"artifact {_target(state).digest[:12]} failed on this device before; deploy another one",
        )
        return state, (*serve, *more)
    return state, (*serve, Fetch(slot=_target(state)))


def _counted(state: UpdateState) -> UpdateState:
    return replace(state, num_starts=state.num_starts + 1)


def _start_verifying(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    state = _counted(state)
    if state.num_starts >= settings.max_starts:
        rejected, effects = _reject(
            state,
            now_s,
            "crash-loop",
            f"the agent was killed {state.num_starts} times while it verified this",
        )
        return rejected, (*_serve_good(rejected), *effects)
    return state, (*_serve_good(state), Verify(slot=_target(state)))


def _start_testing(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    state = _counted(state)
    if state.num_starts >= settings.max_starts:
        rejected, effects = _reject(
            state, now_s, "crash-loop", f"the agent was killed {state.num_starts} times while it tested this"
        )
        return rejected, (*_serve_good(rejected), *effects)
    return state, (*_serve_good(state), SelfTest(slot=_target(state)))


def _start_trial(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    state = _counted(state)
    if state.num_starts >= settings.max_starts:
        return _roll_back(
            state,
            now_s,
            "crash-loop",
            f"the agent was killed {state.num_starts} times while this was on trial",
        )
    return state, (Activate(slot=_target(state)),)


def _row(**handlers: Handler) -> dict[type[Event], Handler]:
    """One state's row: what every state does alike, and what this one does otherwise."""
    row: dict[type[Event], Handler] = dict.fromkeys(EVENT_TYPES, _ignore)
    row.update(
        {
            DeploymentSeen: _deployment,
            StatusDelivered: _delivered,
            ActivationFailed: _activation_failed,
            Started: _start_resting,
            Steady: _steady,
            Stopping: _stopping_resting,
        }
    )
    names = {event.__name__: event for event in EVENT_TYPES}
    row.update({names[name]: handler for name, handler in handlers.items()})
    return row


TABLE: Mapping[State, Mapping[type[Event], Handler]] = {
    State.IDLE: _row(),
    State.FETCHING: _row(
        Started=_start_fetching, FetchCompleted=_fetched, FetchFailed=_failed, DeltaGivenUp=_delta_given_up
    ),
    State.VERIFYING: _row(
        Started=_start_verifying, Stopping=_stopping, Verified=_verified, VerifyFailed=_refetch
    ),
    State.TESTING: _row(
        Started=_start_testing,
        Stopping=_stopping,
        SelfTestPassed=_tested,
        SelfTestFailed=_failed,
        VerifyFailed=_refetch,
    ),
    State.TRIAL: _row(
        Started=_start_trial,
        Stopping=_stopping,
        TrialProgress=_progress,
        ActivationFailed=_trial_activation_failed,
    ),
    State.ACTIVE: _row(),
    State.REJECTED: _row(),
    State.ROLLED_BACK: _row(),
}


def step(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    """The next state, to be saved first, and the effects to carry out after that.

    An event that belongs to another generation than the present target came too late and does nothing.
    """
    generation = getattr(event, "generation", None)
    if generation is not None and generation != state.generation:
        return state, ()
    return TABLE[state.state][type(event)](state, event, now_s, settings)
