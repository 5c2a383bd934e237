"""Values that the store's tests share, and a database that holds one of each."""

from __future__ import annotations

from cloud.domain.candidates import Candidate, CandidateMetrics
from cloud.domain.decisions import Action, Decision, Verdict
from cloud.domain.devices import DeploymentState, DeploymentStatus, Device
from cloud.domain.jobs import Job, JobKind, JobState, Trial
from cloud.domain.profiles import Constraints, DeviceProfile, Hardware, MatchRule, RolloutPlan
from cloud.domain.rollout import DeploymentIntent, Rollout, RolloutDevice, RolloutGroup
from cloud.domain.specs import CompressionSpec, Precision, Road
from cloud.domain.state import PolicyState
from cloud.domain.tasks import TeacherResult
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload
from cloud.store import ReportRow, Store
from edgeloop.sketch import LatencySketch

D1 = "1" * 64
D2 = "2" * 64
M1 = "a" * 64
M2 = "b" * 64
SKETCH = LatencySketch.of([1.0, 1.5, 2.0, 4.0])
REFERENCE = LatencySketch.of([0.2, 0.21])

WORKLOAD = Workload(
    name="digits",
    dataset="digits",
    dataset_options={"split": 3},
    training=TrainingBudget(num_epochs=3, augment_flip=True),
    search=SearchBudget(max_trials=4, width_ratios=(0.5, 0.25)),
    source_dir="examples/digits",
)
TEACHER = TeacherResult(
    workload="digits",
    teacher_key="feed",
    checkpoint_digest=D1,
    artifact_digest=D2,
    artifact_bytes=400_000,
    accuracy=0.99,
    test_accuracy=0.985,
    macs=9_000_000,
    num_parameters=117_000,
    latency_p50_ms=0.2,
    reference_p50_ms=0.1,
    num_epochs=3,
    train_s=12.5,
)
PROFILE = DeviceProfile(
    name="gateway-small",
    workload="digits",
    match=MatchRule(architecture="x86_64", instruction_sets=frozenset({"avx2"}), labels={"class": "small"}),
    constraints=Constraints(latency_p95_ms=8.0, min_accuracy=0.9),
    instruction_sets=frozenset({"avx2", "sse4_2"}),
    rollout=RolloutPlan(canary_share=0.25),
)
# As every spec was written before ADR 94.
SPEC = CompressionSpec(road=Road.DISTILLED, width_ratio=0.5, precision=Precision.INT8, learning_rate=2e-3)
CANDIDATE = Candidate(
    digest=D1,
    manifest_digest=M1,
    workload="digits",
    profile=PROFILE.name,
    parent_digest=D2,
    spec=SPEC,
    precision=Precision.INT8,
    metrics=CandidateMetrics(
        accuracy=0.97,
        test_accuracy=0.965,
        latency_p50_ms=0.08,
        latency_p95_ms=0.09,
        reference_p50_ms=0.1,
        artifact_bytes=46_000,
        peak_rss_bytes=64_000_000,
        macs=2_000_000,
        num_parameters=30_000,
    ),
    create_time_s=100.0,
)
JOB = Job(
    job_id="job-1",
    kind=JobKind.COMPRESS,
    workload="digits",
    profile=PROFILE.name,
    state=JobState.RUNNING,
    progress=0.5,
    trials=(Trial(task_id="t1", spec=SPEC, state=JobState.SUCCEEDED, digest=D1), Trial(task_id="t2")),
    decision_id="decision-1",
    create_time_s=101.0,
)
HARDWARE = Hardware(
    architecture="x86_64",
    num_cores=2,
    memory_bytes=4 << 30,
    instruction_sets=frozenset({"avx2", "fma"}),
    processor="EPYC",
    runtime_version="1.32.0",
)
DEVICE = Device(
    device_id="gw-1",
    hardware=HARDWARE,
    labels={"class": "small"},
    agent_version="0.1.0",
    boot_id="boot-1",
    emulated_slowdown=3,
    operating_system="Linux",
    python_version="3.11.9",
)
INTENT = DeploymentIntent(
    device_id="gw-1",
    workload="digits",
    profile=PROFILE.name,
    digest=D1,
    manifest_digest=M1,
    rollout_id="rollout-1",
    decision_id="decision-1",
)
STATUS = DeploymentStatus(
    device_id="gw-1",
    generation=1,
    digest=D1,
    state=DeploymentState.ACTIVE,
    code="",
    message="serving",
    event_time_s=120.0,
)
DECISION = Decision(
    profile=PROFILE.name,
    workload="digits",
    action=Action.BUILD,
    verdict=Verdict.MISSES,
    reason="p95 9.1 ms over 8 ms",
    current_digest=D2,
    specs=(SPEC,),
    measured_p95_ms=9.1,
    objective_p95_ms=8.0,
    num_samples=1200,
    inputs={"now_s": 110.0, "windows": [[1, 2.5], [3, None]]},
)
QUIET = Decision(
    profile=PROFILE.name,
    workload="digits",
    action=Action.KEEP,
    verdict=Verdict.MEETS,
    reason="p95 7.0 ms",
    current_digest=D1,
    measured_p95_ms=7.0,
)
ROLLOUT = Rollout(
    rollout_id="rollout-1",
    profile=PROFILE.name,
    workload="digits",
    digest=D1,
    manifest_digest=M1,
    previous_digest=D2,
    previous_manifest_digest=M2,
    plan=PROFILE.rollout,
    groups=(RolloutGroup(name="canary", devices=(RolloutDevice(device_id="gw-1"),)),),
    create_time_s=111.0,
    update_time_s=111.0,
    decision_id="decision-1",
)
STATE = PolicyState(current_digest=D1, last_change_s=110.0, num_rollouts={D1: 1})


def report(sequence: int, **changes: object) -> ReportRow:
    """A report of gw-1's first boot."""
    row = ReportRow(
        device_id="gw-1",
        boot_id="boot-1",
        sequence=sequence,
        digest=D1,
        generation=1,
        workload="digits",
        start_s=130.0 + sequence,
        end_s=131.0 + sequence,
        num_samples=SKETCH.count,
        latency=SKETCH.to_bytes(),
        reference=REFERENCE.to_bytes(),
        num_errors=2,
        rss_bytes=80 << 20,
        emulated_slowdown=3,
        num_dropped_reports=1,
    )
    return row._replace(**changes)


def fill(store: Store) -> None:
    """One of everything."""
    store.set_meta("controller_paused", "yes")
    store.apply_workload(WORKLOAD, 90.0)
    store.apply_profile(PROFILE, 91.0)
    store.save_teacher(TEACHER, 95.0)
    store.save_candidate(CANDIDATE, 100.0)
    store.record_failed_trial(PROFILE.name, SPEC, "failed", "ran out of memory", 102.0)
    store.register_device(DEVICE, PROFILE.name, "", 103.0)
    store.commit_decision("decision-1", DECISION, STATE, 110.0, job=JOB, rollout=ROLLOUT)
    store.commit_decision("decision-2", QUIET, STATE, 112.0)
    store.commit_decision("decision-3", QUIET, STATE, 113.0)
    store.set_current(PROFILE.name, D1, manifest_digest=M1, rollout_id="rollout-1", now_s=114.0)
    store.issue_deployment(INTENT, 115.0)
    store.set_signed({("gw-1", 1): b"signed bytes"})
    store.record_status(STATUS, 121.0)
    store.insert_reports([report(0), report(1)], 140.0)
