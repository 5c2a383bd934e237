"""A small teacher of digits, and rules that are fitted to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from memory_registry import Memory
from numpy.typing import NDArray

from cloud.compression import evaluate
from cloud.compression.build import finish_teacher
from cloud.compression.rules import fit_rules
from cloud.domain.rules import RuleSpec
from cloud.domain.tasks import TeacherResult
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.training.datasets import Dataset
from cloud.training.teacher import TeacherTrainer
from edgeloop import rules

Floats = NDArray[np.float32]
Trained = tuple[TeacherTrainer, TeacherResult, Memory]
CPU = torch.device("cpu")
WORKLOAD = Workload(
    name="digits",
    dataset="digits",
    dataset_options={"image_size": 8},
    teacher_options={"base_width": 8},
    training=TrainingBudget(num_epochs=4, batch_size=32, learning_rate=5e-3),
)
SMALL = RuleSpec(num_mixup_samples=4000, num_starts=1)
SUMS = replace(SMALL, num_terms=3, num_mixup_samples=2000, num_refine_rounds=3)


def train_teacher() -> Trained:
    trainer = TeacherTrainer(WORKLOAD, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    registry = Memory()
    return trainer, finish_teacher(WORKLOAD, trainer, registry=registry), registry


def quiet(fraction: float, message: str) -> None:
    pass


def fit(trained: Trained, spec: RuleSpec, seed: int = 0, dataset: Dataset | None = None) -> rules.RuleModel:
    trainer = trained[0]
    dataset = trainer.dataset if dataset is None else dataset
    return fit_rules(trainer.model, dataset, spec, seed=seed, device=CPU, report=quiet).model


def unseen(dataset: Dataset) -> tuple[Floats, NDArray[np.int64]]:
    """Validation and test together: nothing that these rules were fitted on."""
    return (
        np.concatenate([dataset.validation.inputs, dataset.test.inputs]),
        np.concatenate([dataset.validation.labels, dataset.test.labels]),
    )


def accuracy(model: rules.RuleModel, dataset: Dataset) -> float:
    return evaluate.accuracy(evaluate.load(rules.encode(model)), *unseen(dataset))
