"""What happens to an update, and what is to be done about it: the words between `update` and the agent.

Rules:
- Events and effects are values. An event about an attempt carries its generation, so that an answer that
  comes too late is recognised.
- Every effect may be carried out twice.
"""

from dataclasses import dataclass

from edge_agent.update_state import Slot, StatusNote

# The code of a failure that nobody foresaw.
INTERNAL = "update-internal"

# --- events -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The process has started and read its state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """The process is being stopped on purpose: the next start is not one of a crash loop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Steady:
    """The committed model has served in this process for long enough not to be what ends it at its start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeploymentSeen:
    """A deployment for this device whose signature and expiry were checked."""

    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchCompleted:
    generation: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchFailed:
    generation: int
    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaGivenUp:
    """The offered delta was of no use here; the artifact itself is being fetched."""

    generation: int
    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """The stored bytes were read back and match the manifest and the deployment."""

    generation: int


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyFailed:
    """Storage codes mean damage on this device; any other code means that the content is refused."""

    generation: int
    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTestPassed:
    generation: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTestFailed:
    generation: int
    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationFailed:
    """The slot could not be loaded for serving; what served before still does."""

    slot: Slot
    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialProgress:
    """Counts since the target began to serve in this process, and how long it has been free of errors."""

    generation: int
    num_good: int
    num_errors: int
    clean_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusDelivered:
    """This status is on the disk of the report spool, which delivers it at least once."""

    note: StatusNote


Event = (
    Started
    | Stopping
    | Steady
    | DeploymentSeen
    | FetchCompleted
    | FetchFailed
    | DeltaGivenUp
    | Verified
    | VerifyFailed
    | SelfTestPassed
    | SelfTestFailed
    | ActivationFailed
    | TrialProgress
    | StatusDelivered
)
EVENT_TYPES: tuple[type[Event], ...] = (
    Started,
    Stopping,
    Steady,
    DeploymentSeen,
    FetchCompleted,
    FetchFailed,
    DeltaGivenUp,
    Verified,
    VerifyFailed,
    SelfTestPassed,
    SelfTestFailed,
    ActivationFailed,
    TrialProgress,
    StatusDelivered,
)


# --- effects ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetch:
    """Get what is missing of the slot; answers FetchCompleted or FetchFailed. Nothing may be missing."""

    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class StopFetch:
    """Unsubscribe. Blocks that were kept stay until garbage collection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verify:
    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTest:
    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class StopSelfTest:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Activate:
    """Serve this slot from now on; ActivationFailed when it cannot be loaded."""

    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivateLater:
    """Serve this slot once the cloud could be heard: it may end the process, and there is no other."""

    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class StopServing:
    """Nothing that may serve is left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectGarbage:
    """Delete what the state does not keep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ignored:
    """Nothing was done, and why: for the log and the cloud."""

    generation: int
    digest: str
    code: str
    message: str


Effect = (
    Fetch
    | StopFetch
    | Verify
    | SelfTest
    | StopSelfTest
    | Activate
    | ActivateLater
    | StopServing
    | CollectGarbage
    | Ignored
)


def unforeseen(effect: Effect, error: Exception) -> list[Event]:
    """What the update rules are to hear of an effect that ended with something else than an error of ours."""
    message = f"the agent failed ({error!r}): its log has more"[:500]
    match effect:
        case Fetch(slot=slot):
            return [FetchFailed(generation=slot.generation, code=INTERNAL, message=message)]
        case Verify(slot=slot):
            return [VerifyFailed(generation=slot.generation, code=INTERNAL, message=message)]
        case SelfTest(slot=slot):
            return [SelfTestFailed(generation=slot.generation, code=INTERNAL, message=message)]
        case Activate(slot=slot):
            return [ActivationFailed(slot=slot, code=INTERNAL, message=message)]
        case _:
            return []
