"""Units of compute: what is handed to the cluster, and what comes back.

A task is idempotent by its ``task_id``: it may run twice, and gives the same content-addressed result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cloud.domain.candidates import Candidate
from cloud.domain.families import FamilyResult, FamilySettings
from cloud.domain.profiles import DeviceProfile
from cloud.domain.specs import CompressionSpec
from cloud.domain.workloads import Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherResult:
    """A trained teacher. ``checkpoint_digest`` is its weights, ``artifact_digest`` its fp32 ONNX graph.

    ``metric`` is what ``accuracy`` and ``test_accuracy`` are: see ``Loss.metric``. ``num_inputs`` is how many
    values one input has, and ``num_branches`` how many branches beside shortcuts the network has that may be
    left out; ``num_shortcuts`` is how many shortcuts it has and can do without (0: it needs them). All are 0
    where an older release trained it. ``other_checkpoints`` are the weights of the other
    teachers of an ensemble: students learn from all, and are narrowed from this one. ``ensemble_accuracy``
    and ``ensemble_test_accuracy`` are then what the mean of all reaches, None where that is not known.
    ``outputs_digest`` is what one teacher gave for both splits, empty where it was not kept.
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
    other_checkpoints: tuple[str, ...] = ()
    num_branches: int = 0
    outputs_digest: str = ""
    ensemble_accuracy: float | None = None
    ensemble_test_accuracy: float | None = None
    num_shortcuts: int = 0

    @property
    def taught_accuracy(self) -> float:
        """Of what students learn from, on the validation split; its best member's where that is unknown."""
        return self.accuracy if self.ensemble_accuracy is None else self.ensemble_accuracy

    @property
    def identity(self) -> str:
        """Of all weights that students learn from."""
        if not self.other_checkpoints:
            return self.checkpoint_digest
        text = "\n".join((self.checkpoint_digest, *self.other_checkpoints))
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def ensemble(cls, teacher_key: str, members: Sequence[TeacherResult]) -> TeacherResult:
        """Several as one, which goes by that key.

        It is the most accurate (of equals the first), with the others' weights; all of their time was spent.
        """
        lead = max(members, key=lambda member: member.accuracy)
        others = tuple(member.checkpoint_digest for member in members if member is not lead)
        train_s = sum(member.train_s for member in members)
        return replace(
            lead, teacher_key=teacher_key, other_checkpoints=others, train_s=train_s, outputs_digest=""
        )


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
