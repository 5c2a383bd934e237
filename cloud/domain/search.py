"""skeleton; rules follow"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from cloud.domain.candidates import Candidate
from cloud.domain.profiles import DeviceProfile
from cloud.domain.specs import CompressionSpec
from cloud.domain.workloads import SearchBudget


class Direction(StrEnum):
    INITIAL = "initial"
    SMALLER = "smaller"
    LARGER = "larger"


def propose(
    profile: DeviceProfile,
    candidates: Sequence[Candidate],
    *,
    target_latency_ms: float | None,
    direction: Direction,
    budget: SearchBudget,
    exclude: Iterable[str] = (),
) -> tuple[CompressionSpec, ...]:
    """Specs worth building, best first; none that ``candidates`` or ``exclude`` (spec digests) already has.

    ``target_latency_ms`` is in the scale measured where candidates are built; None for the initial round.
    """
    raise NotImplementedError
