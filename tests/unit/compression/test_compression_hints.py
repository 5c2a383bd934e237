"""Distillation beyond soft labels: features of inner layers, and several teachers at once."""

from __future__ import annotations

import copy

import compression_networks as nets
import numpy as np
import pytest
import torch
from compression_networks import INPUT_SHAPE, make
from torch import nn

from cloud.compression.dependency import trace_channels
from cloud.compression.distil import distil
from cloud.compression.hints import Hints
from cloud.compression.importance import magnitude
from cloud.compression.prune import choose_removed, remove_units
from cloud.domain.specs import CompressionSpec
from cloud.domain.workloads import TrainingBudget
from cloud.training.datasets import Dataset, Split
from cloud.training.ensemble import MeanOfOutputs
from edgeloop.errors import ConfigError

torch.set_num_threads(1)
CPU = torch.device("cpu")


def noise(count: int, seed: int) -> Split:
    inputs = np.random.default_rng(seed).normal(size=(count, *INPUT_SHAPE)).astype(np.float32)
    return Split(inputs=inputs, labels=np.arange(count) % 5)


VALIDATION = Split(inputs=noise(20, 1).inputs, labels=np.arange(20) % 2 * 2 + 1)
DATASET = Dataset(train=noise(60, 0), validation=VALIDATION, test=noise(20, 2), num_classes=5)
TRAINING = TrainingBudget(num_epochs=1, batch_size=20, learning_rate=1e-2)


def halved(model: nn.Module) -> nn.Module:
    graph = trace_channels(model, INPUT_SHAPE)
    removed = choose_removed(graph, magnitude()(model, graph), 0.5)
    return remove_units(model, graph, removed, INPUT_SHAPE)


def taught(student: nn.Module, teacher: nn.Module, **spec: float) -> nn.Module:
    student = copy.deepcopy(student)
    distil(
        student,
        teacher,
        DATASET,
        spec=CompressionSpec(num_epochs=6, learning_rate=1e-2, **spec),  # type: ignore[arg-type]
        training=TRAINING,
        device=CPU,
        report=lambda *_: None,
    )
    return student


@pytest.mark.parametrize("kind", [nets.Residual, nets.Dense], ids=["images", "rows"])
def test_hints_bring_inner_features_nearer_to_the_teachers(kind: type[nn.Module]) -> None:
    teacher = make(kind)
    student = halved(teacher)
    inputs = torch.from_numpy(DATASET.train.inputs)
    hints = Hints(student, teacher, inputs[:2], seed=0, device=CPU)
    optimizer = torch.optim.Adam([*student.parameters(), *hints.parameters()], lr=1e-2)
    costs = []
    for _ in range(40):
        student(inputs)
        cost = hints.cost(inputs)
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert costs[-1] < 0.5 * costs[0]
    hints.close()
    assert not any(m._forward_hooks for network in (student, teacher) for m in network.modules())


def test_a_hint_weight_changes_what_is_learnt_and_none_does_not() -> None:
    teacher = make(nets.Residual)
    student = halved(teacher)
    plain, nothing, hinted = (
        taught(student, teacher).state_dict(),
        taught(student, teacher, hint_weight=0.0).state_dict(),
        taught(student, teacher, hint_weight=5.0).state_dict(),
    )
    assert all(torch.equal(plain[name], nothing[name]) for name in plain)
    assert set(hinted) == set(plain)
    assert not torch.equal(plain["stem.weight"], hinted["stem.weight"])
    assert not any(module._forward_hooks for module in teacher.modules())


def test_where_no_layer_fits_that_is_said() -> None:
    with pytest.raises(ConfigError, match="hint_weight: no inner layer of the student"):
        Hints(make(nets.Dense), make(nets.Residual), torch.zeros(2, *INPUT_SHAPE), seed=0, device=CPU)


def test_a_student_of_several_teachers_learns_their_mean() -> None:
    class Always(nn.Module):
        def __init__(self, label: int) -> None:
            super().__init__()
            self.logits = nn.Buffer(12.0 * nn.functional.one_hot(torch.tensor(label), 5).float())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.logits.expand(len(x), -1)

    both = MeanOfOutputs([Always(1), Always(3)])
    assert both(torch.zeros(2, 1))[0].tolist() == [0.0, 6.0, 0.0, 6.0, 0.0]
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    nn.init.zeros_(student[1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(student[1].bias)  # type: ignore[arg-type]
    outputs = taught(student, both, alpha=1.0, temperature=1.0).eval()(torch.from_numpy(DATASET.test.inputs))
    shares = outputs.softmax(1).mean(0)
    assert shares[[1, 3]].min() > shares[[0, 2, 4]].max()
    with pytest.raises(ConfigError, match="at least one teacher"):
        MeanOfOutputs([])
