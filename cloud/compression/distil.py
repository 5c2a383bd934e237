"""Teaches a small network what a large one knows.

The loss is ``alpha * T^2 * KL(teacher || student)``, both softened by the temperature T (the square keeps its
gradients as large as those of the other part), plus ``1 - alpha`` times cross-entropy with the labels. Of a
regression, both parts are mean squared errors. ``hint_weight`` adds a cost on inner features (see ``hints``).

Rules: the best epoch by validation accuracy stays, the state before the first included; the teacher is asked
once for each augmented view, and each view is used twice (a training of so many epochs that it would ask for
more views than there are has a view of its own in each epoch, and so has one with ``answers``); a shelf of
answers makes no difference to what is learnt; the same seed gives the same student on the same machine; a
loss that is not finite stops at once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from cloud.compression.answers import TeacherAnswers, fits
from cloud.compression.hints import Hints
from cloud.compression.view_answers import AnswerShelf, ViewAnswers
from cloud.domain.specs import CompressionSpec
from cloud.domain.workloads import TrainingBudget
from cloud.training import arithmetic
from cloud.training.augment import Augmenter
from cloud.training.datasets import Dataset
from cloud.training.ensemble import lead_of
from cloud.training.objectives import label_loss, soft_loss
from cloud.training.schedule import one_cycle, seeded
from cloud.training.teacher import (
    check_loss,
    count_batches,
    measure_accuracy,
    set_learning_rate,
    step_optimizer,
)

Report = Callable[[float, str], None]


class WeightRule(Protocol):
    """What must hold for a student's weights while it learns, and may come into force step by step."""

    @property
    def in_force(self) -> bool:
        """Whether it holds in full: only such states of the student are kept."""
        ...

    def begin(self, model: nn.Module, num_steps: int) -> None:
        """Before the first of ``num_steps`` steps."""
        ...

    def after_step(self, model: nn.Module, step: int) -> None:
        """After step ``step``, counted from 1."""
        ...


USES_OF_A_VIEW = 2
NUM_RECALIBRATION_SAMPLES = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class DistilResult:
    """``best_epoch`` counts from 1; 0 means that the student was best before any training."""

    validation_accuracy: float
    best_epoch: int


def distil(
    student: nn.Module,
    teacher: nn.Module,
    dataset: Dataset,
    *,
    spec: CompressionSpec,
    training: TrainingBudget,
    device: torch.device,
    report: Report,
    rule: WeightRule | None = None,
    answers: TeacherAnswers | None = None,
    shelf: AnswerShelf | None = None,
) -> DistilResult:
    """Train ``student`` in place as ``spec`` says. ``report`` gets 0 to 1; what it raises stops it.

    The teacher may be any module that gives the workload's outputs, ``MeanOfOutputs`` of several among them;
    hints come from an ensemble's first, and need one of the student's own architecture. ``rule`` acts on the
    weights after each step; what is kept is the best state in which it is in force. Without epochs to recover
    in, BatchNorm statistics are measured anew. ``answers`` and ``shelf`` are two ways to ask ``teacher``
    less: a table for trainings of one process, and one that all processes share.
    """
    lesson = _Lesson(
        teacher, dataset, spec=spec, training=training, device=device, answers=answers, shelf=shelf
    )
    student.to(device)
    if rule is not None:
        rule.begin(student, spec.num_epochs * count_batches(len(dataset.train), training.batch_size))
        if not spec.num_epochs:
            rows = torch.from_numpy(dataset.train.inputs[:NUM_RECALIBRATION_SAMPLES])
            recalibrate(student, rows, batch_size=training.batch_size, device=device)
    accuracy = measure_accuracy(student, dataset.validation, device, dataset.loss)
    best, best_epoch, best_state = accuracy, 0, copy.deepcopy(student.state_dict())
    if rule is not None and not rule.in_force:
        best = -math.inf
    hints = lesson.attach_hints(student) if spec.hint_weight and spec.num_epochs else None
    parameters = [*student.parameters(), *(hints.parameters() if hints is not None else ())]
    rate = learning_rate_of(spec, training)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=training.weight_decay)
    try:
        for epoch in range(spec.num_epochs):
            loss = lesson.run_epoch(student, optimizer, epoch, report, rule)
            accuracy = measure_accuracy(student, dataset.validation, device, dataset.loss)
            if accuracy >= best and (rule is None or rule.in_force):
                best, best_epoch, best_state = accuracy, epoch + 1, copy.deepcopy(student.state_dict())
            report(
                (epoch + 1) / spec.num_epochs,
                f"epoch {epoch + 1}/{spec.num_epochs}: loss {loss:.4f}, "
                f"validation {dataset.loss.metric} {accuracy:.4f}",
            )
    finally:
        lesson.detach_hints()
    student.load_state_dict(best_state)
    student.eval()
    return DistilResult(validation_accuracy=best, best_epoch=best_epoch)


def part_of(report: Report, start: float, stop: float) -> Report:
    """``report`` for a part of the work, whose own progress runs from 0 to 1."""

    def reporting(fraction: float, message: str) -> None:
        report(start + (stop - start) * fraction, message)

    return reporting


def learning_rate_of(spec: CompressionSpec, training: TrainingBudget) -> float:
    """The peak at which a student of ``spec`` learns."""
    return training.student_learning_rate if spec.learning_rate is None else spec.learning_rate


@torch.no_grad()
def recalibrate(model: nn.Module, inputs: Tensor, *, batch_size: int, device: torch.device) -> None:
    """Measure BatchNorm statistics afresh: after pruning, those of the full network no longer hold."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.to(device).eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        if len(batch) > 1:
            model(batch.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


class _Lesson:
    """The training data, and the teacher's answers to each view of it, asked for when first needed."""

    def __init__(
        self,
        teacher: nn.Module,
        dataset: Dataset,
        *,
        spec: CompressionSpec,
        training: TrainingBudget,
        device: torch.device,
        answers: TeacherAnswers | None,
        shelf: AnswerShelf | None,
    ) -> None:
        self._teacher = teacher.to(device).eval()
        self._spec, self._training, self._device = spec, training, device
        self._augmenter = Augmenter.of(training, dataset.input_shape)
        self._inputs = torch.from_numpy(dataset.train.inputs).to(device)
        self._labels = torch.from_numpy(dataset.train.labels).to(device)
        self._loss = dataset.loss
        self._hints: Hints | None = None
        self._shared = answers
        self._views = ViewAnswers(teacher, dataset, training, device, shelf)
        asked_anew = math.ceil(spec.num_epochs / USES_OF_A_VIEW)
        #: Whether every view there is will be asked for, and each epoch may have its own for nothing.
        self._has_all = asked_anew >= self._augmenter.num_distinct and fits(self._augmenter, dataset)
        self._num_views = spec.num_epochs if self._has_all or answers is not None else asked_anew
        self._draws: list[Tensor] = []
        for view in range(self._num_views):
            with seeded(spec.seed, 1_000_000 + view) as generator:
                self._draws.append(self._augmenter.draw(len(self._labels), generator))

    def attach_hints(self, student: nn.Module) -> Hints:
        """From now on, until they are detached, inner features count too."""
        self._hints = Hints(
            student, lead_of(self._teacher), self._inputs[:2], seed=self._spec.seed, device=self._device
        )
        return self._hints

    def detach_hints(self) -> None:
        if self._hints is not None:
            self._hints.close()
        self._hints = None

    def run_epoch(
        self,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        epoch: int,
        report: Report,
        rule: WeightRule | None,
    ) -> float:
        spec, batch_size = self._spec, self._training.batch_size
        peak = learning_rate_of(spec, self._training)
        num_batches = count_batches(len(self._labels), batch_size)
        total = torch.zeros((), device=self._device)
        student.train()
        with seeded(spec.seed, epoch) as generator:
            order = torch.randperm(len(self._labels), generator=generator)
            for batch in range(num_batches):
                step = epoch * num_batches + batch
                rate = one_cycle(step, num_batches * spec.num_epochs, peak)
                set_learning_rate(optimizer, rate)
                rows = order[batch * batch_size :][:batch_size]
                done = step / (num_batches * spec.num_epochs)
                loss = self._cost(student, rows, epoch % self._num_views, part_of(report, done, done))
                check_loss(
                    loss, epoch=epoch + 1, batch=batch + 1, rows=rows, field="the spec's learning_rate"
                )
                step_optimizer(optimizer, student, loss)
                if rule is not None:
                    rule.after_step(student, step + 1)
                total += loss.detach()
                if batch % 50 == 49:
                    report(
                        (step + 1) / (num_batches * spec.num_epochs),
                        f"epoch {epoch + 1}/{spec.num_epochs}: batch {batch + 1}/{num_batches}",
                    )
        return float(total) / num_batches

    def _cost(self, student: nn.Module, rows: Tensor, view: int, report: Report) -> Tensor:
        spec = self._spec
        inputs = self._augmenter.apply(self._inputs[rows.to(self._device)], self._draws[view][rows])
        rows = rows.to(self._device)
        logits = arithmetic.run(student, inputs, bfloat16=self._training.bfloat16)
        loss = label_loss(self._loss, logits, self._labels[rows])
        if self._hints is not None and spec.hint_weight is not None:
            hint = spec.hint_weight * self._hints.cost(inputs)
        else:
            hint = torch.zeros((), device=self._device)
        if spec.alpha == 0.0:
            return loss + hint
        soft = soft_loss(self._loss, logits, self._ask(inputs, rows, view, report), spec.temperature)
        return spec.alpha * soft + (1.0 - spec.alpha) * loss + hint

    def _ask(self, inputs: Tensor, rows: Tensor, view: int, report: Report) -> Tensor:
        draws = self._draws[view]
        if self._shared is not None:
            return self._shared.ask(inputs, rows, draws[rows.cpu()])
        if self._has_all:
            return self._views.to_each(draws[rows.cpu()], rows, report)
        return self._views.to_drawn(self._spec.seed, view, draws, report)[rows]
