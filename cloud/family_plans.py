"""Which elastic family a workload's students are cut from, and where it is kept.

Rules: a family belongs to one trained teacher and one way of training; whoever needs it finds the same one.
It counts only while the registry holds its weights: what was deleted there is trained again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cloud.domain import codec
from cloud.domain.families import FamilyResult, FamilySettings, family_key
from cloud.domain.jobs import Job, JobKind, Trial
from cloud.domain.tasks import TeacherResult
from cloud.domain.workloads import Workload

#: Epochs of a family that was asked for by name where the workload's search has none.
DEFAULT_NUM_EPOCHS = 4


class MetaStore(Protocol):
    """What of the store is used here."""

    def get_meta(self, key: str, default: str = "") -> str: ...

    def set_meta(self, key: str, value: str) -> None: ...


def family_settings(workload: Workload) -> FamilySettings:
    """How the workload's family is trained."""
    search = workload.search
    return FamilySettings(
        num_epochs=search.family_epochs or DEFAULT_NUM_EPOCHS,
        depth_ratios=search.shorter_depths,
        learning_rate=workload.training.student_learning_rate,
    )


def family_key_of(workload: Workload, teacher: TeacherResult) -> str:
    """Identity of the workload's family."""
    return family_key(teacher.identity, family_settings(workload))


def family_task_id(workload: Workload, teacher: TeacherResult) -> str:
    """The same for every job that needs this family."""
    return f"family-{family_key_of(workload, teacher)}"


def family_job(job_id: str, workload: Workload, teacher: TeacherResult, now_s: float) -> Job:
    """A job that trains the workload's family."""
    return Job(
        job_id=job_id,
        kind=JobKind.FAMILY,
        workload=workload.name,
        trials=(Trial(task_id=family_task_id(workload, teacher)),),
        create_time_s=now_s,
    )


def save_family(store: MetaStore, family: FamilyResult) -> None:
    """Keep it for everyone."""
    store.set_meta(f"family/{family.family_key}", codec.to_json(family))


def known_family(
    store: MetaStore, workload: Workload, teacher: TeacherResult, has_blob: Callable[[str], bool]
) -> FamilyResult | None:
    """The workload's family, when it was trained and its weights are there."""
    text = store.get_meta(f"family/{family_key_of(workload, teacher)}")
    if not text:
        return None
    try:
        family = codec.from_json(FamilyResult, text)
    except ValueError:
        return None  # written by another version: it is trained again
    return family if has_blob(family.checkpoint_digest) else None
