"""Values to the messages that the control script shows. Nothing is read or decided here."""

from __future__ import annotations

from collections.abc import Collection

from cloud.domain.candidates import Candidate
from cloud.domain.decisions import Decision
from cloud.domain.devices import Deployment, DeploymentStatus, HostedWorkload
from cloud.domain.evidence import Window
from cloud.domain.groups import shown_state
from cloud.domain.jobs import Job, JobState
from cloud.domain.profiles import Constraints
from cloud.domain.rollout import Rollout, RolloutDeviceState, RolloutGroup, RolloutState
from cloud.domain.tasks import TeacherResult
from cloud.services.convert import status_to_proto, timestamp
from cloud.store import LedgerEntry, sketch_of
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1 import deployment_pb2

_JOB_STATES = {
    JobState.PENDING: pb.JOB_STATE_PENDING,
    JobState.RUNNING: pb.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: pb.JOB_STATE_SUCCEEDED,
    JobState.FAILED: pb.JOB_STATE_FAILED,
    JobState.CANCELLED: pb.JOB_STATE_CANCELLED,
}
_ROLLOUT_STATES = {
    RolloutState.RUNNING: pb.ROLLOUT_STATE_RUNNING,
    RolloutState.PAUSED: pb.ROLLOUT_STATE_PAUSED,
    RolloutState.SUCCEEDED: pb.ROLLOUT_STATE_SUCCEEDED,
    RolloutState.FAILED: pb.ROLLOUT_STATE_FAILED,
    RolloutState.ABORTED: pb.ROLLOUT_STATE_ABORTED,
    RolloutState.SUPERSEDED: pb.ROLLOUT_STATE_SUPERSEDED,
}
_FAILED = frozenset({RolloutDeviceState.FAILED, RolloutDeviceState.TIMED_OUT})


def teacher_info(teacher: TeacherResult) -> pb.TeacherInfo:
    return pb.TeacherInfo(
        digest=teacher.artifact_digest,
        accuracy=teacher.accuracy,
        macs=teacher.macs,
        num_parameters=teacher.num_parameters,
        artifact_bytes=teacher.artifact_bytes,
        test_accuracy=teacher.test_accuracy,
        metric=teacher.metric,
        ensemble_accuracy=teacher.ensemble_accuracy or 0.0,
        ensemble_test_accuracy=teacher.ensemble_test_accuracy or 0.0,
    )


def constraints_info(constraints: Constraints) -> pb.ConstraintsInfo:
    return pb.ConstraintsInfo(
        latency_p95_ms=constraints.latency_p95_ms or 0.0,
        artifact_bytes=constraints.artifact_bytes or 0,
        peak_rss_bytes=constraints.peak_rss_bytes or 0,
        min_accuracy=constraints.min_accuracy or 0.0,
    )


def candidate_info(
    candidate: Candidate, *, front: Collection[str], predicted_p95_ms: float
) -> pb.CandidateInfo:
    metrics = candidate.metrics
    return pb.CandidateInfo(
        digest=candidate.digest,
        workload=candidate.workload,
        profile=candidate.profile,
        parent_digest=candidate.parent_digest,
        spec_json=candidate.spec.to_json(),
        precision=candidate.precision.value,
        accuracy=metrics.accuracy,
        test_accuracy=metrics.test_accuracy,
        metric=metrics.metric,
        artifact_bytes=metrics.artifact_bytes,
        macs=metrics.macs,
        num_parameters=metrics.num_parameters,
        latency_p50_ms=metrics.latency_p50_ms,
        latency_p95_ms=metrics.latency_p95_ms,
        peak_rss_bytes=metrics.peak_rss_bytes,
        on_front=candidate.digest in front,
        rejected_reason=candidate.rejected_reason,
        predicted_p95_ms=predicted_p95_ms,
        create_time=timestamp(candidate.create_time_s),
        executable_bytes=metrics.executable_bytes,
        proposed_reason=candidate.proposed_reason,
        int8_loss=metrics.int8_loss or 0.0,
    )


def rollout_info(rollout: Rollout, *, update_time_s: float = 0.0) -> pb.RolloutInfo:
    return pb.RolloutInfo(
        rollout_id=rollout.rollout_id,
        workload=rollout.workload,
        profile=rollout.profile,
        digest=rollout.digest,
        previous_digest=rollout.previous_digest,
        state=_ROLLOUT_STATES[rollout.state],
        groups=[_group_info(group, rollout.state.is_terminal) for group in rollout.groups],
        decision_id=rollout.decision_id,
        message=rollout.message,
        create_time=timestamp(rollout.create_time_s),
        update_time=timestamp(max(update_time_s, rollout.update_time_s)),
    )


def _group_info(group: RolloutGroup, rollout_ended: bool) -> pb.RolloutGroupInfo:
    states = [device.state for device in group.devices]
    return pb.RolloutGroupInfo(
        name=group.name,
        state=shown_state(group.state, rollout_ended=rollout_ended),
        num_devices=len(states),
        num_pending=states.count(RolloutDeviceState.WAITING),
        num_in_progress=states.count(RolloutDeviceState.IN_PROGRESS),
        num_active=states.count(RolloutDeviceState.SUCCEEDED),
        num_failed=sum(state in _FAILED for state in states),
    )


def decision_info(entry: LedgerEntry, *, with_inputs: bool = True) -> pb.DecisionInfo:
    decision: Decision = entry.decision
    return pb.DecisionInfo(
        decision_id=entry.decision_id,
        profile=decision.profile,
        workload=decision.workload,
        action=decision.action.value,
        reason=decision.reason,
        current_digest=decision.current_digest,
        chosen_digest=decision.chosen_digest,
        objective_p95_ms=decision.objective_p95_ms,
        measured_p95_ms=decision.measured_p95_ms,
        num_samples=decision.num_samples,
        decide_time=timestamp(entry.decide_time_s),
        inputs_json=decision.inputs_json() if with_inputs else "",
    )


def job_info(job: Job) -> pb.JobInfo:
    specs = [trial for trial in job.trials if trial.spec is not None]
    return pb.JobInfo(
        job_id=job.job_id,
        kind=job.kind.value,
        workload=job.workload,
        profile=job.profile,
        state=_JOB_STATES[job.state],
        progress=job.progress,
        message=job.message,
        num_trials=len(specs),
        num_finished_trials=sum(trial.state.finished for trial in specs),
        num_failed_trials=sum(trial.state is JobState.FAILED for trial in specs),
        decision_id=job.decision_id,
        create_time=timestamp(job.create_time_s),
        end_time=timestamp(job.end_time_s) if job.end_time_s else None,
        candidate_digests=job.candidate_digests,
    )


def hosted_info(host: HostedWorkload, told: Deployment | None, *, p95_ms: float) -> pb.HostedWorkloadInfo:
    """One of several workloads on a device."""
    info = pb.HostedWorkloadInfo(
        workload=host.workload,
        profile=host.profile,
        generation=host.serving_generation,
        serving_digest=host.serving_digest,
        p95_ms=p95_ms,
        message=host.message,
    )
    if told is not None:
        info.desired_generation = told.generation
        info.desired_digest = told.digest
        info.deployment.CopyFrom(deployment_info(told))
    return info


def deployment_info(deployment: Deployment) -> deployment_pb2.DeploymentStatus:
    """What a device should run, and how far it says that it is."""
    return status_to_proto(
        DeploymentStatus(
            device_id=deployment.device_id,
            generation=deployment.generation,
            digest=deployment.digest,
            state=deployment.state,
            code=deployment.code,
            message=deployment.message,
            event_time_s=deployment.update_time_s,
            progress=deployment.progress,
        )
    )


def measurement(window: Window, profile: str) -> pb.Measurement:
    """One window. Empty ones have no quantiles."""
    count = window.latency.count
    found = pb.Measurement(
        device_id=window.device_id,
        profile=profile,
        digest=window.digest,
        generation=window.generation,
        start_time=timestamp(window.start_s),
        end_time=timestamp(window.end_s),
        num_samples=count,
        p50_ms=window.latency.quantile(0.5) if count else 0.0,
        p95_ms=window.latency.quantile(0.95) if count else 0.0,
        reference_p50_ms=window.reference.quantile(0.5) if window.reference.count else 0.0,
        rss_bytes=window.rss_bytes,
        emulated_slowdown=window.emulated_slowdown,
    )
    found.latency.CopyFrom(sketch_of(window.latency).to_proto())
    return found
