"""What the policy says: an action, a verdict on the measurement, and why, with all it was decided from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cloud.domain.specs import CompressionSpec


class Action(StrEnum):
    """What is to be done now."""

    HOLD = "hold"  # the evidence does not allow a step
    KEEP = "keep"  # what serves is right, or there is nothing better to do
    ROLL_OUT = "roll-out"  # ``chosen_digest`` exists: start a rollout
    ROLL_BACK = "roll-back"  # the same; ``chosen_digest`` is what served before
    BUILD = "build"  # build ``specs``, then decide again
    ALERT = "alert"  # a person is needed; nothing changes by itself


class Verdict(StrEnum):
    """What the measurement says."""

    NEW = "new"  # nothing serves yet
    OPEN = "open"  # no latency objective is set
    THIN = "thin"  # too little or too old evidence
    MIXED = "mixed"  # real and emulated devices in one profile
    UNTRUSTED = "untrusted"  # too many devices report what cannot be believed
    THROTTLED = "throttled"  # the machines are slow, not the model
    BUSY = "busy"  # a rollout or a job is in flight
    MEETS = "meets"
    MISSES = "misses"
    SLACK = "slack"
    INFEASIBLE = "infeasible"  # nothing known can meet all constraints


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One decision. ``inputs`` is plain JSON, and ``policy.replay(inputs)`` gives this decision again.

    ``upper_p95_ms`` is the upper bound of what was measured; 0 stands for not measured. ``decision_id`` is
    not part of it: whoever stores it names it.
    """

    profile: str
    workload: str
    action: Action
    verdict: Verdict
    reason: str
    current_digest: str = ""
    chosen_digest: str = ""
    specs: tuple[CompressionSpec, ...] = ()
    measured_p95_ms: float = 0.0
    lower_p95_ms: float = 0.0
    upper_p95_ms: float = 0.0
    objective_p95_ms: float = 0.0
    #: What ``chosen_digest`` is expected to measure; 0 when nothing was chosen.
    predicted_p95_ms: float = 0.0
    num_samples: int = 0
    num_devices: int = 0
    inputs: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def starts_rollout(self) -> bool:
        """Whether ``chosen_digest`` is to be rolled out."""
        return self.action in (Action.ROLL_OUT, Action.ROLL_BACK)

    def same_outcome(self, other: Decision) -> bool:
        """Whether both ask for the same, whatever was measured: a ledger may leave out such repeats."""
        return (self.action, self.verdict, self.current_digest, self.chosen_digest, self.specs) == (
            other.action,
            other.verdict,
            other.current_digest,
            other.chosen_digest,
            other.specs,
        )

    def inputs_json(self) -> str:
        """Canonical JSON of the inputs."""
        return json.dumps(self.inputs, sort_keys=True, separators=(",", ":"))
