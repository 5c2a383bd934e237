"""Answers of a teacher that several trainings share, families that leave the wide widths out, bfloat16."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cloud.compression.answers import TeacherAnswers
from cloud.compression.distil import distil
from cloud.compression.family import FamilyTrainer
from cloud.domain.families import FamilySettings, family_key
from cloud.domain.specs import CompressionSpec
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.training.augment import Augmenter
from cloud.training.datasets import Dataset, Split
from cloud.training.networks import build_teacher
from cloud.training.teacher import TeacherTrainer, measure_accuracy
from edgeloop.errors import ConfigError, RejectedError

CPU = torch.device("cpu")


def stripes(count: int, seed: int) -> Split:
    """Four kinds of stripes in noise."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    rows, columns = np.mgrid[0:12, 0:12]
    phases = np.stack([rows, columns, rows + columns, rows * 0])[labels]
    inputs = np.sin(phases * 2.0)[:, None] + 0.4 * random.standard_normal((count, 1, 12, 12))
    return Split(inputs=inputs.astype(np.float32), labels=labels.astype(np.int64))


DATASET = Dataset(train=stripes(160, 0), validation=stripes(80, 1), test=stripes(80, 2), num_classes=4)
TRAINING = TrainingBudget(num_epochs=3, batch_size=16, learning_rate=5e-3, augment_pixels=1)
WORKLOAD = Workload(
    name="stripes",
    dataset="digits",
    teacher_options={"base_width": 32, "num_stages": 2},
    training=TRAINING,
)


class Counted(nn.Module):
    """A teacher that counts the samples that it is asked about."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.num_asked = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.num_asked += len(inputs)
        answers: Tensor = self.inner(inputs)
        return answers


def counted() -> Counted:
    return Counted(build_teacher(WORKLOAD, DATASET).eval())


def views(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """All training samples, each in a view drawn by chance."""
    augmenter = Augmenter.of(TRAINING, DATASET.input_shape)
    draws = augmenter.draw(len(DATASET.train), torch.Generator().manual_seed(seed))
    inputs = torch.from_numpy(DATASET.train.inputs)
    return augmenter.apply(inputs, draws), torch.arange(len(inputs)), draws


@pytest.mark.parametrize(("pixels", "num_views"), [(0, 1), (1, 9)])
def test_a_long_training_asks_for_no_view_twice(pixels: int, num_views: int) -> None:
    training = replace(TRAINING, augment_pixels=pixels)
    teacher = Counted(build_teacher(WORKLOAD, DATASET))
    spec = CompressionSpec(num_epochs=24, learning_rate=1e-3)
    student = build_teacher(replace(WORKLOAD, teacher_options={"base_width": 8, "num_stages": 1}), DATASET)
    distil(student, teacher, DATASET, spec=spec, training=training, device=CPU, report=lambda *_: None)
    # Twelve times all samples, were each second epoch to ask anew.
    assert 0.8 * num_views * len(DATASET.train) < teacher.num_asked <= num_views * len(DATASET.train)


def test_an_answer_is_the_teachers_own_and_is_asked_for_once() -> None:
    teacher = counted()
    answers = TeacherAnswers(teacher, DATASET, TRAINING, CPU)
    for seed in (0, 1):
        inputs, rows, draws = views(seed)
        with torch.no_grad():
            wanted = teacher.inner(inputs)
        assert torch.allclose(answers.ask(inputs, rows, draws), wanted, atol=1e-5)
    asked = teacher.num_asked
    assert asked == answers.num_asked
    assert len(DATASET.train) < asked < 2 * len(DATASET.train)  # 9 views: some were drawn twice
    inputs, rows, draws = views(1)
    answers.ask(inputs, rows.flip(0), draws.flip(0))
    assert teacher.num_asked == asked


def test_different_views_of_a_sample_are_told_apart() -> None:
    augmenter = Augmenter(pixels=2, flip=True)
    every = torch.cartesian_prod(torch.arange(5), torch.arange(5), torch.arange(2))
    assert sorted(augmenter.views(every).tolist()) == list(range(augmenter.num_views))


def test_kept_answers_serve_the_next_student_and_the_family_without_the_teacher() -> None:
    teacher = counted()
    first = TeacherAnswers(teacher, DATASET, TRAINING, CPU)
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3), torch.zeros(1, dtype=torch.int64))
    augmenter = Augmenter.of(TRAINING, DATASET.input_shape)
    inputs = torch.from_numpy(DATASET.train.inputs)
    for draw in every:
        draws = draw.expand(len(inputs), 3)
        first.ask(augmenter.apply(inputs, draws), torch.arange(len(inputs)), draws)
    again = TeacherAnswers(teacher, DATASET, TRAINING, CPU)
    again.load_state_dict(first.state_dict())
    teacher.num_asked = 0
    student = build_teacher(replace(WORKLOAD, training=replace(TRAINING, seed=1)), DATASET)
    before = measure_accuracy(student, DATASET.validation, CPU)
    spec = CompressionSpec(num_epochs=3, alpha=0.5)
    distil(student, teacher, DATASET, spec=spec, training=TRAINING, device=CPU, report=lambda *_: None,
           answers=again)  # fmt: skip
    assert measure_accuracy(student, DATASET.validation, CPU) > before + 0.2
    family = FamilyTrainer(
        WORKLOAD, teacher.inner, DATASET, FamilySettings(num_epochs=1), key="a", device="cpu", answers=again
    )
    family._teacher = teacher
    family.run_epoch()
    assert teacher.num_asked == 0


def test_answers_of_other_data_and_answers_too_many_are_refused() -> None:
    answers = TeacherAnswers(counted(), DATASET, TRAINING, CPU)
    other = TeacherAnswers(counted(), DATASET, replace(TRAINING, augment_pixels=2), CPU)
    with pytest.raises(RejectedError, match="another train split or augmentation"):
        answers.load_state_dict(other.state_dict())
    wide = Dataset(
        train=Split(
            inputs=np.zeros((2_000_000, 1, 12, 12), np.float16).view(), labels=np.zeros(2_000_000, np.int64)
        ),
        validation=DATASET.validation, test=DATASET.test, num_classes=4,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="augment_pixels"):
        TeacherAnswers(counted(), wide, replace(TRAINING, augment_pixels=5), CPU)


def test_a_family_without_wide_widths_never_trains_what_it_does_not_hold() -> None:
    teacher = build_teacher(WORKLOAD, DATASET).eval()
    settings = FamilySettings(num_epochs=1, widest=0.5)
    trainer = FamilyTrainer(WORKLOAD, teacher, DATASET, settings, key="a", device="cpu")
    assert trainer.widths[-1] == 0.5
    outside = trainer.elastic._positions(trainer.elastic._removed(0.5))
    before = {name: value.detach().clone() for name, value in trainer.elastic.model.named_parameters()}
    trainer.run_epoch()
    for name, value in trainer.elastic.model.named_parameters():
        changed = (value.detach() - before[name]).flatten()
        held = torch.zeros(len(changed), dtype=torch.bool)
        positions = outside[name]
        held[slice(None) if positions is None else positions] = True
        assert changed[held].abs().max() > 1e-4
        # Weight decay alone touches the rest.
        shrunk = before[name].flatten()[~held].abs() * 0.01
        assert (changed[~held].abs() <= shrunk + 1e-8).all()


def test_settings_that_came_later_change_no_identity_and_cross_no_bounds() -> None:
    assert family_key("a", FamilySettings()) == family_key("a", FamilySettings(widest=1.0))
    assert family_key("a", FamilySettings(widest=0.5)) != family_key("a", FamilySettings())
    assert "widest" not in FamilySettings().identity()
    with pytest.raises(ValueError, match=r"widest is 0\.1: it must be at least narrowest"):
        FamilySettings(widest=0.1)
    assert "bfloat16" not in WORKLOAD.to_json()
    other = replace(WORKLOAD, training=replace(TRAINING, bfloat16=True))
    assert other.teacher_key != WORKLOAD.teacher_key
    assert Workload.from_json(other.to_json()) == other


def test_bfloat16_changes_the_arithmetic_and_still_learns_float32_weights() -> None:
    results = {}
    for bfloat16 in (False, True):
        training = replace(TRAINING, bfloat16=bfloat16)
        trainer = TeacherTrainer(replace(WORKLOAD, training=training), DATASET, device="cpu")
        while trainer.epoch < trainer.num_epochs:
            metrics = trainer.run_epoch()
        results[bfloat16] = metrics.loss
        assert metrics.validation_accuracy > 0.8
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert results[True] != results[False]
    assert results[True] == pytest.approx(results[False], abs=0.2)
