"""What the agent knows of its deployments, as one value that survives a restart.

Rules:
- Immutable, and with a JSON form that carries a version. A form that is newer, or that says something
  impossible, is refused (ValueError), never guessed at.
- `target` is the newest accepted deployment: its generation is the device's, and never goes down.
- `committed` proved itself on this device; `previous` did before it. Both stay on the disk.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

FORMAT_VERSION = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")


class State(StrEnum):
    """SUPERSEDED is only reported of a generation that lost its place; the machine never rests in it."""

    IDLE = "idle"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    TESTING = "testing"
    TRIAL = "trial"
    ACTIVE = "active"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled-back"
    SUPERSEDED = "superseded"


RESTING_STATES = tuple(state for state in State if state is not State.SUPERSEDED)
TERMINAL_STATES = frozenset({State.ACTIVE, State.REJECTED, State.ROLLED_BACK, State.SUPERSEDED})
# A newer deployment in one of these ends the one before as superseded.
UNFINISHED_STATES = frozenset({State.FETCHING, State.VERIFYING, State.TESTING, State.TRIAL})


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One verified deployment: what to run, and the signed bytes that say so."""

    generation: int
    digest: str
    manifest_digest: str
    workload: str
    profile: str
    # The SignedDeployment as it came, so that `verify` can check the signature again.
    signed: bytes

    def same_content(self, other: "Slot") -> bool:
        return (self.digest, self.manifest_digest, self.workload, self.profile) == (
            other.digest,
            other.manifest_digest,
            other.workload,
            other.profile,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusNote:
    """One DeploymentStatus on its way to the cloud."""

    generation: int
    digest: str
    state: State
    code: str = ""
    message: str = ""
    event_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateState:
    """All that must survive a restart."""

    state: State = State.IDLE
    target: Slot | None = None
    committed: Slot | None = None
    previous: Slot | None = None
    # Starts of the process that found the machine in its present state.
    num_starts: int = 0
    # Starts in a row after which the committed model did not serve for long.
    num_unsteady: int = 0
    # How often the target's stored bytes were lost or damaged and had to be fetched again.
    num_refetches: int = 0
    # Why the target was rejected or rolled back.
    code: str = ""
    message: str = ""
    # Digests that failed their trial here, oldest first.
    quarantine: tuple[str, ...] = ()
    outbox: tuple[StatusNote, ...] = ()

    @property
    def generation(self) -> int:
        return self.target.generation if self.target else 0

    @property
    def serving(self) -> Slot | None:
        """What should answer requests in this state."""
        return self.target if self.state in (State.TRIAL, State.ACTIVE) else self.committed

    @property
    def kept(self) -> tuple[Slot, ...]:
        """Whose manifest, blocks and artifact garbage collection must leave alone."""
        wanted = self.target if self.state not in (State.REJECTED, State.ROLLED_BACK) else None
        return tuple(slot for slot in (wanted, self.committed, self.previous) if slot is not None)


# --- JSON -------------------------------------------------------------------------------------------


def _slot_json(slot: Slot | None) -> dict[str, object] | None:
    if slot is None:
        return None
    return {
        "generation": slot.generation,
        "digest": slot.digest,
        "manifest_digest": slot.manifest_digest,
        "workload": slot.workload,
        "profile": slot.profile,
        "signed": base64.b64encode(slot.signed).decode("ascii"),
    }


def to_json(state: UpdateState) -> dict[str, object]:
    return {
        "format_version": FORMAT_VERSION,
        "state": state.state.value,
        "target": _slot_json(state.target),
        "committed": _slot_json(state.committed),
        "previous": _slot_json(state.previous),
        "num_starts": state.num_starts,
        "num_unsteady": state.num_unsteady,
        "num_refetches": state.num_refetches,
        "code": state.code,
        "message": state.message,
        "quarantine": list(state.quarantine),
        "outbox": [
            {
                "generation": note.generation,
                "digest": note.digest,
                "state": note.state.value,
                "code": note.code,
                "message": note.message,
                "event_s": note.event_s,
            }
            for note in state.outbox
        ],
    }


def _text(data: Mapping[str, object], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected a text")
    return value


def _digest(data: Mapping[str, object], key: str) -> str:
    value = _text(data, key)
    if not _DIGEST.fullmatch(value):
        raise ValueError(f"{key}: expected a sha256 in lower-case hex")
    return value


def _count(data: Mapping[str, object], key: str) -> int:
    value = data.get(key)
    # -1 is a start that was taken back before it happened; see update.Stopping.
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise ValueError(f"{key}: expected a whole number")
    return value


def _list(data: Mapping[str, object], key: str) -> list[object]:
    value = data.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{key}: expected a list")
    return value


def _slot(data: Mapping[str, object], key: str) -> Slot | None:
    value = data.get(key)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{key}: expected an object")
    try:
        signed = base64.b64decode(_text(value, "signed"), validate=True)
    except binascii.Error as error:
        raise ValueError(f"{key}.signed: expected base64") from error
    return Slot(
        generation=_count(value, "generation"),
        digest=_digest(value, "digest"),
        manifest_digest=_digest(value, "manifest_digest"),
        workload=_text(value, "workload"),
        profile=_text(value, "profile"),
        signed=signed,
    )


def _note(value: object) -> StatusNote:
    if not isinstance(value, dict):
        raise ValueError("outbox: expected objects")
    event_s = value.get("event_s")
    if isinstance(event_s, bool) or not isinstance(event_s, int | float):
        raise ValueError("outbox.event_s: expected a number")
    return StatusNote(
        generation=_count(value, "generation"),
        digest=_digest(value, "digest"),
        state=State(_text(value, "state")),
        code=_text(value, "code"),
        message=_text(value, "message"),
        event_s=float(event_s),
    )


def from_json(data: object) -> UpdateState:
    if not isinstance(data, dict):
        raise ValueError("expected an object")
    if data.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"format_version: expected {FORMAT_VERSION}, found {data.get('format_version')!r}")
    state = UpdateState(
        state=State(_text(data, "state")),
        target=_slot(data, "target"),
        committed=_slot(data, "committed"),
        previous=_slot(data, "previous"),
        num_starts=_count(data, "num_starts"),
        # Agents before it was counted wrote none.
        num_unsteady=_count(data, "num_unsteady") if "num_unsteady" in data else 0,
        num_refetches=_count(data, "num_refetches"),
        code=_text(data, "code"),
        message=_text(data, "message"),
        quarantine=tuple(str(item) for item in _list(data, "quarantine")),
        outbox=tuple(_note(item) for item in _list(data, "outbox")),
    )
    if state.state is State.SUPERSEDED or (state.state is State.IDLE) != (state.target is None):
        raise ValueError(f"state: {state.state.value} is impossible with this target")
    return state
