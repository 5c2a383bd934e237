"""Starts of the process that count against a model, and how a crash loop ends. Part of the update rules.

Rules:
- Starts in a state that may itself kill the process (verifying, testing, trial) count against the target,
  starts after which the committed model did not serve for a while against that one.
- Whoever was stopped on purpose did not crash.
- Where nothing else may serve, a suspect model is loaded late, so that the cloud is heard first.
"""

from dataclasses import replace

from edge_agent.update_events import (
    Activate,
    ActivateLater,
    CollectGarbage,
    Event,
    Fetch,
    SelfTest,
    Verify,
)
from edge_agent.update_state import State, UpdateState
from edge_agent.update_steps import (
    Step,
    UpdateSettings,
    add_note,
    enter,
    quarantined,
    reject,
    roll_back,
    serve_good,
    target_of,
)


def stopping(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    """-1 start: the one that follows a stop on purpose counts back to what it was. Once a stop is enough."""
    return replace(state, num_starts=max(state.num_starts - 1, -1)), ()


def stopping_resting(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    """Whoever is stopped on purpose did not crash: its start does not count."""
    return replace(state, num_unsteady=max(state.num_unsteady - 1, 0)), ()


def steady(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    return replace(state, num_unsteady=0), ()


def _serve_steady(state: UpdateState, now_s: float, settings: UpdateSettings) -> Step:
    """Counts this start, and what is to serve in it."""
    bad, before = state.committed, state.previous
    if bad is None:
        return state, ()
    # It need not grow for ever.
    state = replace(state, num_unsteady=min(state.num_unsteady + 1, settings.max_unsteady_starts + 2))
    if state.num_unsteady <= settings.max_unsteady_starts:
        return state, serve_good(state)
    ended = f"the agent ended {settings.max_unsteady_starts} times soon after it began to serve this"
    if before is None:
        if state.num_unsteady == settings.max_unsteady_starts + 1:
            message = f"{ended}, and no model is before it: it is loaded late from now on; deploy another"
            state = add_note(state, State.ROLLED_BACK, now_s, "crash-loop", message, slot=bad)
        return state, (ActivateLater(slot=bad),)
    state = replace(quarantined(state, bad.digest), committed=before, previous=None, num_unsteady=0)
    if state.state is State.ACTIVE:
        state = enter(state, State.ROLLED_BACK, now_s, "crash-loop", ended)
    elif bad.generation != state.generation:
        state = add_note(state, State.ROLLED_BACK, now_s, "crash-loop", ended, slot=bad)
    return state, serve_good(state)


def start_resting(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    state, serve = _serve_steady(state, now_s, settings)
    return state, (*serve, CollectGarbage())


def start_fetching(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    state, serve = _serve_steady(state, now_s, settings)
    if target_of(state).digest in state.quarantine:
        state, more = reject(
            state,
            now_s,
            "digest-quarantined",
            f"artifact {target_of(state).digest[:12]} failed on this device before; deploy another one",
        )
        return state, (*serve, *more)
    return state, (*serve, Fetch(slot=target_of(state)))


def _counted(state: UpdateState) -> UpdateState:
    return replace(state, num_starts=state.num_starts + 1)


def start_verifying(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    state = _counted(state)
    if state.num_starts >= settings.max_starts:
        ended, effects = reject(
            state,
            now_s,
            "crash-loop",
            f"the agent was killed {state.num_starts} times while it verified this",
        )
        return ended, (*serve_good(ended), *effects)
    return state, (*serve_good(state), Verify(slot=target_of(state)))


def start_testing(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    state = _counted(state)
    if state.num_starts >= settings.max_starts:
        ended, effects = reject(
            state, now_s, "crash-loop", f"the agent was killed {state.num_starts} times while it tested this"
        )
        return ended, (*serve_good(ended), *effects)
    return state, (*serve_good(state), SelfTest(slot=target_of(state)))


def start_trial(state: UpdateState, event: Event, now_s: float, settings: UpdateSettings) -> Step:
    state = _counted(state)
    if state.num_starts >= settings.max_starts:
        return roll_back(
            state,
            now_s,
            "crash-loop",
            f"the agent was killed {state.num_starts} times while this was on trial",
        )
    return state, (Activate(slot=target_of(state)),)
