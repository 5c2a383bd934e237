"""What rules are fitted on: training samples and points between them, labelled by the teacher.

A tree sees too few samples near its borders, and a teacher can label as many more as are asked for: that is
what rules gain from having one (Craven and Shavlik, "Extracting Tree-Structured Representations of Trained
Networks", NeurIPS 1995; Bastani, Kim and Bastani, "Interpreting Blackbox Models via Model Extraction", 2017).
The points are those of mixup (Zhang et al., ICLR 2018): ``share * a + (1 - share) * b`` of two training
samples, the share drawn from Beta(alpha, alpha). Unlike there, the label is not mixed, but asked of the
teacher.

Rules: inputs are flattened; real samples come first; the validation samples stand apart, for choosing and for
reporting; the same seed gives the same lesson.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cloud.domain.rules import RuleLabels, RuleSpec
from cloud.training.datasets import Dataset, Split
from cloud.training.teacher import predict
from edgeloop.errors import ConfigError

Floats = NDArray[np.float32]

#: Real samples beyond these are left out, at random: a tree of some dozen leaves gains nothing from more.
MAX_REAL_SAMPLES = 20_000
#: Of all points together: 256 MiB as float32.
MAX_VALUES = 1 << 26


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RuleLesson:
    """``inputs`` is ``[n, features]``, ``targets`` ``[n, classes]``: probabilities, or one 1 a row.

    The first ``num_real`` rows are training samples. ``held_out_inputs`` are the validation samples, and
    ``held_out_classes`` what the teacher says of them.
    """

    inputs: Floats
    targets: Floats
    num_real: int
    held_out_inputs: Floats
    held_out_classes: NDArray[np.int64]

    @property
    def classes(self) -> NDArray[np.int64]:
        """The class of each row of ``targets``."""
        found: NDArray[np.int64] = self.targets.argmax(axis=1)
        return found


def prepare_lesson(
    teacher: nn.Module, dataset: Dataset, spec: RuleSpec, *, seed: int, device: torch.device
) -> RuleLesson:
    """Ask the teacher. Raises ``ConfigError`` when its inputs are too large for so many points."""
    num_features = int(np.prod(dataset.input_shape))
    num_real = min(len(dataset.train), MAX_REAL_SAMPLES, max(1, MAX_VALUES // (2 * num_features)))
    num_points = num_real + spec.num_mixup_samples
    if num_points * num_features > MAX_VALUES:
        room = max(0, MAX_VALUES // num_features - num_real)
        raise ConfigError(
            f"rules.num_mixup_samples is {spec.num_mixup_samples}: with {num_features} values in each input, "
            f"beside {num_real} training samples, it may be at most {room}; rules suit small inputs",
            code="rules-too-many-values",
        )
    rng = np.random.default_rng(seed)
    real = _subset(dataset.train, num_real, rng)
    mixed = mixup(real.inputs, spec.num_mixup_samples, alpha=spec.mixup_alpha, rng=rng)
    held_out = dataset.validation.inputs
    teacher = teacher.to(device).eval()
    says = probabilities(teacher, held_out, dataset.num_classes, device=device).argmax(axis=1)
    inputs = np.concatenate([real.inputs, mixed])
    if spec.labels is RuleLabels.DATA:
        targets = one_hot(real.labels, dataset.num_classes)
    else:
        targets = probabilities(teacher, inputs, dataset.num_classes, device=device)
        if spec.labels is RuleLabels.TEACHER:
            targets = one_hot(targets.argmax(axis=1), dataset.num_classes)
    return RuleLesson(
        inputs=inputs.reshape(len(inputs), -1),
        targets=targets,
        num_real=num_real,
        held_out_inputs=held_out.reshape(len(held_out), -1),
        held_out_classes=says,
    )


def mixup(inputs: Floats, count: int, *, alpha: float, rng: np.random.Generator) -> Floats:
    """``count`` points between two rows of ``inputs`` each."""
    first, second = rng.integers(0, len(inputs), (2, count))
    shares = rng.beta(alpha, alpha, count).astype(np.float32)
    shares = shares.reshape(count, *([1] * (inputs.ndim - 1)))
    mixed: Floats = shares * inputs[first] + (np.float32(1) - shares) * inputs[second]
    return mixed


def probabilities(teacher: nn.Module, inputs: Floats, num_classes: int, *, device: torch.device) -> Floats:
    """The teacher's, ``[n, classes]``. Raises ``ConfigError`` when it gives something else."""
    logits = predict(teacher, inputs, device)
    if not bool(torch.isfinite(logits).all()):
        row = int((~torch.isfinite(logits)).any(dim=1).nonzero()[0, 0])
        raise ConfigError(
            f"teacher: it gives NaN or infinity, first for point {row} of the rules' lesson: train it again",
            code="teacher-not-finite",
        )
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise ConfigError(
            f"teacher: it gives {list(logits.shape[1:])} numbers a sample: road rules needs one for each of "
            f"{num_classes} classes; take another road",
            code="rules-need-classes",
        )
    answer: Floats = torch.softmax(logits, dim=1).numpy()
    return answer


def one_hot(classes: NDArray[np.int64], num_classes: int) -> Floats:
    return np.eye(num_classes, dtype=np.float32)[classes]


def _subset(split: Split, count: int, rng: np.random.Generator) -> Split:
    if count == len(split):
        return split
    rows = np.sort(rng.permutation(len(split))[:count])
    return Split(inputs=split.inputs[rows], labels=split.labels[rows])
