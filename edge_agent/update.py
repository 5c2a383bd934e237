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

from collections.abc import Mapping
from dataclasses import replace

from edge_agent.crash_loop import (
    start_fetching,
    start_resting,
    start_testing,
    start_trial,
    start_verifying,
    steady,
    stopping,
    stopping_resting,
)
from edge_agent.update_events import (
    EVENT_TYPES,
    Activate,
    ActivationFailed,
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
    UNFINISHED_STATES,
    State,
    UpdateState,
)
from edge_agent.update_steps import (
    Handler,
    Step,
    UpdateSettings,
    add_note,
    commit,
    enter,
    reject,
    roll_back,
    serve_good,
    target_of,
)

# What the blob store says of bytes that it cannot give back as it got them.
STORAGE_CODES = frozenset({"artifact-missing", "artifact-altered", "manifest-missing", "manifest-altered"})
# The same during a fetch, where an altered manifest is its sender's.
LOST_CODES = STORAGE_CODES - {"manifest-altered"}


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
        state = add_note(
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
            effects.extend(serve_good(state))
    accepted = replace(state, target=new, num_refetches=0)
    if new.digest in state.quarantine:
        ended, more = reject(
            accepted,
            now_s,
            "digest-quarantined",
            f"artifact {new.digest[:12]} failed on this device before; deploy another one",
        )
        return ended, (*effects, *more)
    return enter(accepted, State.FETCHING, now_s), (*effects, Fetch(slot=new))


def _fetched(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    return enter(state, State.VERIFYING, now_s), (Verify(slot=target_of(state)),)


def _verified(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    if state.committed is not None and state.committed.digest == target_of(state).digest:
        # The bytes that serve already, under a new generation: proven here, nothing to try out.
        done, effects = commit(state, now_s)
        return done, (Activate(slot=target_of(state)), *effects)
    return enter(state, State.TESTING, now_s), (SelfTest(slot=target_of(state)),)


def _tested(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    return enter(state, State.TRIAL, now_s), (Activate(slot=target_of(state)),)


def _failed(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    assert isinstance(event, SelfTestFailed)
    return reject(state, now_s, event.code, event.message)


def _fetch_failed(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    assert isinstance(event, FetchFailed)
    if event.code in LOST_CODES:
        return _refetch(state, event, now_s, settings)
    return reject(state, now_s, event.code, event.message)


def _delta_given_up(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    assert isinstance(event, DeltaGivenUp)
    return add_note(state, State.FETCHING, now_s, event.code, event.message), ()


def _refetch(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    """The stored bytes are not what was stored: the disk lost them, the deployment is not to blame."""
    assert isinstance(event, FetchFailed | VerifyFailed | ActivationFailed)
    if event.code not in STORAGE_CODES or state.num_refetches >= settings.max_refetches:
        return reject(state, now_s, event.code, event.message)
    again = enter(state, State.FETCHING, now_s, event.code, event.message)
    return replace(again, num_refetches=state.num_refetches + 1), (Fetch(slot=target_of(state)),)


def _progress(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    assert isinstance(event, TrialProgress)
    if event.num_errors >= settings.max_trial_errors:
        return roll_back(
            state,
            now_s,
            "trial-errors",
            f"{event.num_errors} of {event.num_good + event.num_errors} requests failed on trial",
        )
    if event.num_good >= settings.trial_requests or event.clean_s >= settings.trial_s:
        return commit(state, now_s)
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
    serve: tuple[Effect, ...] = serve_good(fallen) or (StopServing(),)
    if state.state is State.ACTIVE:
        # The target itself is what was damaged, and the cloud still has it.
        return enter(fallen, State.FETCHING, now_s, event.code, event.message), (
            *serve,
            Fetch(slot=target_of(state)),
        )
    return fallen, serve


def _trial_activation_failed(
    state: UpdateState, event: Event, now_s: float, settings: UpdateSettings
) -> Step:
    assert isinstance(event, ActivationFailed)
    if event.slot.digest == target_of(state).digest:
        if event.code in STORAGE_CODES:
            fetching, effects = _refetch(state, event, now_s, settings)
            return fetching, (*serve_good(fetching), *effects)
        return roll_back(state, now_s, event.code, event.message)
    return _activation_failed(state, event, now_s, settings)


def _delivered(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    assert isinstance(event, StatusDelivered)
    return replace(state, outbox=tuple(note for note in state.outbox if note != event.note)), ()


def _row(**handlers: Handler) -> dict[type[Event], Handler]:
    """One state's row: what every state does alike, and what this one does otherwise."""
    row: dict[type[Event], Handler] = dict.fromkeys(EVENT_TYPES, _ignore)
    row.update(
        {
            DeploymentSeen: _deployment,
            StatusDelivered: _delivered,
            ActivationFailed: _activation_failed,
            Started: start_resting,
            Steady: steady,
            Stopping: stopping_resting,
        }
    )
    names = {event.__name__: event for event in EVENT_TYPES}
    row.update({names[name]: handler for name, handler in handlers.items()})
    return row


TABLE: Mapping[State, Mapping[type[Event], Handler]] = {
    State.IDLE: _row(),
    State.FETCHING: _row(
        Started=start_fetching,
        FetchCompleted=_fetched,
        FetchFailed=_fetch_failed,
        DeltaGivenUp=_delta_given_up,
    ),
    State.VERIFYING: _row(
        Started=start_verifying, Stopping=stopping, Verified=_verified, VerifyFailed=_refetch
    ),
    State.TESTING: _row(
        Started=start_testing,
        Stopping=stopping,
        SelfTestPassed=_tested,
        SelfTestFailed=_failed,
        VerifyFailed=_refetch,
    ),
    State.TRIAL: _row(
        Started=start_trial,
        Stopping=stopping,
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
