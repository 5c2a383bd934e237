"""What a policy may be tuned by. The defaults suit report windows of 30 seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

#: Least and most that each setting may be.
_BOUNDS: dict[str, tuple[float, float]] = {
    "min_samples": (1, 1e9),
    "min_windows": (1, 1000),
    "min_devices": (1, 1e6),
    "num_miss_windows": (1, 1000),
    "num_slack_windows": (1, 1000),
    "slack_ratio": (0.05, 1.0),
    "fit_ratio": (0.05, 1.0),
    "cool_down_s": (0.0, 1e7),
    "max_age_s": (1.0, 1e8),
    "max_skew_s": (0.0, 1e7),
    "max_windows_per_device": (1, 1000),
    "max_devices": (4, 100_000),
    "max_untrusted_share": (0.0, 0.49),
    "throttle_ratio": (1.01, 100.0),
    "min_accuracy_gain": (0.0, 1.0),
    "min_latency_gain": (0.0, 0.9),
    "margin_ratio": (0.0, 2.0),
    "max_miss_builds": (0, 1000),
    "max_slack_builds": (0, 1000),
    "max_rollouts_per_digest": (1, 1000),
    "drift_ratio": (1.01, 100.0),
    "num_resamples": (20, 10_000),
    "confidence": (0.5, 0.999),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySettings:
    """How much evidence is enough, how patient the policy is, and how many steps it may take.

    Raises ``ValueError``, naming the field, when a value is out of range.
    """

    #: Requests, after the cap on each window's weight.
    min_samples: int = 200
    #: Windows over all devices.
    min_windows: int = 3
    min_devices: int = 1
    #: A miss must show in this many consecutive windows of the fleet, slack in that many.
    num_miss_windows: int = 3
    num_slack_windows: int = 6
    #: Slack begins when p95 stays under this share of the objective.
    slack_ratio: float = 0.7
    #: On slack, the upper bound predicted for the new candidate must stay under this share.
    fit_ratio: float = 0.95
    #: No step within this time after the last one.
    cool_down_s: float = 120.0
    #: Older windows do not count; neither do those that claim to end later than this after now.
    max_age_s: float = 900.0
    max_skew_s: float = 300.0
    #: The newest of each device; and devices, of a larger fleet a fixed sample.
    max_windows_per_device: int = 12
    max_devices: int = 400
    #: More devices than this share beyond belief: hold, and say so.
    max_untrusted_share: float = 0.3
    #: The reference kernel this much slower than this device's own best: the machine is slow, not the model.
    throttle_ratio: float = 1.5
    #: Less gain than this is not worth a rollout.
    min_accuracy_gain: float = 0.0005
    min_latency_gain: float = 0.05
    #: Added to a prediction far from anything measured; shrinks with evidence.
    margin_ratio: float = 0.1
    #: Rounds of building for one objective, until the objective or the fleet's speed changes.
    max_miss_builds: int = 4
    max_slack_builds: int = 2
    #: How often one digest may be tried for one objective.
    max_rollouts_per_digest: int = 2
    #: A digest whose p95 drifts by this factor is a new situation: the budgets start anew.
    drift_ratio: float = 1.4
    num_resamples: int = 200
    #: Of the interval around p95.
    confidence: float = 0.9

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}: it must be a number from {low} to {high}")
        if self.slack_ratio > self.fit_ratio:
            raise ValueError(
                f"slack_ratio is {self.slack_ratio}: it must not be over fit_ratio ({self.fit_ratio}), "
                "or a new candidate would have slack again at once"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``; keys of other versions are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})
