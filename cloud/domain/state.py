"""What the policy remembers between decisions: what the fleet measured, and which steps are spent.

Rules kept here:

- A digest that the fleet measured is judged by that measurement ever after; an estimate never replaces it.
- Budgets are spent for one *situation*: these constraints, on a fleet of this speed. Only a change of either
  gives new ones, never time: a policy whose input is constant comes to rest.
- When the digest that serves drifts by ``drift_ratio``, the machines have changed: what is remembered of the
  others moves by the same factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from cloud.domain import codec
from cloud.domain.estimates import Baseline, Estimate
from cloud.domain.profiles import Constraints
from cloud.domain.settings import PolicySettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What the fleet measured of one digest. ``anchor_p95_ms`` is the figure that drift is judged against."""

    p95_ms: float
    upper_p95_ms: float
    anchor_p95_ms: float
    num_windows: int = 0
    time_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyState:
    """What the policy remembers of one profile. ``PolicyState()`` to begin with.

    ``proposed`` holds the digests of all specs ever asked for, so that a failed one is not asked for again;
    ``num_rollouts`` counts by digest, and like the numbers of builds it holds for the present situation.
    """

    current_digest: str = ""
    previous_digest: str = ""
    last_change_s: float | None = None
    situation: str = ""
    num_miss_builds: int = 0
    num_slack_builds: int = 0
    num_rollouts: Mapping[str, int] = field(default_factory=dict)
    proposed: tuple[str, ...] = ()
    measured: Mapping[str, Measured] = field(default_factory=dict)
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    version: int = 1

    def to_json(self) -> str:
        """Canonical JSON."""
        return codec.to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of ``to_json``. Raises ``ValueError`` for a version that is not known."""
        state = codec.from_json(cls, text)
        if state.version != 1:
            raise ValueError(
                f"policy state of version {state.version} cannot be read: upgrade the control plane"
            )
        return state


def enter(state: PolicyState, *, constraints: Constraints, current_digest: str, now_s: float) -> PolicyState:
    """Note what may have changed since the last decision: the constraints, and what serves."""
    situation = codec.to_json(constraints)
    if situation != state.situation:
        state = replace(fresh_budgets(state), situation=situation)
    if current_digest != state.current_digest:
        state = replace(
            state,
            current_digest=current_digest,
            previous_digest=state.current_digest,
            last_change_s=now_s if state.current_digest else state.last_change_s,
        )
    return state


def fresh_budgets(state: PolicyState) -> PolicyState:
    return replace(state, num_miss_builds=0, num_slack_builds=0, num_rollouts={})


def remember(
    state: PolicyState, digest: str, found: Estimate, *, now_s: float, settings: PolicySettings
) -> PolicyState:
    """Note what the fleet measured of a digest, when it is enough and the machines were not throttled."""
    if not found.is_enough(settings) or found.is_throttled:
        return state
    measured = dict(state.measured)
    before = measured.get(digest)
    anchor_ms = found.p95_ms if before is None else before.anchor_p95_ms
    drift = found.p95_ms / anchor_ms
    if digest == state.current_digest and not 1 / settings.drift_ratio < drift < settings.drift_ratio:
        measured = {
            other: Measured(
                p95_ms=known.p95_ms * drift,
                upper_p95_ms=known.upper_p95_ms * drift,
                anchor_p95_ms=known.anchor_p95_ms * drift,
                num_windows=known.num_windows,
                time_s=known.time_s,
            )
            for other, known in measured.items()
        }
        state = fresh_budgets(state)
        anchor_ms = found.p95_ms
    measured[digest] = Measured(
        p95_ms=found.p95_ms,
        upper_p95_ms=found.upper_p95_ms,
        anchor_p95_ms=anchor_ms,
        num_windows=found.num_windows,
        time_s=now_s,
    )
    return replace(state, measured=measured)
