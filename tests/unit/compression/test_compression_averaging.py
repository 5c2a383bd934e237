"""The mean of a student's weights: what it is, that training does not see it, and when it is kept."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from compression_networks import make
from striped_images import striped
from torch import Tensor, nn

from cloud.compression import distil as distilling
from cloud.compression.averaging import YOUNG_STEPS, AveragedWeights
from cloud.compression.distil import DistilResult, WeightRule, distil
from cloud.compression.sparsify import Sparsifier, zero_share
from cloud.domain.sparsity import SparsitySpec
from cloud.domain.specs import CompressionSpec
from cloud.domain.workloads import TrainingBudget
from cloud.training.networks import ResidualCnn

torch.set_num_threads(1)
CPU = torch.device("cpu")
DATASET = striped()
TRAINING = TrainingBudget(batch_size=16)
NUM_BATCHES = 12


def network() -> nn.Module:
    return ResidualCnn(in_channels=1, num_classes=4, base_width=8, num_stages=2)


def taught(
    student: nn.Module, teacher: nn.Module, rule: WeightRule | None = None, **spec: float
) -> tuple[DistilResult, list[str]]:
    said: list[str] = []
    lesson = CompressionSpec(**{"num_epochs": 3, "learning_rate": 1e-2, **spec})  # type: ignore[arg-type]
    result = distil(
        student, teacher, DATASET, spec=lesson, training=TRAINING, device=CPU, rule=rule,
        report=lambda _fraction, text: said.append(text),
    )  # fmt: skip
    return result, said


class Recorder:
    """A rule that asks for nothing, and keeps the weights after each step."""

    in_force = True

    def __init__(self) -> None:
        self.seen: list[list[Tensor]] = []

    def begin(self, model: nn.Module, num_steps: int) -> None:
        del num_steps
        self.seen = [[p.detach().clone() for p in model.parameters()]]

    def after_step(self, model: nn.Module, step: int) -> None:
        del step
        self.seen.append([p.detach().clone() for p in model.parameters()])


@pytest.fixture
def only_means_are_good(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Validation likes every network but the students named in the list."""
    students: list[nn.Module] = []
    monkeypatch.setattr(
        distilling, "measure_accuracy", lambda model, *_: 0.5 if any(model is s for s in students) else 1.0
    )
    return students


def test_the_mean_forgets_its_start_and_then_lags_by_as_many_steps_as_asked() -> None:
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, 1000.0)
    average = AveragedWeights(student, num_steps=20)
    for step in range(1, 401):
        nn.init.constant_(student.weight, float(step))
        average.after_step(student)
        if step == 1:
            assert next(average.network.parameters()).item() == pytest.approx(
                1000 - 999 * (1 - 1 / YOUNG_STEPS)
            )
    assert next(average.network.parameters()).item() == pytest.approx(400 - 19, abs=0.5)
    assert float(student.weight) == 400.0
    average.begin_anew(student)
    assert next(average.network.parameters()).item() == 400.0


def test_what_is_kept_is_the_mean_of_the_weights_after_each_step(
    only_means_are_good: list[nn.Module],
) -> None:
    teacher, student = make(network), make(network)  # type: ignore[arg-type]
    recorder = Recorder()
    only_means_are_good.append(student)
    result, _ = taught(student, teacher, recorder, averaged_epochs=0.5)
    assert (result.is_average, result.best_epoch) == (True, 3)
    means = [weight.double().numpy() for weight in recorder.seen[0]]
    for seen, weights in enumerate(recorder.seen[1:]):
        share = max(1 / (0.5 * NUM_BATCHES), 1 - (1 + seen) / (YOUNG_STEPS + seen))
        means = [mean + share * (w.numpy() - mean) for mean, w in zip(means, weights, strict=True)]
    assert len(recorder.seen) == 3 * NUM_BATCHES + 1
    for found, mean, last in zip(student.parameters(), means, recorder.seen[-1], strict=True):
        assert np.allclose(found.detach().numpy(), mean, atol=1e-5)
        assert not torch.equal(found, last)


def test_batch_norm_of_the_mean_is_measured_with_its_own_weights(
    only_means_are_good: list[nn.Module],
) -> None:
    teacher, student = make(network), make(network)  # type: ignore[arg-type]
    only_means_are_good.append(student)
    taught(student, teacher, averaged_epochs=1.0)
    anew = copy.deepcopy(student)
    distilling.recalibrate(anew, torch.from_numpy(DATASET.train.inputs), batch_size=16, device=CPU)
    wanted, found = anew.state_dict(), student.state_dict()
    norms = [name for name in wanted if "running" in name]
    assert norms
    assert all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in norms)


def test_training_does_not_see_the_mean_and_both_are_told() -> None:
    teacher = make(network)  # type: ignore[arg-type]
    recorders = Recorder(), Recorder()
    plain, said = taught(make(network), teacher, recorders[0])  # type: ignore[arg-type]
    _, told = taught(make(network), teacher, recorders[1], averaged_epochs=2.0)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(recorders[0].seen[-1], recorders[1].seen[-1], strict=True))
    assert not plain.is_average
    assert not any("of the mean" in text for text in said)
    assert sum("of the mean" in text for text in told) == 3


def test_zeros_stay_zero_in_the_mean(only_means_are_good: list[nn.Module]) -> None:
    teacher, student = make(network), make(network)  # type: ignore[arg-type]
    only_means_are_good.append(student)
    sparsity = SparsitySpec(ratio=0.5)
    result, _ = taught(student, teacher, Sparsifier.of(sparsity, DATASET, 16), averaged_epochs=5.0)
    assert result.is_average
    assert zero_share(student) == pytest.approx(0.5, abs=0.01)


def test_a_spec_says_it_and_one_without_is_what_it_was() -> None:
    assert "averaged_epochs" not in CompressionSpec().to_json()
    spec = CompressionSpec.from_mapping({"averaged_epochs": 2})
    assert json.loads(spec.to_json())["averaged_epochs"] == 2
    for value in (0, -1, "two", True, 1001):
        with pytest.raises(ValueError, match=r"averaged_epochs is .*: it must be a number from 0.01 to 1000"):
            CompressionSpec.from_mapping({"averaged_epochs": value})
    with pytest.raises(ValueError, match=r"averaged_epochs is 2, but road is rules"):
        CompressionSpec.from_mapping({"road": "rules", "averaged_epochs": 2})
