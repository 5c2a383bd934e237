"""Distilling: its loss, how often the teacher is asked, and statistics that are measured again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stripes import DATASET, WORKLOAD
from torch import nn

from cloud.compression import evaluate
from cloud.compression.distil import distil, recalibrate
from cloud.domain.families import FamilySettings
from cloud.domain.losses import Loss
from cloud.domain.specs import CompressionSpec
from cloud.training.objectives import soft_loss

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own to measure memory costs a second each time: only the tests about it pay for it."""
    monkeypatch.setattr(evaluate, "measure_peak_rss", lambda data: 60_000_000)


def test_the_soft_loss_is_zero_for_equal_logits_and_keeps_its_gradient_over_temperatures() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(64, 10, generator=generator), torch.randn(64, 10, generator=generator)
    assert soft_loss(Loss.CROSS_ENTROPY, teacher, teacher, 4.0).item() == pytest.approx(0.0, abs=1e-5)
    norms = []
    for temperature in (10.0, 20.0, 40.0):
        logits = student.clone().requires_grad_()
        soft_loss(Loss.CROSS_ENTROPY, logits, teacher, temperature).backward()
        assert logits.grad is not None
        norms.append(float(logits.grad.norm()))
    assert max(norms) / min(norms) < 1.2


def test_the_teacher_is_asked_once_for_each_view() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.asked = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.asked += len(x)
            return torch.zeros(len(x), 4)

    teacher, student = Counting(), nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    distil(
        student,
        teacher,
        DATASET,
        spec=CompressionSpec(num_epochs=4),
        training=replace(WORKLOAD.training, augment_pixels=2),  # more views than it would ask for
        device=torch.device("cpu"),
        report=lambda *_: None,
    )
    assert teacher.asked == 2 * len(DATASET.train)


def test_recalibrating_measures_statistics_and_leaves_weights() -> None:
    norm = nn.BatchNorm1d(3)
    inputs = torch.randn(64, 3) * 2 + 5
    recalibrate(norm, inputs, batch_size=16, device=torch.device("cpu"))
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, inputs.mean(0), atol=1e-4)
    assert norm.momentum == 0.1
    assert not norm.training


def test_a_student_learns_at_twice_its_teachers_rate_unless_its_spec_says_another() -> None:
    def learnt(rate: float, **spec: float) -> torch.Tensor:
        torch.manual_seed(0)
        student = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
        distil(
            student,
            nn.Sequential(nn.Flatten(), nn.Linear(144, 4)),
            DATASET,
            spec=CompressionSpec(num_epochs=1, **spec),  # type: ignore[arg-type]
            training=replace(WORKLOAD.training, learning_rate=rate),
            device=torch.device("cpu"),
            report=lambda *_: None,
        )
        weight = student[1].weight
        assert isinstance(weight, torch.Tensor)
        return weight

    usual = learnt(5e-3)
    assert torch.equal(usual, learnt(5e-3, learning_rate=1e-2))
    assert torch.equal(usual, learnt(1e-4, learning_rate=1e-2))
    assert not torch.equal(usual, learnt(1e-3))
    for rate, learns_at in ((9.0, 10.0), (1e-9, 1e-7)):  # what specs and families may have
        training = replace(WORKLOAD.training, learning_rate=rate)
        assert FamilySettings(learning_rate=training.student_learning_rate).learning_rate == learns_at
