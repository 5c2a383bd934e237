"""What a teacher says of each augmented view of each training sample, asked once for all who learn from it.

An augmenter has few different views (two pixels and mirroring make 50), so students, families and seeds that
learn from one teacher see the same ones again and again. Rules: an answer that is there is never asked for
again; answers are kept for one teacher, one train split and one augmentation alone, and whoever stores them
names them by these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cloud.domain.workloads import TrainingBudget
from cloud.training import arithmetic
from cloud.training.augment import Augmenter
from cloud.training.datasets import Dataset
from edgeloop.errors import ConfigError, RejectedError

#: More than this in memory is refused: ask per view then (``distil`` without answers does).
MAX_BYTES = 1 << 30


def fits(augmenter: Augmenter, dataset: Dataset) -> bool:
    """Whether all answers may be kept in memory."""
    return math.prod(_table_shape(augmenter, dataset)) * 4 <= MAX_BYTES


def _table_shape(augmenter: Augmenter, dataset: Dataset) -> tuple[int, int, int]:
    return augmenter.num_views, len(dataset.train), dataset.num_outputs


class TeacherAnswers:
    """Answers of ``teacher`` to views of the train split, filled as they are asked for."""

    def __init__(
        self, teacher: nn.Module, dataset: Dataset, training: TrainingBudget, device: torch.device
    ) -> None:
        """Raises ``ConfigError`` when all answers would not fit in memory."""
        self._augmenter = Augmenter.of(training, dataset.input_shape)
        shape = _table_shape(self._augmenter, dataset)
        if not fits(self._augmenter, dataset):
            raise ConfigError(
                f"training.augment_pixels is {training.augment_pixels}: the teacher's answers to all "
                f"{shape[0]} views of {shape[1]} samples need more than {MAX_BYTES >> 20} MiB: lower it, or "
                "distil without keeping them",
                code="answers-too-large",
            )
        self._teacher = teacher.to(device).eval()
        self._bfloat16 = training.bfloat16
        self._table = torch.full(shape, math.nan, device=device)

    @property
    def num_asked(self) -> int:
        """Views of samples that the teacher has seen."""
        return int((~torch.isnan(self._table[..., 0])).sum())

    @torch.no_grad()
    def ask(self, inputs: Tensor, rows: Tensor, draws: Tensor) -> Tensor:
        """The teacher's outputs for ``inputs``: the views of samples ``rows`` that ``draws`` decided."""
        views = self._augmenter.views(draws).to(self._table.device)
        rows = rows.to(self._table.device)
        answers = self._table[views, rows]
        missing = torch.isnan(answers[:, 0])
        if bool(missing.any()):
            answers[missing] = arithmetic.run(self._teacher, inputs[missing], bfloat16=self._bfloat16)
            self._table[views, rows] = answers
        return answers

    def state_dict(self) -> dict[str, Any]:
        """What was asked so far, at half precision (a logit's third digit teaches nothing)."""
        return {"version": 1, "answers": self._table.half().cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Know what was asked before. Raises ``RejectedError`` when it is of other data."""
        answers = state.get("answers")
        if state.get("version") != 1 or not isinstance(answers, Tensor) or answers.shape != self._table.shape:
            raise RejectedError(
                "the teacher's kept answers are of another train split or augmentation: ask afresh",
                code="answers-other",
            )
        self._table.copy_(answers.float())
