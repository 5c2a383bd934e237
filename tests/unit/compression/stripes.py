"""Striped images, and the workload of a teacher that tells them apart."""

from __future__ import annotations

import torch
from striped_images import striped

from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload

torch.set_num_threads(1)


DATASET = striped()
WORKLOAD = Workload(
    name="stripes",
    dataset="digits",
    teacher_options={"base_width": 16, "num_stages": 2},
    training=TrainingBudget(num_epochs=5, batch_size=16, learning_rate=5e-3, augment_flip=True),
    search=SearchBudget(num_calibration_samples=64),
)
