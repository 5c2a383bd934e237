"""Values that the tests of the domain start from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist
from typing import Any

from cloud.domain.candidates import Candidate, CandidateMetrics
from cloud.domain.evidence import Window
from cloud.domain.policy import PolicySettings
from cloud.domain.profiles import Constraints, DeviceProfile, MatchRule
from cloud.domain.specs import CompressionSpec, Precision, Road

NOW_S = 1_000_000.0
WINDOW_S = 30.0
SETTINGS = PolicySettings()
#: For tests with thousands of decisions.
QUICK = PolicySettings(num_resamples=20, cool_down_s=60.0)


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@dataclass(frozen=True)
class SortedSketch:
    """A sketch that keeps every value: exact, so that a test knows what to expect."""

    values: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        return len(self.values)

    def quantile(self, q: float) -> float:
        return self.values[math.floor(q * (len(self.values) - 1))]

    def merge(self, other: SortedSketch) -> SortedSketch:
        return SortedSketch(tuple(sorted((*self.values, *other.values))))


@cache
def _normal(q: float) -> float:
    return NormalDist().inv_cdf(min(max(q, 0.001), 0.999))


@dataclass(frozen=True)
class ShapedSketch:
    """A log-normal with a given p95; ``count`` may be anything, as a liar's may."""

    p95_ms: float
    count: int = 200
    sigma: float = 0.05

    def quantile(self, q: float) -> float:
        if self.count == 0:
            raise ValueError("empty")
        return self.p95_ms * math.exp(self.sigma * (_normal(q) - _normal(0.95)))

    def merge(self, other: ShapedSketch) -> ShapedSketch:
        raise NotImplementedError


def window(
    device_id: str,
    sequence: int,
    p95_ms: float,
    *,
    digest: str,
    count: int = 200,
    reference_ms: float = 0.2,
    end_s: float | None = None,
    **changes: Any,
) -> Window:
    """Window ``sequence`` of a device; 0 is the newest unless ``end_s`` is given."""
    end_s = NOW_S - sequence * WINDOW_S if end_s is None else end_s
    values: dict[str, Any] = {
        "device_id": device_id,
        "boot_id": f"boot-{digest[:8]}",
        "sequence": sequence,
        "digest": digest,
        "generation": 1,
        "workload": "digits",
        "start_s": end_s - WINDOW_S,
        "end_s": end_s,
        "latency": ShapedSketch(p95_ms, count),
        "reference": ShapedSketch(reference_ms, 20 if reference_ms else 0),
    }
    return Window(**{**values, **changes})


def fleet_windows(
    p95_ms: float | Sequence[float],
    *,
    digest: str,
    num_devices: int = 3,
    num_windows: int = 8,
    **changes: Any,
) -> list[Window]:
    """The same p95 on all devices, or one for each."""
    each = [p95_ms] * num_devices if isinstance(p95_ms, int | float) else list(p95_ms)
    return [
        window(f"device-{i}", n, value, digest=digest, **changes)
        for i, value in enumerate(each)
        for n in range(num_windows)
    ]


def candidate(
    width: float,
    *,
    accuracy: float | None = None,
    latency_ms: float | None = None,
    road: Road = Road.PRUNED,
    artifact_bytes: int | None = None,
    rejected_reason: str = "",
    seed: int = 0,
    profile: str = "gateway",
) -> Candidate:
    """A student whose latency grows with its width and whose accuracy does so ever less."""
    latency = width**1.2 if latency_ms is None else latency_ms
    spec = CompressionSpec(road=road, width_ratio=width, seed=seed)
    digest = digest_of(f"{spec.to_json()} {latency}")
    return Candidate(
        digest=digest,
        manifest_digest=digest_of(f"manifest {digest}"),
        workload="digits",
        profile=profile,
        parent_digest="",
        spec=spec,
        precision=Precision.INT8,
        metrics=CandidateMetrics(
            accuracy=1 - 0.02 / width if accuracy is None else accuracy,
            test_accuracy=0.9,
            latency_p50_ms=latency,
            latency_p95_ms=latency * 1.1,
            reference_p50_ms=0.2,
            artifact_bytes=int(100_000 * width) if artifact_bytes is None else artifact_bytes,
            peak_rss_bytes=60_000_000,
            macs=int(1e6 * width * width),
            num_parameters=int(1e5 * width * width),
        ),
        rejected_reason=rejected_reason,
    )


def profile(objective_ms: float | None = 5.0, *, name: str = "gateway", **constraints: Any) -> DeviceProfile:
    return DeviceProfile(
        name=name,
        workload="digits",
        match=MatchRule(),
        constraints=Constraints(latency_p95_ms=objective_ms, **constraints),
    )


@dataclass
class World:
    """Devices ``slowdown`` times as slow as where candidates are built; builders that obey."""

    slowdown: float = 5.0
    candidates: list[Candidate] = field(default_factory=list)
    slower: dict[str, float] = field(default_factory=dict)

    def p95_of(self, digest: str) -> float:
        found = next(c for c in self.candidates if c.digest == digest)
        return found.metrics.latency_p50_ms * self.slowdown * self.slower.get(digest, 1.0)

    def build(self, specs: Iterable[CompressionSpec]) -> None:
        for spec in specs:
            self.candidates.append(candidate(spec.width_ratio, road=spec.road))
