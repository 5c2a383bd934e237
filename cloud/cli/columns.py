"""What each noun shows of itself in a table."""

from __future__ import annotations

import json
from collections.abc import Iterable

from cloud.cli.output import milliseconds, percent, short, size
from cloud.cli.plain import clock_text, enum_text
from cloud.cli.table import Column
from cloud.domain.networks import network_name
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1 import deployment_pb2


def _state(message: pb.JobInfo | pb.RolloutInfo | deployment_pb2.DeploymentStatus) -> str:
    return enum_text(message, "state")


def spec_text(spec_json: str) -> str:
    """A CompressionSpec in a few words: road, own network, width, depth, what was done to its weights."""
    if not spec_json:
        return "-"
    spec = json.loads(spec_json)
    if spec["road"] == "rules":
        ruled = spec["rules"]
        sums = f" of {ruled['num_terms']} terms" if ruled.get("num_terms", 1) > 1 else ""
        return f"rules {ruled['kind']} {ruled['max_depth']}{sums}"
    own = f"{network_name(spec['network'])} " if spec.get("network") else ""
    text = f"{spec['road']} {own}x{spec['width_ratio']:g}"
    if depth := spec.get("depth_ratio"):
        text += f" deep {depth:g}"
    if spec.get("shortcuts") is False:
        text += " plain"
    if rounded := spec.get("quantisation"):
        text += f" {rounded['scheme']} {rounded['bits']} bits"
    if zeros := spec.get("sparsity"):
        text += f" {zeros['ratio']:.0%} zeros"
    return text


def measured(item: pb.TeacherInfo | pb.CandidateInfo) -> str:
    """Its accuracy, or by its name the metric that stands for it."""
    return _score(item.metric, item.accuracy)


def _score(metric: str, value: float) -> str:
    if metric in ("", "accuracy"):
        return percent(value)
    return f"{metric} {value:.4f}" if value else "-"


def taught(workload: pb.WorkloadInfo) -> str:
    """The accuracy of its teacher; of an ensemble what its mean reaches, its best where that is unknown."""
    teacher = workload.teacher
    shown = measured(teacher)
    number = json.loads(workload.spec_json or "{}").get("training", {}).get("num_teachers", 1)
    if number < 2 or not teacher.digest:
        return shown
    if not teacher.ensemble_accuracy:
        return f"{shown} (best of {number})"
    together = _score(teacher.metric, teacher.ensemble_accuracy)
    return f"{together} (mean of {number}; the best alone {shown})"


def objective(profile: pb.ProfileInfo) -> str:
    """The latency objective, or ``none``."""
    wanted = profile.constraints.latency_p95_ms
    return milliseconds(wanted) if wanted else "none"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}" if count else "-"


def _groups(rollout: pb.RolloutInfo) -> str:
    return ", ".join(f"{g.name} {g.num_active}/{g.num_devices} {g.state}" for g in rollout.groups)


WORKLOADS = [
    Column("NAME", lambda w: w.name),
    Column("TEACHER", lambda w: short(w.teacher.digest)),
    Column("ACCURACY", taught),
    Column("MMAC", lambda w: _millions(w.teacher.macs), rank=1),
    Column("SIZE", lambda w: size(w.teacher.artifact_bytes)),
]

PROFILES = [
    Column("NAME", lambda p: p.name),
    Column("WORKLOAD", lambda p: p.workload, rank=2),
    Column("DEVICES", lambda p: str(p.num_devices), rank=1),
    Column("SERVING", lambda p: short(p.current_digest)),
    Column("P95", lambda p: milliseconds(p.measured_p95_ms)),
    Column("OBJECTIVE", objective),
    Column("VERDICT", lambda p: p.verdict or "-"),
    Column("MESSAGE", lambda p: p.message, note=True),
]

_OF_HOSTED = (
    "profile",
    "desired_generation",
    "desired_digest",
    "generation",
    "serving_digest",
    "p95_ms",
    "message",
)

DEVICES = [
    Column("NAME", lambda d: d.registration.device_id),
    Column("PROFILE", lambda d: d.profile or "-"),
    Column("CONNECTED", lambda d: "yes" if d.connected else "no"),
    Column("GENERATION", lambda d: f"{d.generation}/{d.desired_generation}"),
    Column("SERVING", lambda d: short(d.serving_digest)),
    Column("STATE", lambda d: _state(d.deployment) if d.HasField("deployment") else "-"),
    Column("P95", lambda d: milliseconds(d.p95_ms)),
    Column("RSS", lambda d: size(d.rss_bytes), rank=1),
    Column("IDENTITY", lambda d: d.identity_state or "-", rank=2),
    Column("MESSAGE", lambda d: d.deployment.message or d.message, note=True),
]

#: Where a device hosts several workloads: a line for each.
HOSTED = [DEVICES[0], Column("WORKLOAD", lambda d: d.registration.workloads[0].workload or "-"), *DEVICES[1:]]


def hosted_lines(devices: Iterable[pb.DeviceInfo]) -> list[pb.DeviceInfo]:
    """Each device once for each workload that it hosts, with that one's figures in the place of its own.

    ``registration.workloads`` then holds that one alone, nameless for a device that runs one, whichever.
    """
    lines = []
    for device in devices:
        for hosted in device.workloads or (None,):
            line = pb.DeviceInfo()
            line.CopyFrom(device)
            del line.registration.workloads[:]
            said = line.registration.workloads.add()
            if hosted is not None:
                said.workload = hosted.workload
                for field in _OF_HOSTED:
                    setattr(line, field, getattr(hosted, field))
                line.ClearField("deployment")
                if hosted.HasField("deployment"):
                    line.deployment.CopyFrom(hosted.deployment)
            lines.append(line)
    return lines


CANDIDATES = [
    Column("DIGEST", lambda c: short(c.digest)),
    Column("PROFILE", lambda c: c.profile),
    Column("SPEC", lambda c: spec_text(c.spec_json)),
    Column("PRECISION", lambda c: c.precision, rank=1),
    Column("ACCURACY", lambda c: measured(c)),
    Column("P50 HERE", lambda c: milliseconds(c.latency_p50_ms), rank=2),
    Column("P95 FLEET", lambda c: milliseconds(c.predicted_p95_ms)),
    Column("WIRE", lambda c: size(c.artifact_bytes)),
    Column("ON DEVICE", lambda c: size(c.executable_bytes or c.artifact_bytes), rank=1),
    Column("MMAC", lambda c: _millions(c.macs), rank=3),
    Column("FRONT", lambda c: "yes" if c.on_front else "no"),
    Column("WHY", lambda c: c.proposed_reason, note=True),
    Column("REJECTED", lambda c: c.rejected_reason, note=True),
]

ROLLOUTS = [
    Column("ID", lambda r: r.rollout_id),
    Column("PROFILE", lambda r: r.profile),
    Column("DIGEST", lambda r: short(r.digest)),
    Column("STATE", _state),
    Column("STARTED", lambda r: clock_text(r.create_time), rank=1),
    Column("GROUPS", _groups, note=True),
    Column("MESSAGE", lambda r: r.message, note=True),
]

ROLLOUT_DEVICES = [
    Column("DEVICE", lambda d: d.device_id),
    Column("GROUP", lambda d: d.group),
    Column("STAGE", lambda d: d.stage),
    Column("UNTIL (UTC)", lambda d: clock_text(d.until_time), rank=1),
    Column("WHY", lambda d: d.wait_reason or d.message, note=True),
]

DECISIONS = [
    Column("TIME (UTC)", lambda d: clock_text(d.decide_time)),
    Column("PROFILE", lambda d: d.profile),
    Column("ACTION", lambda d: d.action),
    Column("SERVING", lambda d: short(d.current_digest), rank=1),
    Column("CHOSEN", lambda d: short(d.chosen_digest)),
    Column("P95", lambda d: milliseconds(d.measured_p95_ms)),
    Column("OBJECTIVE", lambda d: milliseconds(d.objective_p95_ms)),
    Column("REASON", lambda d: d.reason, note=True),
]

JOBS = [
    Column("ID", lambda j: j.job_id),
    Column("KIND", lambda j: j.kind),
    Column("WORKLOAD", lambda j: j.workload, rank=1),
    Column("PROFILE", lambda j: j.profile or "-", rank=2),
    Column("STATE", _state),
    Column("PROGRESS", lambda j: f"{j.progress * 100:.0f} %"),
    Column("TRIALS", lambda j: f"{j.num_finished_trials}/{j.num_trials}" if j.num_trials else "-"),
    Column("MESSAGE", lambda j: j.message, note=True),
]

MEASUREMENTS = [
    Column("TIME (UTC)", lambda m: clock_text(m.end_time)),
    Column("DEVICE", lambda m: m.device_id),
    Column("DIGEST", lambda m: short(m.digest)),
    Column("GENERATION", lambda m: str(m.generation), rank=2),
    Column("SAMPLES", lambda m: str(m.num_samples)),
    Column("P50", lambda m: milliseconds(m.p50_ms)),
    Column("P95", lambda m: milliseconds(m.p95_ms)),
    Column("REFERENCE", lambda m: milliseconds(m.reference_p50_ms), rank=1),
    Column("RSS", lambda m: size(m.rss_bytes), rank=3),
]

STATUSES = [
    Column("TIME (UTC)", lambda s: clock_text(s.event_time)),
    Column("GENERATION", lambda s: str(s.generation)),
    Column("DIGEST", lambda s: short(s.digest)),
    Column("STATE", _state),
    Column("MESSAGE", lambda s: f"{s.code}: {s.message}" if s.code else s.message, note=True),
]

IDENTITIES = [
    Column("DEVICE", lambda i: i.device_id),
    Column("STATE", lambda i: i.state),
    Column("CERTIFICATE UNTIL (UTC)", lambda i: clock_text(i.expire_time)),
    Column("TOKEN UNTIL (UTC)", lambda i: clock_text(i.token_expire_time), rank=1),
    Column("LABELS", lambda i: ", ".join(f"{key}={i.labels[key]}" for key in sorted(i.labels)), note=True),
]

OPERATORS = [
    Column("NAME", lambda o: o.name),
    Column("ROLE", lambda o: o.role),
    Column("STATE", lambda o: o.state),
    Column("CREATED (UTC)", lambda o: clock_text(o.create_time), rank=1),
    Column("UNTIL (UTC)", lambda o: clock_text(o.expire_time)),
]

AUDIT = [
    Column("TIME (UTC)", lambda a: clock_text(a.event_time)),
    Column("WHO", lambda a: a.actor),
    Column("ACTION", lambda a: a.action),
    Column("TARGET", lambda a: a.target or "-"),
    Column("OUTCOME", lambda a: a.outcome),
    Column("FROM", lambda a: a.peer or "-", rank=1),
    Column("MESSAGE", lambda a: a.message, note=True),
]
