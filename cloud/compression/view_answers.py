"""What a teacher says of a whole view of the train split, asked once for all trainings that learn from it.

A view is the train split with one shift and one mirroring for each sample. Trainings of one seed see the same
views, whatever the student's width, precision or profile; without augmentation there is one view for all.
Rules: a view is asked for from its first sample to its last in batches of one size, so that the numbers are
the same whoever asks; they are kept as they are, by everything that they depend on; what does not fit counts
as absent; two trainings that need a view at the same time ask once, and the second waits.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cloud.domain.tasks import StudentTask, TeacherResult
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.training import arithmetic, checkpoints
from cloud.training.augment import Augmenter
from cloud.training.datasets import Dataset
from edgeloop.errors import RejectedError

if TYPE_CHECKING:
    from cloud.compression.shelf import WeightsShelf

Report = Callable[[float, str], None]

#: Samples that the teacher is asked about at a time. Other numbers give other last digits.
_BATCH_SIZE = 256
#: A view with more than this is asked for by each training: reading it would cost more than it saves.
MAX_SHARED_BYTES = 64 << 20


class AnswerShelf:
    """A teacher's answers by view, on a shelf that all trainings reach."""

    def __init__(self, shelf: WeightsShelf, workload: Workload, teacher: TeacherResult) -> None:
        self._shelf = shelf
        # The workload's key stands for the data, its augmentation and the arithmetic.
        self._identity = [workload.teacher_key, teacher.identity]

    @classmethod
    def of(cls, shelf: WeightsShelf | None, task: StudentTask) -> AnswerShelf | None:
        """That of the task's teacher; None without a shelf."""
        return None if shelf is None else cls(shelf, task.workload, task.teacher)

    def find_or_ask(
        self, view: str, shape: tuple[int, int], ask: Callable[[], Tensor], report: Report
    ) -> Tensor:
        """The answers ``[samples, outputs]`` to ``view``; those of ``ask``, kept, where there are none."""
        text = json.dumps(["answers", *self._identity, view])
        key = hashlib.sha256(text.encode()).hexdigest()
        with self._shelf.lock(key, report, "the teacher is being asked"):
            found = _read(self._shelf.get(key), shape)
            if found is None:
                found = ask().cpu()
                self._shelf.put(key, checkpoints.to_bytes({"version": 1, "answers": found}))
        return found


class ViewAnswers:
    """Answers of ``teacher`` to views of the train split, each asked for when it is first needed."""

    def __init__(
        self,
        teacher: nn.Module,
        dataset: Dataset,
        training: TrainingBudget,
        device: torch.device,
        shelf: AnswerShelf | None = None,
    ) -> None:
        self._teacher = teacher.to(device).eval()
        self._inputs = torch.from_numpy(dataset.train.inputs)
        self._shape = (len(self._inputs), dataset.num_outputs)
        self._bfloat16, self._device = training.bfloat16, device
        self._augmenter = Augmenter.of(training, dataset.input_shape)
        self._shelf = shelf
        self._drawn: dict[str, Tensor] = {}
        self._each: Tensor | None = None

    def to_drawn(self, seed: int, number: int, draws: Tensor, report: Report) -> Tensor:
        """To the view that ``draws`` are, ``[samples, 3]``, the ``number``-th of ``seed``.

        ``[samples, outputs]``. ``report`` is called while the teacher works; what it raises comes out.
        """
        # Without augmentation every seed gives the one view that there is.
        view = f"{number} of seed {seed}" if self._augmenter.num_distinct > 1 else "0"
        if view not in self._drawn:
            self._drawn[view] = self._answers(view, draws, report)
        return self._drawn[view]

    def to_each(self, draws: Tensor, rows: Tensor, report: Report) -> Tensor:
        """To samples ``rows`` as ``draws`` ``[rows, 3]`` show them, when every view there is is asked for."""
        step = self._augmenter.num_views // self._augmenter.num_distinct
        if self._each is None:
            views = range(0, self._augmenter.num_views, step)
            draws_of = self._augmenter.draws_of
            self._each = torch.stack([
                self._answers(str(view), draws_of(view).expand(self._shape[0], 3), report) for view in views
            ])  # fmt: skip
        return self._each[(self._augmenter.views(draws) // step).to(self._device), rows.to(self._device)]

    def _answers(self, view: str, draws: Tensor, report: Report) -> Tensor:
        """Those of the shelf where there is one, and a view is not too large for it."""

        def ask() -> Tensor:
            return self._ask(draws, report)

        if self._shelf is None or math.prod(self._shape) * 4 > MAX_SHARED_BYTES:
            return ask()
        return self._shelf.find_or_ask(view, self._shape, ask, report).to(self._device)

    @torch.no_grad()
    def _ask(self, draws: Tensor, report: Report) -> Tensor:
        answers, count = torch.empty(self._shape, device=self._device), self._shape[0]
        for start in range(0, count, _BATCH_SIZE):
            report(start / count, f"asking the teacher: {start} of {count} samples")
            rows = slice(start, start + _BATCH_SIZE)
            batch = self._augmenter.apply(self._inputs[rows].to(self._device), draws[rows])
            answers[rows] = arithmetic.run(self._teacher, batch, bfloat16=self._bfloat16)
        return answers


def _read(data: bytes | None, shape: tuple[int, int]) -> Tensor | None:
    try:
        state = {} if data is None else checkpoints.from_bytes(data)
    except RejectedError:
        return None
    answers = state.get("answers")
    fits = isinstance(answers, Tensor) and answers.shape == shape and answers.dtype == torch.float32
    return answers if fits and state.get("version") == 1 else None
