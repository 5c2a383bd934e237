"""Each loss: what its labels must be, what it costs to be wrong, and how outputs are scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cloud.domain.losses import Loss
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.training.datasets import Dataset, check_dataset
from cloud.training.objectives import label_loss, soft_loss
from cloud.training.scores import score
from cloud.training.teacher import TeacherTrainer
from edgeloop.errors import ConfigError

torch.set_num_threads(1)


def arrays(labels: Any, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    answer: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        answer[f"{split}_inputs"] = rng.normal(size=(6, 3, 4)).astype(np.float32)
        answer[f"{split}_labels"] = np.array(labels)
    return {**answer, **changes}


def test_a_workload_keeps_its_teacher_when_losses_come_to_be_known() -> None:
    plain = Workload(name="w", dataset="digits")
    assert "loss" not in plain.to_json()
    assert Workload.from_json(plain.to_json()) == plain
    regression = Workload(name="w", dataset="digits", loss=Loss.REGRESSION)
    assert Workload.from_json(regression.to_json()) == regression
    assert regression.teacher_key != plain.teacher_key


def test_numbers_become_a_column_for_each_output() -> None:
    one = check_dataset(arrays([0.5, 1, 2, 3, 4, 5]), name="mine:load", loss=Loss.REGRESSION)
    assert one.train.labels.shape == (6, 1)
    assert one.train.labels.dtype == np.float32
    assert (one.num_outputs, one.num_classes) == (1, 0)
    two = check_dataset(arrays(np.eye(6)[:, :2]), name="mine:load", loss=Loss.REGRESSION)
    assert two.num_outputs == 2
    binary = check_dataset(arrays([0, 1, 0, 1, 0, 1]), name="mine:load", loss=Loss.BINARY)
    assert (binary.num_outputs, binary.num_classes) == (1, 2)


@pytest.mark.parametrize(
    ("loss", "answer", "said"),
    [
        (Loss.BINARY, arrays([0, 1, 2, 0, 1, 2]), "with 2 classes, labels must lie from 0 to 1"),
        (
            Loss.BINARY,
            arrays([0, 1] * 3, test_labels=np.zeros(6, int)),
            "test_labels has no sample of class 1",
        ),
        (Loss.BINARY, arrays([0.0, 1.0] * 3), "train_labels is float64: labels must be integers"),
        (Loss.REGRESSION, arrays(list("abcdef")), "a regression wants numbers"),
        (Loss.REGRESSION, arrays([0, 1, 2, 3, 4, np.nan]), "holds NaN or infinity, first in sample 5"),
        (Loss.REGRESSION, arrays([1.0] * 6), "standard deviation of 0 in output 0"),
        (Loss.REGRESSION, arrays([0, 1e6] * 3), r"standard deviation of 5e\+05 in output 0: scale it"),
        (
            Loss.REGRESSION,
            arrays([0, 1] * 3, test_labels=np.eye(6)),
            "test_labels holds 6 numbers a sample, train 1",
        ),
        (Loss.REGRESSION, arrays([0, 1] * 3, test_labels=np.arange(5)), r"test_labels has shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_labels_that_do_not_fit_the_loss_are_named(loss: Loss, answer: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_dataset(answer, name="mine:load", loss=loss)


def test_scores_are_one_for_the_truth_and_zero_for_knowing_nothing() -> None:
    labels = np.array([[1.0, 0.0], [2.0, 4.0], [3.0, 8.0]], dtype=np.float32)
    assert score(Loss.REGRESSION, labels, labels) == 1.0
    assert score(Loss.REGRESSION, np.full((3, 2), [2.0, 4.0], np.float32), labels) == pytest.approx(0.0)
    assert score(Loss.REGRESSION, -10 * labels, labels) == 0.0
    half = labels.copy()
    half[:, 1] = 4.0
    assert score(Loss.REGRESSION, half, labels) == pytest.approx(0.5)
    logits = np.array([[-2.0], [0.1], [3.0], [-0.1]], dtype=np.float32)
    assert score(Loss.BINARY, logits, np.array([0, 1, 1, 1])) == 0.75
    assert score(Loss.CROSS_ENTROPY, np.eye(3, dtype=np.float32), np.array([0, 1, 1])) == pytest.approx(2 / 3)


def test_binary_costs_what_two_classes_cost() -> None:
    logits = torch.randn(16, 1, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 2
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    for smoothing in (0.0, 0.1):
        one = label_loss(Loss.BINARY, logits, labels, smoothing)
        assert one == pytest.approx(label_loss(Loss.CROSS_ENTROPY, two, labels, smoothing).item(), rel=1e-5)


@pytest.mark.parametrize("loss", list(Loss))
def test_agreeing_with_the_teacher_costs_nothing_and_disagreeing_does(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    width = 1 if loss is Loss.BINARY else 3
    teacher = torch.randn(16, width, generator=generator)
    assert soft_loss(loss, teacher, teacher, 4.0).item() == pytest.approx(0.0, abs=1e-5)
    assert soft_loss(loss, teacher + 1 if loss is not Loss.CROSS_ENTROPY else -teacher, teacher, 4.0) > 0.1


@pytest.mark.parametrize(("loss", "floor"), [(Loss.BINARY, 0.6), (Loss.REGRESSION, 0.3)])
def test_a_teacher_learns_by_each_loss(loss: Loss, floor: float) -> None:
    """Whoever guesses has a half of the first and nothing of the second."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 192), ("validation", 64), ("test", 64)):
        inputs = rng.normal(size=(count, 1, 8, 8)).astype(np.float32)
        level = inputs[:, 0, :4].mean(axis=(1, 2)) * 6
        labels = (level > 0).astype(int) if loss is Loss.BINARY else level
        splits |= {f"{split}_inputs": inputs, f"{split}_labels": labels}
    dataset: Dataset = check_dataset(splits, name="mine:load", loss=loss)
    workload = Workload(
        name="w",
        dataset="digits",
        teacher_options={"base_width": 8, "num_stages": 1},
        training=TrainingBudget(num_epochs=8, batch_size=32, learning_rate=1e-2),
        loss=loss,
    )
    trainer = TeacherTrainer(workload, dataset, device="cpu")
    said: list[str] = []
    metrics = [trainer.run_epoch(lambda _, message: said.append(message)) for _ in range(8)]
    assert metrics[-1].validation_accuracy > floor
    assert metrics[-1].loss < metrics[0].loss
    assert f"validation {loss.metric} 0." in said[-1]
