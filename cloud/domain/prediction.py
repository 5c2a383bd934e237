"""What a candidate would measure on a profile's devices, before any of them runs it.

Rules kept here:

- What the fleet has measured of a digest is its prediction, with a small margin.
- Anything else is read off between the digests that were measured, in logarithms of the latency measured
  where candidates are built; beyond them, the nearest one's ratio holds. Ratios carry over from one machine
  to another, absolute times do not.
- The margin grows with the distance to the nearest measured digest and shrinks with their number.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cloud.domain.candidates import Candidate
from cloud.domain.settings import PolicySettings
from cloud.domain.state import Measured

#: Steps of the scan for the largest latency that still fits, over a factor of 1000.
_NUM_STEPS = 400
#: However noisy the nearest digest was, no more than this is added for it, or nothing would ever fit.
_MAX_NOISE_MARGINS = 3.0
#: Without anything measured on the fleet, the cloud's own ratio is a guess.
_UNKNOWN_FLEET_MARGIN = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """``is_measured`` tells a measurement of the fleet from an estimate."""

    p95_ms: float
    upper_p95_ms: float
    is_measured: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Anchor:
    latency_ms: float
    p95_ms: float
    upper_ratio: float


class Predictor:
    """Predictions for one profile, from its candidates and what the fleet measured of some of them."""

    def __init__(
        self, candidates: Iterable[Candidate], measured: Mapping[str, Measured], settings: PolicySettings
    ) -> None:
        known = sorted(candidates, key=lambda candidate: (candidate.metrics.latency_p50_ms, candidate.digest))
        self._measured = measured
        self._settings = settings
        self._anchors = [
            _Anchor(
                latency_ms=candidate.metrics.latency_p50_ms,
                p95_ms=measured[candidate.digest].p95_ms,
                upper_ratio=measured[candidate.digest].upper_p95_ms / measured[candidate.digest].p95_ms,
            )
            for candidate in known
            if candidate.digest in measured
        ]
        tails = [candidate.metrics.latency_p95_ms / candidate.metrics.latency_p50_ms for candidate in known]
        self._cloud_ratio = sorted(tails)[len(tails) // 2] if tails else 1.0

    @property
    def knows_fleet(self) -> bool:
        """Whether any of the candidates was measured on the fleet."""
        return bool(self._anchors)

    def predict(self, candidate: Candidate) -> Prediction:
        """For one candidate."""
        measured = self._measured.get(candidate.digest)
        if measured is None:
            return self.predict_latency(candidate.metrics.latency_p50_ms)
        upper_ms = min(measured.upper_p95_ms, measured.p95_ms * (1 + self._settings.margin_ratio / 2))
        return Prediction(p95_ms=measured.p95_ms, upper_p95_ms=upper_ms, is_measured=True)

    def predict_latency(self, latency_p50_ms: float) -> Prediction:
        """For a student that would measure this where candidates are built."""
        if not self._anchors:
            p95_ms = latency_p50_ms * self._cloud_ratio
            margin = self._settings.margin_ratio * _UNKNOWN_FLEET_MARGIN
            return Prediction(p95_ms=p95_ms, upper_p95_ms=p95_ms * (1 + margin))
        nearest = min(self._anchors, key=lambda anchor: abs(math.log(anchor.latency_ms / latency_p50_ms)))
        distance = abs(math.log(nearest.latency_ms / latency_p50_ms))
        margin = (
            self._settings.margin_ratio * (0.3 + min(1.0, distance)) / math.sqrt(min(4, len(self._anchors)))
        )
        p95_ms = self._read_off(latency_p50_ms, nearest)
        upper_ratio = min(nearest.upper_ratio, 1 + _MAX_NOISE_MARGINS * self._settings.margin_ratio)
        return Prediction(p95_ms=p95_ms, upper_p95_ms=p95_ms * (upper_ratio + margin))

    def largest_fitting(self, limit_ms: float, *, at_most_ms: float) -> float:
        """The highest latency where candidates are built, up to ``at_most_ms``, whose upper bound fits.

        0 when not even a thousandth of ``at_most_ms`` does.
        """
        for step in range(_NUM_STEPS + 1):
            latency_ms = at_most_ms * math.exp(-math.log(1000) * step / _NUM_STEPS)
            if self.predict_latency(latency_ms).upper_p95_ms <= limit_ms:
                return latency_ms
        return 0.0

    def _read_off(self, latency_ms: float, nearest: _Anchor) -> float:
        i = bisect_left([anchor.latency_ms for anchor in self._anchors], latency_ms)
        if 0 < i < len(self._anchors):
            low, high = self._anchors[i - 1], self._anchors[i]
            # Two that contradict each other (the smaller is slower) are no slope: the nearer's ratio holds.
            if low.latency_ms < high.latency_ms and low.p95_ms <= high.p95_ms:
                share = math.log(latency_ms / low.latency_ms) / math.log(high.latency_ms / low.latency_ms)
                return low.p95_ms * math.exp(share * math.log(high.p95_ms / low.p95_ms))
        return nearest.p95_ms * latency_ms / nearest.latency_ms
