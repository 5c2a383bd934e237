"""What a job consists of, the names of its tasks, and how it tells of itself.

A task's id names its content (teacher, profile, spec): the same content gives the same id, whoever asks for
it and whenever, so that what was built once is found again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

from cloud.domain.jobs import Job, JobKind, JobState, Trial
from cloud.domain.profiles import DeviceProfile
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.tasks import TeacherResult
from cloud.domain.workloads import Workload
from cloud.family_plans import family_key_of
from cloud.workload_source import network_identity


def teacher_task_ids(workload: Workload, *, again_for: str = "") -> tuple[str, ...]:
    """One for each of the workload's teachers, the same for every job that needs them.

    ``again_for`` is a job that trains them once more.
    """
    ending = f"-{again_for}" if again_for else ""
    return tuple(f"teacher-{member.teacher_key}{ending}" for member in workload.members)


def student_task_id(
    workload: Workload, teacher: TeacherResult, profile: DeviceProfile, spec: CompressionSpec
) -> str:
    """Identity of a student by all that it is built from.

    A network that the workload no longer has gives an identity too: the build says what is wrong.
    """
    identity = {
        "teacher": teacher.identity,
        "workload": workload.name,
        "student": workload.student,
        "profile": profile.name,
        "instruction_sets": sorted(profile.instruction_sets),
        "num_threads": profile.num_threads,
        "num_calibration_samples": workload.search.num_calibration_samples,
        "spec": spec.to_json(),
    }
    if spec.road is Road.ELASTIC:
        identity["family"] = family_key_of(workload, teacher)
    if spec.network is not None:
        with contextlib.suppress(ValueError):
            identity["network"] = network_identity(workload, spec.network)
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return "student-" + hashlib.sha256(text.encode()).hexdigest()[:24]


def train_job(job_id: str, workload: Workload, now_s: float, *, force: bool = False) -> Job:
    """A job that trains the workload's teacher, or teachers."""
    task_ids = teacher_task_ids(workload, again_for=job_id if force else "")
    return Job(
        job_id=job_id,
        kind=JobKind.TRAIN,
        workload=workload.name,
        trials=tuple(Trial(task_id=task_id) for task_id in task_ids),
        create_time_s=now_s,
    )


def compress_job(
    job_id: str,
    profile: DeviceProfile,
    specs: tuple[CompressionSpec, ...],
    now_s: float,
    *,
    decision_id: str = "",
    max_trials: int = 0,
    reasons: Mapping[str, str] | None = None,
) -> Job:
    """A job that builds these students. Their task ids are filled in once the teacher is known.

    A search gives ``max_trials``: further rungs may follow from what the first ones measured.
    ``reasons`` is why each was proposed, by spec digest.
    """
    trials = tuple(
        Trial(task_id=f"{job_id}-{number}", spec=spec, reason=(reasons or {}).get(spec.digest, ""))
        for number, spec in enumerate(specs)
    )
    return Job(
        job_id=job_id,
        kind=JobKind.COMPRESS,
        workload=profile.workload,
        profile=profile.name,
        trials=trials,
        decision_id=decision_id,
        create_time_s=now_s,
        max_trials=max_trials,
    )


def with_trial(job: Job, trial: Trial) -> Job:
    """The job with this trial in place of the one of the same task."""
    trials = [trial if trial.task_id == other.task_id else other for other in job.trials]
    return replace(job, trials=tuple(trials), progress=_mean(trials))


def described(job: Job, progress: Mapping[str, tuple[float, str]]) -> Job:
    """A running job with the newest words of its tasks: (fraction, message) by task id."""
    trials = []
    messages = []
    waits_for_family = False
    for trial in job.trials:
        fraction, message = progress.get(trial.task_id, (trial.progress, ""))
        if not trial.state.finished:
            trial = replace(trial, state=JobState.RUNNING, progress=max(fraction, trial.progress))
            if message:
                messages.append(message)
            elif trial.spec is not None and trial.spec.road is Road.ELASTIC:
                waits_for_family = True
        trials.append(trial)
    if job.kind is JobKind.COMPRESS:
        num_finished = sum(trial.state.finished for trial in trials)
        text = f"{num_finished} of {len(trials)} students done"
        if waits_for_family:
            messages.append("the elastic family is trained first")
        text += f": {messages[0]}" if messages else ""
    else:
        text = messages[0] if messages else "training"
        if len(trials) > 1:
            num_finished = sum(trial.state.finished for trial in trials)
            text = f"{num_finished} of {len(trials)} teachers done: {text}"
    return replace(job, state=JobState.RUNNING, trials=tuple(trials), progress=_mean(trials), message=text)


def _mean(trials: list[Trial]) -> float:
    return round(sum(1.0 if trial.state.finished else trial.progress for trial in trials) / len(trials), 3)
