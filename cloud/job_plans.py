"""What a job consists of, and the names of its tasks.

A task's id names its content (teacher, profile, spec): the same content gives the same id, whoever asks for
it and whenever, so that what was built once is found again.
"""

from __future__ import annotations

import hashlib
import json

from cloud.domain.jobs import Job, JobKind, Trial
from cloud.domain.profiles import DeviceProfile
from cloud.domain.specs import CompressionSpec
from cloud.domain.tasks import TeacherResult
from cloud.domain.workloads import Workload


def teacher_task_id(workload: Workload, *, again_for: str = "") -> str:
    """The same for every job that needs this teacher; ``again_for`` is a job that trains it once more."""
    return f"teacher-{workload.teacher_key}" + (f"-{again_for}" if again_for else "")


def student_task_id(
    workload: Workload, teacher: TeacherResult, profile: DeviceProfile, spec: CompressionSpec
) -> str:
    """Identity of a student by all that it is built from."""
    identity = {
        "teacher": teacher.checkpoint_digest,
        "workload": workload.name,
        "student": workload.student,
        "profile": profile.name,
        "instruction_sets": sorted(profile.instruction_sets),
        "num_threads": profile.num_threads,
        "num_calibration_samples": workload.search.num_calibration_samples,
        "spec": spec.to_json(),
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return "student-" + hashlib.sha256(text.encode()).hexdigest()[:24]


def train_job(job_id: str, workload: Workload, now_s: float, *, force: bool = False) -> Job:
    """A job that trains the workload's teacher."""
    task_id = teacher_task_id(workload, again_for=job_id if force else "")
    return Job(
        job_id=job_id,
        kind=JobKind.TRAIN,
        workload=workload.name,
        trials=(Trial(task_id=task_id),),
        create_time_s=now_s,
    )


def compress_job(
    job_id: str,
    profile: DeviceProfile,
    specs: tuple[CompressionSpec, ...],
    now_s: float,
    *,
    decision_id: str = "",
) -> Job:
    """A job that builds these students. Their task ids are filled in once the teacher is known."""
    trials = tuple(Trial(task_id=f"{job_id}-{number}", spec=spec) for number, spec in enumerate(specs))
    return Job(
        job_id=job_id,
        kind=JobKind.COMPRESS,
        workload=profile.workload,
        profile=profile.name,
        trials=trials,
        decision_id=decision_id,
        create_time_s=now_s,
    )
