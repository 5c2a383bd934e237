"""The work itself, by name: only workers import torch, never the control plane that hands work out."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Three callables, each as ``module:name``. Their signatures are those of the defaults."""

    student: str = "cloud.compression:build_student"
    trainer: str = "cloud.training.teacher:TeacherTrainer"
    teacher: str = "cloud.compression:finish_teacher"

    def build_student(self) -> Any:
        """``(StudentTask, *, registry, report) -> Candidate``."""
        return _load(self.student)

    def make_trainer(self) -> Any:
        """``(Workload) -> trainer`` with ``epoch``, ``num_epochs``, ``run_epoch(report)`` and its state."""
        return _load(self.trainer)

    def finish_teacher(self) -> Any:
        """``(Workload, trainer, *, registry) -> TeacherResult``."""
        return _load(self.teacher)


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
