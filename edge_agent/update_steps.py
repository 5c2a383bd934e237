"""What every step of the update rules is made of: entering a state, noting it for the cloud, ending in one.

Rule: pure, as the rules are. Each takes a state and gives the next one, with the effects that follow from it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from edge_agent.update_events import Activate, CollectGarbage, Effect, Event, StopServing
from edge_agent.update_state import TERMINAL_STATES, Slot, State, StatusNote, UpdateState

MAX_QUARANTINE = 64
MAX_OUTBOX = 64


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


def target_of(state: UpdateState) -> Slot:
    """Every state but idle has one."""
    assert state.target is not None
    return state.target


def add_note(
    state: UpdateState,
    reported: State,
    now_s: float,
    code: str = "",
    message: str = "",
    slot: Slot | None = None,
) -> UpdateState:
    """Adds a status of the slot (the target) to the outbox, which keeps endings longer than progress."""
    slot = slot or target_of(state)
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


def enter(state: UpdateState, new: State, now_s: float, code: str = "", message: str = "") -> UpdateState:
    moved = replace(state, state=new, num_starts=0, code=code, message=message)
    return add_note(moved, new, now_s, code, message)


def serve_good(state: UpdateState) -> tuple[Effect, ...]:
    return (Activate(slot=state.committed),) if state.committed else ()


def reject(state: UpdateState, now_s: float, code: str, message: str) -> Step:
    return enter(state, State.REJECTED, now_s, code, message), (CollectGarbage(),)


def quarantined(state: UpdateState, digest: str) -> UpdateState:
    others = [known for known in state.quarantine if known != digest]
    return replace(state, quarantine=(*others, digest)[-MAX_QUARANTINE:])


def roll_back(state: UpdateState, now_s: float, code: str, message: str) -> Step:
    back = enter(quarantined(state, target_of(state).digest), State.ROLLED_BACK, now_s, code, message)
    serve: tuple[Effect, ...] = serve_good(back) or (StopServing(),)
    return back, (*serve, CollectGarbage())


def commit(state: UpdateState, now_s: float) -> Step:
    committed, previous = state.committed, state.previous
    # The same artifact under a new generation is no predecessor to return to.
    if committed is not None and committed.digest != target_of(state).digest:
        previous = committed
    done = replace(state, committed=target_of(state), previous=previous, num_unsteady=0)
    return enter(done, State.ACTIVE, now_s), (CollectGarbage(),)
