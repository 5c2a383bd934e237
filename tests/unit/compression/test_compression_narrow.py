"""Narrowing as a spec asks for it: what ranks the channels, and in how many steps."""

from __future__ import annotations

import compression_networks as nets
import numpy as np
import pytest
import torch
from compression_networks import INPUT_SHAPE, make
from torch import nn

from cloud.compression.dependency import trace_channels
from cloud.compression.narrow import narrow, split_epochs
from cloud.domain.specs import CompressionSpec, Importance, Road
from cloud.training.datasets import Dataset, Split

torch.set_num_threads(1)


def noise(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, *INPUT_SHAPE)).astype(np.float32)
    return Split(inputs=inputs, labels=np.arange(count) % 5)


DATASET = Dataset(train=noise(40, 0), validation=noise(10, 1), test=noise(10, 2), num_classes=5)


def narrowed(model: nn.Module, spec: CompressionSpec, tuned: list[int] | None = None) -> nn.Module:
    def tune(network: nn.Module) -> None:
        if tuned is not None:
            tuned.append(trace_channels(network, INPUT_SHAPE).num_units)

    return narrow(model, DATASET, spec=spec, batch_size=16, device=torch.device("cpu"), tune=tune)


def test_steps_end_at_the_width_that_one_step_gives() -> None:
    model = make(nets.Residual)
    tuned: list[int] = []
    at_once = narrowed(model, CompressionSpec(width_ratio=0.3))
    in_steps = narrowed(model, CompressionSpec(width_ratio=0.3, pruning_steps=3), tuned)
    assert [p.shape for p in in_steps.parameters()] == [p.shape for p in at_once.parameters()]
    assert tuned == [8 + 16, 8 + 8]
    assert trace_channels(model, INPUT_SHAPE).num_units == 16 + 24


def test_each_importance_decides_otherwise() -> None:
    model = make(nets.Residual)
    kept = {
        importance: narrowed(model, CompressionSpec(width_ratio=0.4, importance=importance)).state_dict()
        for importance in Importance
    }
    weights = [state["inner.weight"] for state in kept.values()]
    assert all(not torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (1, 2), (0, 2)))
    default = narrowed(model, CompressionSpec(width_ratio=0.4)).state_dict()
    assert torch.equal(default["inner.weight"], kept[Importance.TAYLOR]["inner.weight"])


@pytest.mark.parametrize(
    ("epochs", "steps", "road", "between", "last"),
    [(6, None, Road.PRUNED, 0, 6), (6, 2, Road.PRUNED, 2, 4), (6, 3, Road.PRUNED, 1, 4),
     (1, 4, Road.PRUNED, 0, 1), (6, 3, Road.SCRATCH, 0, 6)],
)  # fmt: skip
def test_steps_spend_no_more_epochs_than_the_spec_has(
    epochs: int, steps: int | None, road: Road, between: int, last: int
) -> None:
    spec = CompressionSpec(num_epochs=epochs, pruning_steps=steps, road=road)
    assert split_epochs(spec) == (between, last)
    assert between * ((steps or 1) - 1) + last == epochs or road is not Road.PRUNED


def test_what_is_not_asked_for_leaves_the_identity_of_a_spec_alone() -> None:
    assert "importance" not in CompressionSpec().to_json()
    spec = CompressionSpec.from_mapping({"importance": "magnitude", "pruning_steps": 2})
    assert spec.importance is Importance.MAGNITUDE
    assert CompressionSpec.from_mapping({"importance": None, "pruning_steps": None}) == CompressionSpec()
    with pytest.raises(ValueError, match="importance is 'size': it must be one of taylor, magnitude"):
        CompressionSpec.from_mapping({"importance": "size"})
    with pytest.raises(ValueError, match="pruning_steps is 0: it must be a number from 1 to 16"):
        CompressionSpec(pruning_steps=0)
