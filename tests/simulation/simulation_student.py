"""Students of a simulated fleet, and the latencies that they give."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

from cloud.domain.candidates import Candidate, CandidateMetrics
from cloud.domain.specs import CompressionSpec, Precision

WORKLOAD = "digits"


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _normal(q: float) -> float:
    return NormalDist().inv_cdf(min(max(q, 0.001), 0.999))


@dataclass(frozen=True)
class Shape:
    """A sketch: log-normal with this p95."""

    p95_ms: float
    count: int = 100

    def quantile(self, q: float) -> float:
        return self.p95_ms * math.exp(0.05 * (_normal(q) - _normal(0.95)))

    def merge(self, other: Shape) -> Shape:
        raise NotImplementedError


def student(profile: str, spec: CompressionSpec) -> Candidate:
    """Latency grows with the width, accuracy ever less so."""
    width = spec.width_ratio
    digest = digest_of(f"{profile} {spec.to_json()}")
    return Candidate(
        digest=digest,
        manifest_digest=digest_of(f"manifest {digest}"),
        workload=WORKLOAD,
        profile=profile,
        parent_digest="",
        spec=spec,
        precision=Precision.INT8,
        metrics=CandidateMetrics(
            accuracy=1 - 0.02 / width,
            test_accuracy=0.9,
            latency_p50_ms=width**1.2,
            latency_p95_ms=width**1.2 * 1.1,
            reference_p50_ms=0.2,
            artifact_bytes=int(1e5 * width),
            peak_rss_bytes=60_000_000,
            macs=int(1e6 * width),
            num_parameters=int(1e5 * width),
        ),
    )
