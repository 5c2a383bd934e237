"""Trains an elastic family: every step, the widest, the narrowest and a few widths between learn together.

The sandwich rule and in-place distillation of slimmable networks (Yu & Huang 2019): the widest learns from
the labels and the teacher that it grew from; the others learn from what the widest and the teacher say
together. All gradients of a step add up before one move of the shared weights. BatchNorm uses the statistics
of the batch; a network that is cut out has its own measured afresh. A family of several depths leaves
branches out at random, too (stochastic depth, Huang et al. 2016), and all of them at its narrowest.

Rules: an epoch depends on the settings, the epoch's number and the state before it, on nothing else, so that
a trainer restored from ``state_dict`` goes on as if it had never stopped. The test split is not touched.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cloud.compression.answers import TeacherAnswers, fits
from cloud.compression.branches import check_depth, find_branches, without_branches
from cloud.compression.cost import measure_cost
from cloud.compression.dependency import trace_channels
from cloud.compression.depth import leaving_order
from cloud.compression.distil import part_of, recalibrate
from cloud.compression.elastic import ElasticNetwork, scores_from_plain, scores_to_plain
from cloud.compression.importance import taylor
from cloud.compression.layers import layer_shapes
from cloud.compression.view_answers import AnswerShelf, ViewAnswers
from cloud.domain.families import FamilyResult, FamilySettings, FamilyWidth, family_key
from cloud.domain.tasks import TeacherResult
from cloud.domain.workloads import Workload
from cloud.training import arithmetic, checkpoints
from cloud.training.augment import Augmenter
from cloud.training.datasets import Dataset, Split
from cloud.training.objectives import label_loss, soft_loss
from cloud.training.schedule import one_cycle, seeded
from cloud.training.teacher import (
    EpochMetrics,
    check_loss,
    choose_device,
    count_batches,
    measure_accuracy,
    set_learning_rate,
    step_optimizer,
)
from edgeloop.errors import ConfigError, RejectedError

Report = Callable[[float, str], None]

NUM_IMPORTANCE_SAMPLES = 512
NUM_RECALIBRATION_SAMPLES = 2048
#: Validation samples on which each width is looked at when the family is finished.
NUM_WIDTH_SAMPLES = 2000


class Blobs(Protocol):
    """What is needed of the registry."""

    def put(self, data: bytes) -> str: ...

    def get(self, digest: str) -> bytes: ...


class FamilyTrainer:
    """Trains the family of a trained ``teacher``; ``epoch`` of ``num_epochs`` are done."""

    def __init__(
        self,
        workload: Workload,
        teacher: nn.Module,
        dataset: Dataset,
        settings: FamilySettings,
        *,
        key: str,
        device: str = "auto",
        answers: TeacherAnswers | None = None,
        wisdom: nn.Module | None = None,
        shelf: AnswerShelf | None = None,
    ) -> None:
        """``wisdom`` is what the family learns from, where that is more than the teacher alone.

        ``answers`` hold what it said already; so does ``shelf``, where nothing is augmented.
        """
        self.workload, self.dataset, self.settings, self.key = workload, dataset, settings, key
        self.device = choose_device(device)
        self.num_epochs = settings.num_epochs
        self.epoch = 0
        self.train_s = 0.0
        self._teacher = teacher.to(self.device).eval()
        self._wisdom = self._teacher if wisdom is None else wisdom.to(self.device).eval()
        graph = trace_channels(teacher, dataset.input_shape)
        if not graph.groups:
            raise ConfigError(
                "teacher: it has no channels that can be removed, so no family can be cut from it",
                code="teacher-not-prunable",
            )
        batch_size, rows = workload.training.batch_size, dataset.train
        last = min(NUM_IMPORTANCE_SAMPLES, len(rows))
        batches = (
            (
                torch.from_numpy(rows.inputs[at : min(at + batch_size, last)]),
                torch.from_numpy(rows.labels[at : min(at + batch_size, last)]),
            )
            for at in range(0, last, batch_size)
        )
        scores = taylor(batches, dataset.loss)(self._teacher, graph)
        model = copy.deepcopy(teacher).to(self.device)
        self.elastic = ElasticNetwork(model, graph, scores, dataset.input_shape)
        self.widths = _widths(self.elastic, settings)
        self._gone = _gone(self._teacher, dataset, settings, batch_size, self.device)
        self._short = {depth: self.elastic.without_branches(gone) for depth, gone in self._gone.items()}
        self._answers = answers
        self._augmenter = Augmenter.of(workload.training, dataset.input_shape)
        self._views = ViewAnswers(self._wisdom, dataset, workload.training, self.device, shelf)
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=workload.training.weight_decay
        )
        self._inputs = torch.from_numpy(dataset.train.inputs).to(self.device)
        self._labels = torch.from_numpy(dataset.train.labels).to(self.device)

    def run_epoch(self, report: Report | None = None) -> EpochMetrics:
        """Train one more epoch; ``validation_accuracy`` is the narrowest's, which has the most to learn.

        ``report(fraction_of_all_training, message)`` is called now and then; what it raises stops the epoch.
        """
        started = time.perf_counter()
        loss = self._train(report)
        self.epoch += 1
        narrowest = self.cut(self.settings.narrowest, min(self._gone, default=None))
        accuracy = measure_accuracy(
            narrowest, _first(self.dataset.validation), self.device, self.dataset.loss
        )
        seconds = time.perf_counter() - started
        self.train_s += seconds
        if report is not None:
            report(
                self.epoch / self.num_epochs,
                f"epoch {self.epoch}/{self.num_epochs}: loss {loss:.4f}, narrowest {accuracy:.4f}",
            )
        return EpochMetrics(epoch=self.epoch, loss=loss, validation_accuracy=accuracy, seconds=seconds)

    def cut(self, width_ratio: float, depth_ratio: float | None = None) -> nn.Module:
        """The network of this width and depth, its BatchNorm statistics measured, in evaluation mode."""
        return finish_cut(self._at(depth_ratio), width_ratio, self.dataset, self.workload, self.device)

    def _at(self, depth_ratio: float | None) -> ElasticNetwork:
        return self.elastic if depth_ratio is None else self._short[depth_ratio]

    def _train(self, report: Report | None) -> float:
        training, settings = self.workload.training, self.settings
        widths = self.widths
        num_batches = count_batches(len(self._labels), training.batch_size)
        total = torch.zeros((), device=self.device)
        with seeded(settings.seed, self.epoch) as generator:
            order = torch.randperm(len(self._labels), generator=generator).to(self.device)
            for batch in range(num_batches):
                step = self.epoch * num_batches + batch
                rate = one_cycle(step, num_batches * self.num_epochs, settings.learning_rate)
                set_learning_rate(self._optimizer, rate)
                rows = order[batch * training.batch_size :][: training.batch_size]
                draws = self._augmenter.draw(len(rows), generator)
                inputs = self._augmenter.apply(self._inputs[rows], draws)
                drawn = torch.randint(len(widths), (settings.num_random_widths,), generator=generator)
                narrower = self._smaller(drawn.tolist(), generator)
                taught = self._teach(inputs, rows, draws, report)
                loss = self._loss(inputs, self._labels[rows], taught, narrower)
                check_loss(
                    loss,
                    epoch=self.epoch + 1,
                    batch=batch + 1,
                    rows=rows,
                    field="the family's learning_rate",
                )
                step_optimizer(self._optimizer, self.elastic.model, loss)
                total += loss.detach()
                if report is not None and batch % 10 == 9:
                    report(
                        (step + 1) / (num_batches * self.num_epochs),
                        f"epoch {self.epoch + 1}/{self.num_epochs}: batch {batch + 1}/{num_batches}",
                    )
        return float(total) / num_batches

    def _smaller(self, drawn: list[int], generator: torch.Generator) -> list[tuple[float, float | None]]:
        """Widths and depths that learn beside the widest in a step: the least, and those that were drawn."""
        depths: list[float | None] = [None, *self._gone]
        chosen = [0] * len(drawn)
        if self._gone:
            chosen = torch.randint(len(depths), (len(drawn),), generator=generator).tolist()
        pairs = {(self.widths[i], depths[j]) for i, j in zip(drawn, chosen, strict=True)}
        pairs |= {(self.widths[0], depths[-1])}
        return sorted(pairs - {(self.widths[-1], None)}, key=lambda pair: (pair[0], pair[1] or 1.0))

    @torch.no_grad()
    def _teach(self, inputs: Tensor, rows: Tensor, draws: Tensor, report: Report | None) -> Tensor:
        if self._answers is not None:
            return self._answers.ask(inputs, rows, draws)
        if self._augmenter.num_distinct == 1 and fits(self._augmenter, self.dataset):
            done = self.epoch / self.num_epochs
            return self._views.to_each(draws, rows, part_of(report or _quiet, done, done))
        return arithmetic.run(self._wisdom, inputs, bfloat16=self.workload.training.bfloat16)

    def _loss(
        self,
        inputs: Tensor,
        labels: Tensor,
        taught: Tensor,
        narrower: list[tuple[float, float | None]],
    ) -> Tensor:
        settings, kind = self.settings, self.dataset.loss

        def lesson(logits: Tensor, wisdom: Tensor) -> Tensor:
            soft = soft_loss(kind, logits, wisdom, settings.temperature)
            return settings.alpha * soft + (1.0 - settings.alpha) * label_loss(kind, logits, labels)

        def logits_of(width: float, depth: float | None = None) -> Tensor:
            def network(batch: Tensor) -> Tensor:
                return self._at(depth).forward(width, batch)

            return arithmetic.run(network, inputs, bfloat16=self.workload.training.bfloat16)

        widest = logits_of(self.widths[-1])
        loss = lesson(widest, taught)
        together = (widest.detach() + taught) / 2
        for width, depth in narrower:
            loss = loss + lesson(logits_of(width, depth), together)
        return loss / (1 + len(narrower))

    @property
    def gone(self) -> dict[str, list[list[str]]]:
        """Layers of the branches that each depth lacks, in plain values."""
        return {f"{depth:g}": [list(layers) for layers in gone] for depth, gone in self._gone.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on: tensors and plain values, as ``checkpoints.to_bytes`` takes."""
        return {
            "version": 1,
            "family_key": self.key,
            "epoch": self.epoch,
            "train_s": self.train_s,
            "model": self.elastic.model.state_dict(),
            "scores": scores_to_plain(self.elastic.graph, self.elastic.scores),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``. Raises ``RejectedError`` when it belongs to another family."""
        if state.get("version") != 1 or state.get("family_key") != self.key:
            raise RejectedError(
                f"the checkpoint is of family {state.get('family_key')!r}, not of {self.key}: start afresh",
                code="checkpoint-other-family",
            )
        try:
            self.elastic.scores.update(scores_from_plain(self.elastic.graph, state["scores"]))
            self._short = {depth: self.elastic.without_branches(gone) for depth, gone in self._gone.items()}
            self.elastic.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.train_s = int(state["epoch"]), float(state["train_s"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise RejectedError(f"the checkpoint does not fit: {error}", code="checkpoint-invalid") from error


def finish_family(trainer: FamilyTrainer, teacher: TeacherResult, *, registry: Blobs) -> FamilyResult:
    """Store the trained family, and look at each of its widths."""
    elastic, dataset = trainer.elastic, trainer.dataset
    widths = []
    for width in trainer.widths:
        network = trainer.cut(width)
        cost = measure_cost(network, dataset.input_shape)
        accuracy = measure_accuracy(network, _first(dataset.validation), trainer.device, dataset.loss)
        widths.append(
            FamilyWidth(
                width_ratio=width,
                accuracy=accuracy,
                macs=cost.macs,
                num_parameters=cost.num_parameters,
                layers=layer_shapes(network, dataset.input_shape),
            )
        )
    state = {
        "version": 1,
        "family_key": trainer.key,
        "model": {name: value.cpu() for name, value in elastic.model.state_dict().items()},
        "scores": scores_to_plain(elastic.graph, elastic.scores),
        "gone": trainer.gone,
    }
    return FamilyResult(
        workload=trainer.workload.name,
        teacher_key=teacher.teacher_key,
        family_key=family_key(teacher.identity, trainer.settings),
        checkpoint_digest=registry.put(checkpoints.to_bytes(state)),
        num_epochs=trainer.epoch,
        train_s=trainer.train_s,
        narrowest=trainer.settings.narrowest,
        widths=tuple(widths),
        depth_ratios=trainer.settings.depth_ratios,
    )


def cut_student(
    family: FamilyResult,
    teacher: nn.Module,
    dataset: Dataset,
    workload: Workload,
    width_ratio: float,
    *,
    registry: Blobs,
    device: torch.device,
    depth_ratio: float | None = None,
) -> nn.Module:
    """The family's network of this width and depth, ready to be exported. ``teacher`` gives the architecture.

    Raises ``RejectedError`` for a width or depth that the family was not trained for.
    """
    state = checkpoints.from_bytes(registry.get(family.checkpoint_digest))
    model = copy.deepcopy(teacher)
    graph = trace_channels(model, dataset.input_shape)
    try:
        scores = scores_from_plain(graph, state["scores"])
        model.load_state_dict(state["model"])
    except (KeyError, RuntimeError) as error:
        raise ConfigError(
            f"the elastic family does not fit {workload.teacher}: its code changed since; train the teacher "
            f"again ({error})",
            code="family-changed",
        ) from error
    elastic = ElasticNetwork(model.to(device), graph, scores, dataset.input_shape)
    if family.of_width(width_ratio) is None:
        raise RejectedError(
            f"width_ratio is {width_ratio:g}: the elastic family of {family.workload} was trained down to "
            f"{family.narrowest:g}, from {family.widths[-1].width_ratio:g}; take one of them, "
            "or another road",
            code="family-width",
        )
    if depth_ratio is not None:
        gone = state.get("gone", {}).get(f"{depth_ratio:g}")
        if gone is None:
            held = ", ".join(f"{depth:g}" for depth in family.depth_ratios) or "its full depth alone"
            raise RejectedError(
                f"depth_ratio is {depth_ratio:g}: the family of {family.workload} was trained at {held}",
                code="family-depth",
            )
        elastic = elastic.without_branches([tuple(layers) for layers in gone])
    return finish_cut(elastic, width_ratio, dataset, workload, device)


def finish_cut(
    elastic: ElasticNetwork, width_ratio: float, dataset: Dataset, workload: Workload, device: torch.device
) -> nn.Module:
    """Cut, and measure BatchNorm statistics for this width."""
    student = elastic.cut(width_ratio).to(device)
    rows = torch.from_numpy(dataset.train.inputs[:NUM_RECALIBRATION_SAMPLES])
    recalibrate(student, rows, batch_size=max(64, workload.training.batch_size), device=device)
    return student.eval()


def _widths(elastic: ElasticNetwork, settings: FamilySettings) -> tuple[float, ...]:
    """What the family holds, narrowest first; its least one where nothing lies between the two."""
    widths = elastic.widths(settings.narrowest)
    return tuple(width for width in widths if width <= settings.widest + 1e-9) or widths[:1]


def _gone(
    teacher: nn.Module, dataset: Dataset, settings: FamilySettings, batch_size: int, device: torch.device
) -> dict[float, tuple[tuple[str, ...], ...]]:
    """Layers of the branches that each depth lacks, deepest first; a shorter one lacks them too."""
    if not settings.depth_ratios:
        return {}
    least = min(settings.depth_ratios)
    order = leaving_order(teacher, dataset, depth_ratio=least, batch_size=batch_size, device=device)
    num_branches = len(find_branches(teacher, dataset.input_shape))
    lacking = {}
    for depth in settings.depth_ratios:
        wanted = check_depth(num_branches, depth, type(teacher).__name__)
        lacking[depth] = next(
            order[:count]
            for count in range(1, len(order) + 1)
            if count == len(order)
            or len(
                find_branches(
                    without_branches(teacher, order[:count], dataset.input_shape), dataset.input_shape
                )
            )
            <= wanted
        )
    return lacking


def _quiet(_fraction: float, _text: str) -> None:
    """Nobody asked how far it is."""


def _first(split: Split) -> Split:
    return Split(inputs=split.inputs[:NUM_WIDTH_SAMPLES], labels=split.labels[:NUM_WIDTH_SAMPLES])
