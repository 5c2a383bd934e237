"""Built and measured students, and which of them are worth choosing from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cloud.domain.specs import CompressionSpec, Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateMetrics:
    """Measured through the agent's own runtime, one thread, batch 1, where the candidate was built.

    ``accuracy`` is on the validation split and drives every choice; ``test_accuracy`` is for reports alone.
    ``artifact_bytes`` is what goes over the wire; ``executable_bytes`` what it unpacks to on the device, or 0
    where it runs as it is. ``reference_p50_ms`` is the reference kernel beside it: latency ratios carry over,
    absolute times do not. ``metric`` is what ``accuracy`` and ``test_accuracy`` are: see ``Loss.metric``.
    ``int8_loss`` is what post-training int8 lost of the fp32 form's accuracy, whichever of the two ships;
    None where only one was built.
    ``fidelity`` is the share of the validation split on which rules say what the teacher says; None for a
    network.
    """

    accuracy: float
    test_accuracy: float
    latency_p50_ms: float
    latency_p95_ms: float
    reference_p50_ms: float
    artifact_bytes: int
    peak_rss_bytes: int
    macs: int
    num_parameters: int
    executable_bytes: int = 0
    metric: str = "accuracy"
    fidelity: float | None = None
    int8_loss: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A student in the registry, built for one profile. ``rejected_reason`` is empty when it may ship.

    ``proposed_reason`` is why the search asked for it, empty where a person did.
    """

    digest: str
    manifest_digest: str
    workload: str
    profile: str
    parent_digest: str
    spec: CompressionSpec
    precision: Precision
    metrics: CandidateMetrics
    rejected_reason: str = ""
    create_time_s: float = 0.0
    proposed_reason: str = ""


def pareto_front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that no other beats on accuracy, latency and size at once, fastest first.

    Rejected candidates are left out. Of several with equal figures the smallest digest stays, so that the
    front does not depend on the order of building.
    """

    def figures(candidate: Candidate) -> tuple[float, float, int]:
        metrics = candidate.metrics
        return (-metrics.accuracy, metrics.latency_p50_ms, metrics.artifact_bytes)

    eligible = sorted((c for c in candidates if not c.rejected_reason), key=lambda c: (figures(c), c.digest))
    front: list[Candidate] = []
    for candidate in eligible:
        mine = figures(candidate)
        if not any(all(o <= m for o, m in zip(figures(other), mine, strict=True)) for other in front):
            front.append(candidate)
    return sorted(front, key=lambda c: (c.metrics.latency_p50_ms, c.digest))


def most_accurate(candidates: Iterable[Candidate]) -> Candidate:
    """The most accurate; of equals the faster, then the smaller."""
    return min(
        candidates,
        key=lambda c: (-c.metrics.accuracy, c.metrics.latency_p50_ms, c.metrics.artifact_bytes, c.digest),
    )


def fastest(candidates: Iterable[Candidate]) -> Candidate:
    """The fastest where they were built; of equals the more accurate."""
    return min(candidates, key=lambda c: (c.metrics.latency_p50_ms, -c.metrics.accuracy, c.digest))
