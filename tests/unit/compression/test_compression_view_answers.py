"""Answers of a teacher to whole views, shared by trainings that know nothing of each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from weights_in_memory import Shelf

from cloud.compression import view_answers
from cloud.compression.distil import distil
from cloud.compression.family import FamilyTrainer
from cloud.compression.view_answers import AnswerShelf, ViewAnswers
from cloud.domain.families import FamilySettings
from cloud.domain.specs import CompressionSpec
from cloud.domain.tasks import TeacherResult
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.training import checkpoints
from cloud.training.augment import Augmenter
from cloud.training.datasets import Dataset, Split
from cloud.training.networks import build_teacher

CPU = torch.device("cpu")


def noise(count: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((count, 1, 12, 12)).astype(np.float32)
    return Split(inputs=inputs, labels=(np.arange(count) % 4).astype(np.int64))


DATASET = Dataset(train=noise(90, 0), validation=noise(40, 1), test=noise(40, 2), num_classes=4)
SHIFTED = TrainingBudget(num_epochs=1, batch_size=16, learning_rate=5e-3, augment_pixels=1)
PLAIN = replace(SHIFTED, augment_pixels=0)
TEACHER = TeacherResult(
    workload="noise", teacher_key="k", checkpoint_digest="d", artifact_digest="a", artifact_bytes=1,
    accuracy=0.5, test_accuracy=0.5, macs=1, num_parameters=1, latency_p50_ms=1.0, reference_p50_ms=1.0,
    num_epochs=1, train_s=1.0,
)  # fmt: skip


def workload_of(training: TrainingBudget, width: int = 16) -> Workload:
    options = {"base_width": width, "num_stages": 1}
    return Workload(name="noise", dataset="digits", teacher_options=options, training=training)


class Counted(nn.Module):
    """A teacher that counts the samples that it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build_teacher(workload_of(PLAIN), DATASET).eval()
        self.num_asked = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.num_asked += len(inputs)
        answers: Tensor = self.inner(inputs)
        return answers


def learn(
    teacher: Counted, training: TrainingBudget, shelf: AnswerShelf | None, *, width: int = 8, **spec: float
) -> dict[str, Tensor]:
    """What a student of this width is after it was distilled."""
    student = build_teacher(workload_of(training, width), DATASET)
    lesson = CompressionSpec(**{"num_epochs": 4, **spec})  # type: ignore[arg-type]
    distil(student, teacher, DATASET, spec=lesson, training=training, device=CPU, report=lambda *_: None,
           shelf=shelf)  # fmt: skip
    return student.state_dict()


@pytest.mark.parametrize(
    ("training", "num_epochs", "num_views"), [(SHIFTED, 4, 2), (SHIFTED, 18, 9), (PLAIN, 1, 1), (PLAIN, 4, 1)]
)
def test_a_second_student_learns_the_same_without_asking(
    training: TrainingBudget, num_epochs: int, num_views: int
) -> None:
    teacher, kept = Counted(), Shelf()
    shelf = AnswerShelf(kept, workload_of(training), TEACHER)
    alone = learn(teacher, training, None, num_epochs=num_epochs)
    assert teacher.num_asked == num_views * len(DATASET.train)
    first = learn(teacher, training, shelf, num_epochs=num_epochs)
    assert teacher.num_asked == 2 * num_views * len(DATASET.train)
    second = learn(teacher, training, shelf, num_epochs=num_epochs)
    learn(teacher, training, shelf, num_epochs=num_epochs, width=24, temperature=2.0)
    assert teacher.num_asked == 2 * num_views * len(DATASET.train)
    for name, value in alone.items():
        assert torch.equal(value, first[name])
        assert torch.equal(value, second[name])


@pytest.mark.parametrize("training", [SHIFTED, replace(SHIFTED, augment_flip=True), PLAIN])
def test_an_answer_is_what_the_teacher_says_of_that_view(training: TrainingBudget) -> None:
    augmenter = Augmenter.of(training, DATASET.input_shape)
    draws = augmenter.draw(len(DATASET.train), torch.Generator().manual_seed(7))
    teacher, rows = Counted(), torch.arange(len(DATASET.train)).flip(0)
    with torch.no_grad():
        wanted = teacher(augmenter.apply(torch.from_numpy(DATASET.train.inputs), draws))
    kept = Shelf()
    for _ in range(2):  # asked, then from the shelf
        shelf = AnswerShelf(kept, workload_of(training), TEACHER)
        answers = ViewAnswers(teacher, DATASET, training, CPU, shelf)
        drawn = answers.to_drawn(0, 0, draws, lambda *_: None)
        assert torch.allclose(drawn, wanted, atol=1e-5)
        each = answers.to_each(draws[rows], rows, lambda *_: None)
        assert torch.allclose(each, wanted[rows], atol=1e-5)


def test_whoever_learns_from_labels_alone_asks_nothing() -> None:
    teacher = Counted()
    learn(teacher, SHIFTED, None, alpha=0.0)
    assert teacher.num_asked == 0


def test_another_seed_asks_for_its_own_views_and_the_plain_one_serves_all_seeds() -> None:
    teacher, kept = Counted(), Shelf()
    for training, times in ((SHIFTED, 4), (PLAIN, 1)):
        teacher.num_asked = 0
        for seed in (0, 1):
            learn(teacher, training, AnswerShelf(kept, workload_of(training), TEACHER), seed=seed)
        assert teacher.num_asked == times * len(DATASET.train)


@pytest.mark.parametrize(
    "changed",
    [
        (workload_of(PLAIN), replace(TEACHER, checkpoint_digest="e")),
        (workload_of(PLAIN), replace(TEACHER, other_checkpoints=("f",))),
        (replace(workload_of(PLAIN), dataset_options={"image_size": 16}), TEACHER),
        (workload_of(replace(PLAIN, bfloat16=True)), TEACHER),
    ],
)
def test_answers_of_another_teacher_or_other_data_are_asked_for_anew(
    changed: tuple[Workload, TeacherResult],
) -> None:
    teacher, kept = Counted(), Shelf()
    learn(teacher, PLAIN, AnswerShelf(kept, workload_of(PLAIN), TEACHER))
    learn(teacher, PLAIN, AnswerShelf(kept, *changed))
    assert teacher.num_asked == 2 * len(DATASET.train)


@pytest.mark.parametrize(
    "data",
    [
        b"rotten",
        checkpoints.to_bytes({"version": 2, "answers": torch.zeros(90, 4)}),
        checkpoints.to_bytes({"version": 1, "answers": torch.zeros(89, 4)}),
        checkpoints.to_bytes({"version": 1, "answers": torch.zeros(90, 4, dtype=torch.float64)}),
        checkpoints.to_bytes({"version": 1}),
    ],
)
def test_what_does_not_fit_counts_as_absent_and_is_replaced(data: bytes) -> None:
    teacher, kept = Counted(), Shelf()
    shelf = AnswerShelf(kept, workload_of(PLAIN), TEACHER)
    wanted = learn(teacher, PLAIN, shelf)
    for key in kept.kept:
        kept.kept[key] = data
    found = learn(teacher, PLAIN, shelf)
    assert teacher.num_asked == 2 * len(DATASET.train)
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    learn(teacher, PLAIN, shelf)
    assert teacher.num_asked == 2 * len(DATASET.train)


def test_a_family_without_augmentation_asks_what_its_students_asked_not_again() -> None:
    teacher, kept = Counted(), Shelf()
    workload = workload_of(PLAIN)
    shelf = AnswerShelf(kept, workload, TEACHER)
    learn(teacher, PLAIN, shelf)
    asked = teacher.num_asked
    results = []
    for one in (shelf, None):
        family = FamilyTrainer(workload, teacher.inner, DATASET, FamilySettings(num_epochs=2), key="a",
                               device="cpu", wisdom=teacher, shelf=one)  # fmt: skip
        while family.epoch < family.num_epochs:
            family.run_epoch()
        results.append((teacher.num_asked - asked, family.elastic.model.state_dict()))
        asked = teacher.num_asked
    (shared, with_shelf), (own, without) = results
    assert (shared, own) == (0, len(DATASET.train))
    assert all(torch.equal(value, without[name]) for name, value in with_shelf.items())


def test_a_view_too_large_to_share_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, kept = Counted(), Shelf()
    monkeypatch.setattr(view_answers, "MAX_SHARED_BYTES", 90 * 4 * 4 - 1)
    learn(teacher, PLAIN, AnswerShelf(kept, workload_of(PLAIN), TEACHER))
    assert not kept.kept


def test_a_view_can_be_named_and_made_again() -> None:
    for augmenter in (Augmenter(pixels=2, flip=True), Augmenter(pixels=1), Augmenter()):
        views = torch.arange(augmenter.num_views)
        draws = torch.stack([augmenter.draws_of(int(view)) for view in views])
        assert augmenter.views(draws).tolist() == views.tolist()


def test_asking_can_be_stopped_and_says_how_far_it_is() -> None:
    many = replace(DATASET, train=noise(256 * 25, 3))
    said: list[str] = []

    class StoppedError(Exception):
        pass

    def report(_fraction: float, text: str) -> None:
        said.append(text)
        if len(said) == 3:
            raise StoppedError

    answers = ViewAnswers(Counted(), many, PLAIN, CPU)
    draws = torch.zeros(len(many.train), 3, dtype=torch.int64)
    with pytest.raises(StoppedError):
        answers.to_drawn(0, 0, draws, report)
    assert said == [f"asking the teacher: {done} of 6400 samples" for done in (0, 256, 512)]
