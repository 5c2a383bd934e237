"""Several teachers of one workload as one, once all are trained: what is stored of them, and what is said.

Rule: the mean, which is what students learn from, is scored from what each teacher gave; nothing is run for
it. Teachers of an older release kept no outputs, and what their mean reaches stays unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from cloud.domain.tasks import TeacherResult
from cloud.domain.workloads import Workload
from cloud.job_parts import JobStore
from cloud.training import kept_outputs
from edgeloop.errors import EdgeloopError

logger = logging.getLogger(__name__)


def finish_training(
    store: JobStore, workload: Workload, now_s: float, get_blob: Callable[[str], bytes]
) -> str:
    """Store an ensemble as the workload's teacher; what to say of teachers that are all there."""
    found = [store.teacher(member.teacher_key) for member in workload.members]
    trained = [teacher for teacher in found if teacher is not None]
    if not trained:
        return "teacher trained"
    told = ", ".join(f"{teacher.accuracy:.4f}" for teacher in trained)
    if len(trained) == 1:
        return f"teacher trained: {trained[0].metric} {told} on the validation split"
    ensemble = scored(TeacherResult.ensemble(workload.teacher_key, trained), trained, workload, get_blob)
    store.save_teacher(ensemble, now_s)
    together = "" if ensemble.ensemble_accuracy is None else f", their mean {ensemble.ensemble_accuracy:.4f}"
    return f"{len(trained)} teachers trained: {trained[0].metric} {told}{together} on the validation split"


def scored(
    ensemble: TeacherResult,
    members: Sequence[TeacherResult],
    workload: Workload,
    get_blob: Callable[[str], bytes],
) -> TeacherResult:
    """``ensemble`` with what the mean of its members reaches, where that can be known."""
    if not all(member.outputs_digest for member in members):
        return ensemble
    try:
        kept = [get_blob(member.outputs_digest) for member in members]
        validation, test = kept_outputs.score_mean(workload.loss, kept)
    except EdgeloopError as error:
        logger.warning("what the teachers of %s reach together is not known: %s", workload.name, error)
        return ensemble
    return replace(ensemble, ensemble_accuracy=validation, ensemble_test_accuracy=test)
