"""A small network for handwritten digits, and how it is rounded and looked at."""

from __future__ import annotations

import torch

from cloud.compression import evaluate
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload
from cloud.training.datasets import load_dataset

torch.set_num_threads(1)


TRAINING = TrainingBudget(num_epochs=4, batch_size=32, learning_rate=5e-3)
WORKLOAD = Workload(
    name="digits",
    dataset="digits",
    teacher_options={"base_width": 8, "num_stages": 2, "stem_stride": 2},
    training=TRAINING,
    search=SearchBudget(num_calibration_samples=64),
)
DIGITS = load_dataset(WORKLOAD)


def accuracy(data: bytes) -> float:
    return evaluate.accuracy(evaluate.load(data), DIGITS.validation.inputs, DIGITS.validation.labels)
