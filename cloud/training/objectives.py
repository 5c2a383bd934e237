"""The loss against labels and the loss against a teacher, for each kind of workload.

Rules: both are means over the batch, so that a spec's ``alpha`` mixes like with like; equal outputs of
teacher and student cost nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cloud.domain.losses import Loss


def label_loss(loss: Loss, outputs: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, binary cross-entropy of one output, or mean squared error (which takes no smoothing)."""
    if loss is Loss.REGRESSION:
        return functional.mse_loss(outputs, labels)
    if loss is Loss.BINARY:
        wanted = labels.to(outputs.dtype) * (1.0 - label_smoothing) + 0.5 * label_smoothing
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], wanted)
    return functional.cross_entropy(outputs, labels, label_smoothing=label_smoothing)


def soft_loss(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(teacher || student)`` at temperature T; of a regression, mean squared difference."""
    if loss is Loss.REGRESSION:
        return functional.mse_loss(student, teacher)
    if loss is Loss.BINARY:  # the same as two classes, one of which has the logit 0
        student, teacher = _two_classes(student), _two_classes(teacher)
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def _two_classes(logits: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(logits), logits], dim=1)
