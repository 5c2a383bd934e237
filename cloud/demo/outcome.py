"""What happened to each profile, told by the devices' own measurements, and whether the loop closed.

Pure: takes what the control plane lists, returns values. A *round* is one generation of one digest on a
profile; its p95 is the quantile of its windows merged, over all devices of the profile. Windows in which this
machine was building students count for nobody, neither here nor for the controller (``cloud.own_load``).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from cloud.demo.plan import Outcome
from cloud.own_load import MARGIN_S
from edgeloop.sketch import LatencySketch
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1 import deployment_pb2

#: A round counts as measured from here on: under it, a p95 rests on a handful of requests.
MIN_SAMPLES = 100


#: Begin and end, in seconds since the epoch.
Span = tuple[float, float]


def overlaps(measurement: pb.Measurement, busy: Sequence[Span]) -> bool:
    """Whether the window lies, if only in part, in one of the spans."""
    start_s = measurement.start_time.ToNanoseconds() / 1e9
    end_s = measurement.end_time.ToNanoseconds() / 1e9
    return any(start_s < end and begin < end_s for begin, end in busy)


def busy_spans(jobs: Iterable[pb.JobInfo], now_s: float) -> list[Span]:
    """When the machine was building: from the start of each job to its end, or to now, and a margin."""
    return [
        (
            job.create_time.ToNanoseconds() / 1e9 - MARGIN_S,
            (job.end_time.ToNanoseconds() / 1e9 if job.HasField("end_time") else now_s) + MARGIN_S,
        )
        for job in jobs
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One generation on a profile. ``accuracy`` is on the test split; choices rest on the other."""

    generation: int
    digest: str
    spec: dict[str, Any]
    precision: str
    accuracy: float
    validation_accuracy: float
    artifact_bytes: int
    macs: int
    p95_ms: float
    num_samples: int
    start_s: float
    decision: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileOutcome:
    """``problems`` says what is missing for the expected outcome; empty when it was reached."""

    name: str
    outcome: Outcome
    objective_p95_ms: float
    met: bool
    rounds: list[Round]
    problems: list[str] = field(default_factory=list)


def rounds_of(
    measurements: Iterable[pb.Measurement],
    candidates: Iterable[pb.CandidateInfo],
    decisions: Iterable[pb.DecisionInfo],
    rollouts: Iterable[pb.RolloutInfo],
    busy: Sequence[Span] = (),
) -> list[Round]:
    """The rounds of one profile, oldest first, from what the control plane lists about it."""
    by_digest = {candidate.digest: candidate for candidate in candidates}
    by_decision = {decision.decision_id: decision for decision in decisions}
    in_order = sorted(rollouts, key=lambda rollout: rollout.create_time.ToNanoseconds())
    windows: dict[tuple[int, str], list[pb.Measurement]] = defaultdict(list)
    for measurement in measurements:
        windows[measurement.generation, measurement.digest].append(measurement)
    found = []
    for (generation, digest), group in windows.items():
        if digest not in by_digest:
            continue
        counted = [LatencySketch.from_proto(m.latency) for m in group if not overlaps(m, busy)]
        merged = reduce(LatencySketch.merge, counted, LatencySketch.empty())
        if not merged.count:
            continue
        candidate = by_digest[digest]
        start_s = min(m.start_time.ToNanoseconds() for m in group) / 1e9
        # A digest may be rolled out more than once: the newest rollout before the round is the one behind it.
        before = [
            r for r in in_order if r.digest == digest and r.create_time.ToNanoseconds() / 1e9 <= start_s
        ]
        rollout = before[-1] if before else None
        decision = by_decision.get(rollout.decision_id) if rollout else None
        found.append(
            Round(
                generation=generation,
                digest=digest,
                spec=json.loads(candidate.spec_json),
                precision=candidate.precision,
                accuracy=candidate.test_accuracy,
                validation_accuracy=candidate.accuracy,
                artifact_bytes=candidate.artifact_bytes,
                macs=candidate.macs,
                p95_ms=merged.quantile(0.95),
                num_samples=merged.count,
                start_s=start_s,
                decision=decision.action if decision else "started",
                reason=decision.reason if decision else "rolled out by hand as the first student",
            )
        )
    return sorted(found, key=lambda r: (r.generation, r.start_s))


def behind(devices: Iterable[pb.DeviceInfo], digest: str) -> list[str]:
    """The devices that do not serve ``digest`` yet, or serve it on trial only."""
    return sorted(
        device.registration.device_id
        for device in devices
        if device.serving_digest != digest
        or device.desired_digest != digest
        or device.deployment.state != deployment_pb2.DEPLOYMENT_STATE_ACTIVE
    )


def judge(
    name: str,
    outcome: Outcome,
    objective_p95_ms: float,
    rounds: Sequence[Round],
    devices: Iterable[pb.DeviceInfo],
) -> ProfileOutcome:
    """Whether the profile ended as expected, by measurement alone, on every device of it."""
    if not rounds:
        problems = ["nothing was measured"]
        return ProfileOutcome(
            name=name,
            outcome=outcome,
            objective_p95_ms=objective_p95_ms,
            met=False,
            rounds=[],
            problems=problems,
        )
    first, last = rounds[0], rounds[-1]
    problems = []
    if last.num_samples < MIN_SAMPLES:
        problems.append(f"generation {last.generation} has only {last.num_samples} of {MIN_SAMPLES} samples")
    if late := behind(devices, last.digest):
        problems.append(f"{', '.join(late)} does not serve {last.digest[:12]} for good yet")
    met = last.p95_ms <= objective_p95_ms
    if not met:
        problems.append(f"p95 is {last.p95_ms:.2f} ms, over the objective of {objective_p95_ms:.2f} ms")
    if outcome is Outcome.KEPT:
        if len({r.digest for r in rounds}) > 1:
            problems.append("it fitted, and was changed all the same")
    elif first.digest == last.digest:
        problems.append("still serves its first student")
    elif outcome is Outcome.COMPRESSED:
        if first.p95_ms <= objective_p95_ms:
            problems.append("its first student met the objective already")
        if last.macs >= first.macs:
            problems.append("its last student is not smaller than its first")
    elif last.validation_accuracy <= first.validation_accuracy:
        problems.append("its last student is not more accurate than its first")
    return ProfileOutcome(
        name=name,
        outcome=outcome,
        objective_p95_ms=objective_p95_ms,
        met=met,
        rounds=list(rounds),
        problems=problems,
    )
