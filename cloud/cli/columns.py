"""What each noun shows of itself in a table."""

from __future__ import annotations

import json

from cloud.cli.output import Column, milliseconds, percent, short, size
from cloud.cli.plain import enum_text, time_text
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1 import deployment_pb2


def _state(message: pb.JobInfo | pb.RolloutInfo | deployment_pb2.DeploymentStatus) -> str:
    return enum_text(message, "state")


def spec_text(spec_json: str) -> str:
    """A CompressionSpec in a few words: road, width, precision asked for."""
    if not spec_json:
        return "-"
    spec = json.loads(spec_json)
    return f"{spec['road']} x{spec['width_ratio']:g}"


def objective(profile: pb.ProfileInfo) -> str:
    """The latency objective, or ``none``."""
    wanted = profile.constraints.latency_p95_ms
    return milliseconds(wanted) if wanted else "none"


WORKLOADS: list[Column] = [
    ("NAME", lambda w: w.name),
    ("TEACHER", lambda w: short(w.teacher.digest)),
    ("ACCURACY", lambda w: percent(w.teacher.accuracy)),
    ("MMAC", lambda w: f"{w.teacher.macs / 1e6:.2f}" if w.teacher.macs else "-"),
    ("SIZE", lambda w: size(w.teacher.artifact_bytes)),
]

PROFILES: list[Column] = [
    ("NAME", lambda p: p.name),
    ("WORKLOAD", lambda p: p.workload),
    ("DEVICES", lambda p: str(p.num_devices)),
    ("SERVING", lambda p: short(p.current_digest)),
    ("P95", lambda p: milliseconds(p.measured_p95_ms)),
    ("OBJECTIVE", objective),
    ("VERDICT", lambda p: p.verdict or "-"),
    ("MESSAGE", lambda p: p.message),
]

DEVICES: list[Column] = [
    ("NAME", lambda d: d.registration.device_id),
    ("PROFILE", lambda d: d.profile or "-"),
    ("CONNECTED", lambda d: "yes" if d.connected else "no"),
    ("GENERATION", lambda d: f"{d.generation}/{d.desired_generation}"),
    ("SERVING", lambda d: short(d.serving_digest)),
    ("STATE", lambda d: _state(d.deployment) if d.HasField("deployment") else "-"),
    ("P95", lambda d: milliseconds(d.p95_ms)),
    ("RSS", lambda d: size(d.rss_bytes)),
    ("MESSAGE", lambda d: d.deployment.message or d.message),
]

CANDIDATES: list[Column] = [
    ("DIGEST", lambda c: short(c.digest)),
    ("PROFILE", lambda c: c.profile),
    ("SPEC", lambda c: spec_text(c.spec_json)),
    ("PRECISION", lambda c: c.precision),
    ("ACCURACY", lambda c: percent(c.accuracy)),
    ("P50 HERE", lambda c: milliseconds(c.latency_p50_ms)),
    ("P95 FLEET", lambda c: milliseconds(c.predicted_p95_ms)),
    ("SIZE", lambda c: size(c.artifact_bytes)),
    ("MMAC", lambda c: f"{c.macs / 1e6:.2f}"),
    ("FRONT", lambda c: "yes" if c.on_front else "no"),
    ("REJECTED", lambda c: c.rejected_reason),
]

ROLLOUTS: list[Column] = [
    ("ID", lambda r: r.rollout_id),
    ("PROFILE", lambda r: r.profile),
    ("DIGEST", lambda r: short(r.digest)),
    ("STATE", _state),
    ("GROUPS", lambda r: ", ".join(f"{g.name} {g.num_active}/{g.num_devices} {g.state}" for g in r.groups)),
    ("STARTED", lambda r: time_text(r.create_time)),
    ("MESSAGE", lambda r: r.message),
]

DECISIONS: list[Column] = [
    ("TIME", lambda d: time_text(d.decide_time)),
    ("PROFILE", lambda d: d.profile),
    ("ACTION", lambda d: d.action),
    ("SERVING", lambda d: short(d.current_digest)),
    ("CHOSEN", lambda d: short(d.chosen_digest)),
    ("P95", lambda d: milliseconds(d.measured_p95_ms)),
    ("OBJECTIVE", lambda d: milliseconds(d.objective_p95_ms)),
    ("REASON", lambda d: d.reason),
]

JOBS: list[Column] = [
    ("ID", lambda j: j.job_id),
    ("KIND", lambda j: j.kind),
    ("WORKLOAD", lambda j: j.workload),
    ("PROFILE", lambda j: j.profile or "-"),
    ("STATE", _state),
    ("PROGRESS", lambda j: f"{j.progress * 100:.0f} %"),
    ("TRIALS", lambda j: f"{j.num_finished_trials}/{j.num_trials}" if j.num_trials else "-"),
    ("MESSAGE", lambda j: j.message),
]

MEASUREMENTS: list[Column] = [
    ("TIME", lambda m: time_text(m.end_time)),
    ("DEVICE", lambda m: m.device_id),
    ("DIGEST", lambda m: short(m.digest)),
    ("GENERATION", lambda m: str(m.generation)),
    ("SAMPLES", lambda m: str(m.num_samples)),
    ("P50", lambda m: milliseconds(m.p50_ms)),
    ("P95", lambda m: milliseconds(m.p95_ms)),
    ("REFERENCE", lambda m: milliseconds(m.reference_p50_ms)),
    ("RSS", lambda m: size(m.rss_bytes)),
]
