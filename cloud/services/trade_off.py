"""What a profile can have: students that were built, those that its family could give, and the choice.

Rules: what was measured is told apart from what is predicted, and only what was built may be chosen.
Latencies of students that were not built come from a model fitted on this profile's own, one for each
precision; it is asked only between widths that were built, and not before three were.
"""

from __future__ import annotations

from cloud.domain.candidates import Candidate, pareto_front
from cloud.domain.families import FamilyResult
from cloud.domain.latency import LatencyModel, Probe, fit_latency
from cloud.domain.prediction import Predictor
from cloud.domain.settings import PolicySettings
from cloud.domain.specs import CompressionSpec, Precision, Road
from cloud.family_plans import known_family
from cloud.retirement import current
from cloud.services.fit import best_candidate
from cloud.services.queries import Queries
from cloud.store import Store
from edgeloop.errors import RejectedError
from edgeloop.v1 import control_service_pb2 as pb

MIN_PROBES = 3


def trade_off(
    store: Store, queries: Queries, settings: PolicySettings, profile_name: str
) -> pb.GetTradeOffResponse:
    """Raises ``RejectedError`` for an unknown profile."""
    profile = queries.profile(profile_name)
    workload = queries.workload(profile.workload)
    candidates = current(store.candidates(profile.name, profile.workload))
    predictor = Predictor(candidates, store.policy_state(profile.name).measured, settings)
    chosen_digest = ""
    try:
        chosen = best_candidate(store, profile, settings)
        chosen_digest = chosen.digest
        reason = "the most accurate of those that meet the profile's constraints"
    except RejectedError as error:
        reason = error.message
    front = {candidate.digest for candidate in pareto_front(candidates)}
    points = [
        pb.TradeOffPoint(
            digest=candidate.digest,
            spec_json=candidate.spec.to_json(),
            precision=candidate.precision.value,
            accuracy=candidate.metrics.accuracy,
            latency_p50_ms=candidate.metrics.latency_p50_ms,
            artifact_bytes=candidate.metrics.artifact_bytes,
            on_front=candidate.digest in front,
            chosen=candidate.digest == chosen_digest,
            rejected_reason=candidate.rejected_reason,
            proposed_reason=candidate.proposed_reason,
            predicted_p95_ms=predictor.predict(candidate).p95_ms if predictor.knows_fleet else 0.0,
        )
        for candidate in candidates
    ]
    teacher = store.teacher(workload.teacher_key)
    family = known_family(store, workload, teacher, lambda _digest: True) if teacher is not None else None
    error_ratio = 0.0
    if family is not None:
        for precision in (Precision.INT8, Precision.FP32):
            found, mean_error = _predicted(
                family, [c for c in candidates if c.precision is precision], precision
            )
            for point in found:
                if predictor.knows_fleet:
                    point.predicted_p95_ms = predictor.predict_latency(point.latency_p50_ms).p95_ms
            points += found
            error_ratio = max(error_ratio, mean_error)
    points.sort(key=lambda point: (point.latency_p50_ms, point.digest))
    return pb.GetTradeOffResponse(
        profile=profile.name, points=points, reason=reason, prediction_error_ratio=error_ratio
    )


def _predicted(
    family: FamilyResult, candidates: list[Candidate], precision: Precision
) -> tuple[list[pb.TradeOffPoint], float]:
    """Students that the family could give between those that were built, and the model's mean error."""
    model, built = _fitted(family, candidates)
    if model is None:
        return [], 0.0
    points = [
        pb.TradeOffPoint(
            spec_json=CompressionSpec(
                road=Road.ELASTIC, width_ratio=width.width_ratio, num_epochs=0, precision=precision
            ).to_json(),
            precision=precision.value,
            accuracy=width.accuracy,
            latency_p50_ms=model.predict(width.layers),
        )
        for width in family.widths
        if width.layers and min(built) < width.width_ratio < max(built) and width.width_ratio not in built
    ]
    return points, model.error_ratio


def _fitted(family: FamilyResult, candidates: list[Candidate]) -> tuple[LatencyModel | None, set[float]]:
    """All roads give the same layers at a width, so every student with all of them is a probe."""
    probes = []
    built = set()
    for candidate in candidates:
        width = family.of_width(candidate.spec.width_ratio)
        if not candidate.spec.is_whole:
            continue
        if width is not None and width.layers and not candidate.rejected_reason:
            probes.append(Probe(layers=width.layers, latency_ms=candidate.metrics.latency_p50_ms))
            built.add(width.width_ratio)
    return (fit_latency(probes) if len(built) >= MIN_PROBES else None), built
