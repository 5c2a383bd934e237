"""A student's fp32 network, made and trained along the road that its spec takes.

Rules: what cannot be had is said before any training; what students learn from is the teacher, or all of its
ensemble; the network that comes out is on the CPU, in evaluation mode.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from cloud.compression.attention import open_attention
from cloud.compression.budget import check_artifact_bytes, check_calibration, check_epochs, narrowest
from cloud.compression.cost import count_parameters
from cloud.compression.dependency import trace_channels
from cloud.compression.depth import as_deep_as, without_shortcuts
from cloud.compression.distil import DistilResult, distil, part_of
from cloud.compression.family import Blobs, cut_student
from cloud.compression.narrow import narrow, split_epochs
from cloud.compression.own_students import make_own
from cloud.compression.prune import reinitialise
from cloud.compression.sparsify import Sparsifier, sparsifier_for
from cloud.compression.view_answers import AnswerShelf
from cloud.domain.specs import Road
from cloud.domain.tasks import StudentTask
from cloud.training.datasets import Dataset
from edgeloop.errors import RejectedError

logger = logging.getLogger(__name__)

Report = Callable[[float, str], None]

#: Where the training begins in the progress of a student that is made and trained.
TRAIN_FROM = 0.125


def trained_student(
    task: StudentTask,
    teacher: nn.Module,
    wisdom: nn.Module,
    dataset: Dataset,
    *,
    device: torch.device,
    registry: Blobs,
    report: Report,
    shelf: AnswerShelf | None = None,
) -> nn.Module:
    """The trained network of ``task``, whatever its road, rules aside.

    ``shelf`` holds answers of ``wisdom``, what students learn from. ``report`` gets 0 to 1.
    """
    if task.spec.network is not None:
        progress = part_of(report, TRAIN_FROM, 1.0)
        return make_own(task, wisdom, dataset, device=device, report=progress, shelf=shelf)
    if task.spec.road is Road.ELASTIC:
        return make_elastic(task, teacher, dataset, device=device, registry=registry, report=report,
                            wisdom=wisdom, shelf=shelf)  # fmt: skip
    return make_student(task, teacher, dataset, device=device, report=report, wisdom=wisdom, shelf=shelf)


def make_student(
    task: StudentTask,
    teacher: nn.Module,
    dataset: Dataset,
    *,
    device: torch.device,
    report: Report,
    wisdom: nn.Module | None = None,
    shelf: AnswerShelf | None = None,
) -> nn.Module:
    """The student's network, narrowed from ``teacher`` and trained along the spec's road by ``wisdom``."""
    spec, training = task.spec, task.workload.training
    check_epochs(spec)
    check_calibration(task.workload, dataset)
    report(0.05, "choosing channels")
    opened = as_deep_as(spec, open_attention(teacher), dataset, training, device)
    opened = without_shortcuts(spec, opened, dataset.input_shape)
    _check_bytes(task, opened, dataset)

    def train(student: nn.Module, num_epochs: int, rule: Sparsifier | None = None) -> DistilResult:
        lesson = replace(spec, num_epochs=num_epochs)
        if spec.road is Road.SCRATCH:
            lesson = replace(lesson, alpha=0.0, hint_weight=None)
        return distil(
            student,
            teacher if wisdom is None else wisdom,
            dataset,
            spec=lesson,
            training=training,
            device=device,
            report=part_of(report, TRAIN_FROM, 1.0),
            rule=rule,
            shelf=shelf,
        )

    between, last = split_epochs(spec)
    student = narrow(
        opened,
        dataset,
        spec=spec,
        batch_size=training.batch_size,
        device=device,
        tune=lambda network: train(network, between),
    )
    same = count_parameters(student) == count_parameters(teacher)
    if spec.road is Road.PRUNED and same and spec.sparsity is None and spec.shortcuts is None:
        report(1.0, "nothing to remove: the student is the teacher")
        return student.cpu().eval()
    if spec.road is not Road.PRUNED:
        reinitialise(student, spec.seed)
    result = train(student, last, sparsifier_for(task, dataset))
    logger.debug("%s: best epoch %d, %.4f", task.task_id, result.best_epoch, result.validation_accuracy)
    return student.cpu().eval()


def make_elastic(
    task: StudentTask,
    teacher: nn.Module,
    dataset: Dataset,
    *,
    device: torch.device,
    registry: Blobs,
    report: Report,
    wisdom: nn.Module | None = None,
    shelf: AnswerShelf | None = None,
) -> nn.Module:
    """Cut from the teacher's elastic family, then distilled when the spec has epochs for it."""
    if task.family is None:
        raise RejectedError("the student's elastic family was not trained yet", code="family-missing")
    spec, training = task.spec, task.workload.training
    check_epochs(spec, task.family.depth_ratios)
    check_calibration(task.workload, dataset)
    _check_bytes(task, teacher, dataset)
    report(0.05, "cutting")
    held = spec.depth_ratio in task.family.depth_ratios
    student = cut_student(
        task.family, teacher, dataset, task.workload, spec.width_ratio, registry=registry, device=device,
        depth_ratio=spec.depth_ratio if held else None,
    )  # fmt: skip
    if not held:
        student = as_deep_as(spec, student, dataset, training, device)
    student = without_shortcuts(spec, student, dataset.input_shape)
    rule = sparsifier_for(task, dataset)
    if spec.num_epochs or rule is not None:
        learnt_from, progress = teacher if wisdom is None else wisdom, part_of(report, TRAIN_FROM, 1.0)
        distil(student, learnt_from, dataset, spec=spec, training=training, device=device, report=progress,
               rule=rule, shelf=shelf)  # fmt: skip
    return student.cpu().eval()


def _check_bytes(task: StudentTask, opened: nn.Module, dataset: Dataset) -> None:
    """Raises ``ConfigError`` when no student of this teacher can be as small as the profile asks."""
    if task.profile.constraints.artifact_bytes is not None:
        least = narrowest(opened.cpu(), trace_channels(opened, dataset.input_shape), dataset.input_shape)
        check_artifact_bytes(task.profile.constraints, least.num_parameters, task.profile.name)
