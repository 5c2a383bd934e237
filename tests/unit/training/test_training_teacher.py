"""Teacher training: it learns, it resumes as if never stopped, it says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloud.domain.workloads import TrainingBudget, Workload
from cloud.training import checkpoints
from cloud.training.augment import Augmenter
from cloud.training.datasets import Dataset, Split
from cloud.training.networks import build_teacher
from cloud.training.schedule import one_cycle
from cloud.training.teacher import TeacherTrainer, count_batches
from edgeloop.errors import ConfigError, RejectedError

torch.set_num_threads(1)


def stripes(count: int, seed: int) -> Split:
    """Images whose class is the position of a bright row: quick to learn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    inputs = rng.normal(0, 0.3, size=(count, 1, 8, 8)).astype(np.float32)
    inputs[np.arange(count), 0, labels * 2] += 1.5
    return Split(inputs=inputs, labels=labels.astype(np.int64))


def tiny() -> Dataset:
    return Dataset(train=stripes(192, 0), validation=stripes(64, 1), test=stripes(64, 2), num_classes=4)


def workload(**changes: Any) -> Workload:
    training = {"num_epochs": 4, "batch_size": 32, "learning_rate": 5e-3, "augment_pixels": 0, **changes}
    return Workload(
        name="w",
        dataset="digits",
        teacher_options={"base_width": 8, "num_stages": 2},
        training=TrainingBudget(**training),
    )


def test_it_learns_and_reports_progress_up_to_one() -> None:
    trainer = TeacherTrainer(workload(), tiny(), device="cpu")
    seen: list[float] = []
    metrics = [trainer.run_epoch(lambda fraction, message: seen.append(fraction)) for _ in range(4)]
    assert metrics[-1].validation_accuracy > 0.9
    assert metrics[-1].loss < metrics[0].loss
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_resumed_training_ends_in_the_same_weights() -> None:
    whole = TeacherTrainer(workload(augment_flip=True), tiny(), device="cpu")
    stopped = TeacherTrainer(workload(augment_flip=True), tiny(), device="cpu")
    for _ in range(3):
        whole.run_epoch()
    stopped.run_epoch()
    saved = checkpoints.to_bytes(stopped.state_dict())
    torch.rand(17)  # whatever else used torch's generator must not matter
    resumed = TeacherTrainer(workload(augment_flip=True), tiny(), device="cpu")
    resumed.load_state_dict(checkpoints.from_bytes(saved))
    assert resumed.epoch == 1
    resumed.run_epoch()
    resumed.run_epoch()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_another_seed_gives_other_weights() -> None:
    one, other = (build_teacher(workload(seed=seed), tiny()).state_dict() for seed in (0, 1))
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_a_checkpoint_of_another_teacher_is_refused() -> None:
    state = TeacherTrainer(workload(), tiny(), device="cpu").state_dict()
    with pytest.raises(RejectedError, match="start the training afresh"):
        TeacherTrainer(workload(seed=5), tiny(), device="cpu").load_state_dict(state)


def test_a_diverging_loss_stops_at_once_and_names_the_place() -> None:
    dataset = tiny()
    trainer = TeacherTrainer(workload(), dataset, device="cpu")
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(
        ConfigError,
        match=r"loss is nan at epoch 1, batch 1 \(samples \d+, .* of the train split\): lower training",
    ):
        trainer.run_epoch()


def test_what_report_raises_stops_training() -> None:
    class CancelledError(Exception):
        pass

    def report(fraction: float, message: str) -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        TeacherTrainer(workload(), tiny(), device="cpu").run_epoch(report)


def teacher_from(tmp_path: Path, code: str, **options: Any) -> Workload:
    (tmp_path / "my_net.py").write_text("import torch\nfrom torch import nn\n" + code)
    return Workload(
        name="w", dataset="digits", teacher="my_net:net", teacher_options=options, source_dir=str(tmp_path)
    )


NET = """
def net(num_classes, input_shape, hidden=16):
    return nn.Sequential(nn.Conv2d(input_shape[0], hidden, 3), nn.ReLU(), nn.Flatten(),
                         nn.Linear(hidden * 36, num_classes))
"""


def test_an_own_network_gets_options_shape_and_classes(tmp_path: Path) -> None:
    trainer = TeacherTrainer(teacher_from(tmp_path, NET, hidden=24), tiny(), device="cpu")
    assert trainer.model.state_dict()["0.weight"].shape == (24, 1, 3, 3)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def net(): return 5", "returned int, not a torch.nn.Module"),
        ("def net(): return nn.Linear(3, 4)", r"fails on one input of shape \[2, 1, 8, 8\]"),
        ("def net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))", r"gives \[2, 7\] for 2 samples"),
        (
            "def net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))",
            "no channels that can be removed",
        ),
        (
            "class N(nn.Module):\n"
            "    def __init__(self):\n        super().__init__(); self.a = nn.Linear(64, 4)\n"
            "    def forward(self, x):\n        x = x.flatten(1)\n"
            "        return self.a(x) if x.sum() > 9 else self.a(-x)\n"
            "def net(): return N()",
            "cannot be traced",
        ),
        ("def net(): return nn.Flatten()", "no trainable parameters"),
    ],
    ids=["type", "forward", "output", "nothing-to-prune", "branches", "parameters"],
)
def test_an_own_network_that_cannot_work_is_refused_before_training(
    tmp_path: Path, code: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        TeacherTrainer(teacher_from(tmp_path, code), tiny(), device="cpu")


def test_an_unknown_teacher_and_unknown_option_are_named() -> None:
    with pytest.raises(ConfigError, match="teacher is 'resnet'"):
        build_teacher(Workload(name="w", dataset="digits", teacher="resnet"), tiny())
    with pytest.raises(ConfigError, match=r"teacher_options\.width is unknown"):
        build_teacher(Workload(name="w", dataset="digits", teacher_options={"width": 3}), tiny())


def test_checkpoint_bytes_that_hold_code_or_noise_are_refused() -> None:
    import io

    buffer = io.BytesIO()
    torch.save({"model": Path("x")}, buffer)
    for raw in (b"", b"noise", buffer.getvalue()):
        with pytest.raises(RejectedError, match="cannot be read"):
            checkpoints.from_bytes(raw)


def test_a_shift_moves_pixels_and_repeats_the_edge() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    moved = Augmenter(pixels=1).apply(image, torch.tensor([[0, 1, 0]]))  # offset 0 of 0..2: one row down
    assert moved[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    centred = Augmenter(pixels=1).apply(image, torch.tensor([[1, 1, 0]]))
    assert torch.equal(centred, image)


def test_a_flip_mirrors_what_was_drawn_and_nothing_else() -> None:
    images = torch.arange(6.0).reshape(2, 1, 1, 3)
    flipped = Augmenter(flip=True).apply(images, torch.tensor([[0, 0, 1], [0, 0, 0]]))
    assert flipped[:, 0, 0].tolist() == [[2, 1, 0], [3, 4, 5]]


def test_augmenting_what_is_no_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training.augment_pixels .* work on images"):
        Augmenter.of(TrainingBudget(augment_pixels=1), (6, 128))


def test_the_learning_rate_rises_to_its_peak_and_ends_near_zero() -> None:
    rates = [one_cycle(step, 100, 1.0) for step in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.04)
    assert rates[-1] < 1e-3
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize(("samples", "batches"), [(1, 1), (64, 1), (65, 1), (66, 2), (130, 3)])
def test_a_rest_of_one_sample_is_no_batch(samples: int, batches: int) -> None:
    assert count_batches(samples, 64) == batches
