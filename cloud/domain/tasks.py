"""Units of compute: what is handed to the cluster, and what comes back.

A task is idempotent by its ``task_id``: it may run twice, and gives the same content-addressed result.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloud.domain.candidates import Candidate
from cloud.domain.families import FamilyResult, FamilySettings
from cloud.domain.profiles import DeviceProfile
from cloud.domain.specs import CompressionSpec
from cloud.domain.workloads import Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherResult:
    """A trained teacher. ``checkpoint_digest`` is its weights, ``artifact_digest`` its fp32 ONNX graph.

    ``metric`` is what ``accuracy`` and ``test_accuracy`` are: see ``Loss.metric``. ``num_inputs`` is how many
    values one input has, 0 where an older release trained it.
    """

    workload: str
    teacher_key: str
    checkpoint_digest: str
    artifact_digest: str
    artifact_bytes: int
    accuracy: float
    test_accuracy: float
    macs: int
    num_parameters: int
    latency_p50_ms: float
    reference_p50_ms: float
    num_epochs: int
    train_s: float
    metric: str = "accuracy"
    num_inputs: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherTask:
    """Train the workload's teacher. ``attempt`` names one more training beside a finished one, or is ""."""

    task_id: str
    workload: Workload
    attempt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyTask:
    """Train the elastic family of a teacher."""

    task_id: str
    workload: Workload
    teacher: TeacherResult
    settings: FamilySettings


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentTask:
    """Build, measure and register one student. ``parent_digest`` is what it may not be slower than, or "".

    ``family`` is there when the spec's road is elastic.
    """

    task_id: str
    workload: Workload
    teacher: TeacherResult
    profile: DeviceProfile
    spec: CompressionSpec
    parent_digest: str = ""
    family: FamilyResult | None = None


Task = TeacherTask | FamilyTask | StudentTask
TaskResult = TeacherResult | FamilyResult | Candidate


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskProgress:
    """``fraction`` is 0 to 1."""

    task_id: str
    fraction: float
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSucceeded:
    task_id: str
    result: TaskResult


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFailed:
    """``code`` is stable: "config" (fix the workload), "cancelled", "failed" (retries are used up)."""

    task_id: str
    code: str
    message: str


TaskEvent = TaskProgress | TaskSucceeded | TaskFailed
