"""Shorter networks: which branches may go, that nothing of them is left, and that the rest is what it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from compression_networks import INPUT_SHAPE, Plain, Repeated, Residual, make
from compression_own_networks import Block, ClosedTransformer, MobileNet, MobileNetV3, VisionTransformer
from depth_networks import (
    CPU,
    NOISE,
    Bottleneck,
    InPlace,
    ReadElsewhere,
    SideBySide,
    TwoSources,
    Windows,
    network_of,
    residual_cnn,
)
from torch import Tensor, nn

from cloud.compression import evaluate
from cloud.compression.branches import check_depth, find_branches, remove_branch
from cloud.compression.dependency import trace_channels
from cloud.compression.depth import measure_loss, shorten
from cloud.compression.elastic import ElasticNetwork
from cloud.compression.export import export_onnx
from cloud.compression.importance import magnitude
from cloud.compression.quantise import quantise
from cloud.domain.specs import count_branches_kept
from edgeloop.errors import ConfigError

torch.set_num_threads(1)


SHORTENABLE: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "basic blocks": (residual_cnn, ("blocks.0", "blocks.1", "blocks.2", "blocks.3")),
    "bottleneck": (Bottleneck, ("first", "second")),
    "inverted residual": (MobileNet, ("features.1.conv", "features.3.conv")),
    "squeeze and excite": (MobileNetV3, ("expand.0",)),
    "one dimension": (Windows, ("a", "b")),
    "transformer": (VisionTransformer, ("blocks.0", "blocks.0", "blocks.1", "blocks.1")),
    "torch's transformer": (ClosedTransformer, ("attn", *["encoder.0"] * 2, *["encoder.1"] * 2)),
}


@pytest.mark.parametrize("shape", SHORTENABLE)
def test_without_a_branch_a_network_computes_what_it_computes_with_zeros_there(shape: str) -> None:
    kind, names = SHORTENABLE[shape]
    model = network_of(kind)
    before = copy.deepcopy(model.state_dict())
    branches = find_branches(model, INPUT_SHAPE)
    assert tuple(branch.name for branch in branches) == names
    inputs = torch.randn(6, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(inputs.clone())
        for branch in branches:
            shorter = remove_branch(model, branch, INPUT_SHAPE)
            silent = copy.deepcopy(model)
            last = silent.get_submodule(branch.layers[-1])
            last.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
            found = shorter(inputs.clone())
            assert torch.equal(found, silent(inputs.clone()))
            assert not torch.equal(found, whole)
            assert not shorter.training
            kept = dict(shorter.named_modules())
            assert not kept.keys() & set(branch.layers)
            gone = sum(p.numel() for name in branch.layers for p in model.get_submodule(name).parameters())
            assert _count(shorter) == _count(model) - gone
            assert len(find_branches(shorter, INPUT_SHAPE)) == len(branches) - 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("shape", ["bottleneck", "transformer"])
def test_what_left_is_in_the_onnx_file_no_more(shape: str) -> None:
    model = network_of(SHORTENABLE[shape][0])
    shorter = remove_branch(model, find_branches(model, INPUT_SHAPE)[-1], INPUT_SHAPE)
    files = [onnx.load_from_string(export_onnx(one, INPUT_SHAPE)) for one in (model, shorter)]
    weights = [sum(np.prod(tensor.dims) for tensor in file.graph.initializer) for file in files]
    assert weights[0] - weights[1] >= 0.9 * (_count(model) - _count(shorter)) > 0
    assert len(files[1].graph.node) <= len(files[0].graph.node) - 2
    if shape == "bottleneck":  # two inside, and the one after the sum, whose work the pooled ReLU has done
        relus = [sum(node.op_type == "Relu" for node in file.graph.node) for file in files]
        assert relus == [relus[1] + 3, relus[1]]
    inputs = np.random.default_rng(0).normal(size=(1, *INPUT_SHAPE)).astype(np.float32)
    found = evaluate.load(files[1].SerializeToString()).run(inputs)
    with torch.no_grad():
        assert np.allclose(found, shorter(torch.from_numpy(inputs)).numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", [ReadElsewhere, InPlace, SideBySide, TwoSources, Plain, Repeated])
def test_what_is_used_elsewhere_or_is_no_shortcut_stays(kind: type[nn.Module]) -> None:
    assert find_branches(make(kind), INPUT_SHAPE) == ()


def test_a_sum_that_is_changed_in_place_stays_where_others_read_the_shortcut() -> None:
    class Shared(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x))
            y = nn.functional.relu(x + self.outer(self.inner(x)), inplace=True)
            result: Tensor = self.head((x * y).mean((2, 3)))
            return result

    assert find_branches(make(Shared), INPUT_SHAPE) == ()


def test_a_shorter_network_can_be_narrowed_cut_and_quantised() -> None:
    model = network_of(VisionTransformer)
    shorter = remove_branch(model, find_branches(model, INPUT_SHAPE)[0], INPUT_SHAPE)
    graph = trace_channels(shorter, INPUT_SHAPE)
    elastic = ElasticNetwork(shorter, graph, magnitude()(shorter, graph), INPUT_SHAPE)
    student = elastic.cut(0.5)
    assert _count(student) < _count(shorter)
    inputs = np.random.default_rng(1).normal(size=(16, *INPUT_SHAPE)).astype(np.float32)
    data = quantise(export_onnx(student, INPUT_SHAPE), inputs, reduced_range=True)
    assert np.isfinite(evaluate.load(data).run(inputs[:1])).all()


def test_the_branch_that_costs_least_goes_first_and_the_same_ones_every_time() -> None:
    model = network_of(residual_cnn)
    branches = find_branches(model, INPUT_SHAPE)
    losses = [
        measure_loss(remove_branch(model, branch, INPUT_SHAPE), NOISE, batch_size=16, device=CPU)
        for branch in branches
    ]
    # One of the four is beside a projection, and goes last.
    assert [branch.beside_identity for branch in branches] == [True, True, False, True]
    losses[2] = max(losses) + 1
    least = branches[losses.index(min(losses))].layers
    shorter = shorten(model, NOISE, depth_ratio=0.75, batch_size=16, device=CPU)
    assert not dict(shorter.named_modules()).keys() & set(least)
    assert len(find_branches(shorter, INPUT_SHAPE)) == 3
    half = [shorten(model, NOISE, depth_ratio=0.5, batch_size=16, device=CPU) for _ in range(2)]
    assert [*half[0].state_dict()] == [*half[1].state_dict()]
    assert len(find_branches(half[0], INPUT_SHAPE)) == 2
    one = shorten(model, NOISE, depth_ratio=0.01, batch_size=16, device=CPU)
    assert [branch.name for branch in find_branches(one, INPUT_SHAPE)] == ["blocks.2"]


def test_of_branches_that_cost_the_same_the_later_goes() -> None:
    model = network_of(Windows)
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.weight.zero_()  # type: ignore[union-attr, operator]  # a Conv1d
            layer.bias.zero_()  # type: ignore[union-attr, operator]
    shorter = shorten(model, NOISE, depth_ratio=0.5, batch_size=16, device=CPU)
    assert {"a", "stem"} <= dict(shorter.named_modules()).keys()
    assert "b" not in dict(shorter.named_modules())


def test_an_outer_branch_goes_only_where_enough_stays_without_it() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(64, 16), nn.Linear(16, 5)
            self.inner = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = y = self.stem(x.flatten(1))
            for layer in self.inner:
                y = y + torch.tanh(layer(y))
            result: Tensor = self.head(x + torch.tanh(y))
            return result

    model = make(Nested)
    assert len(find_branches(model, INPUT_SHAPE)) == 4
    shorter = shorten(model, NOISE, depth_ratio=0.5, batch_size=16, device=CPU)
    assert len(find_branches(shorter, INPUT_SHAPE)) == 2


@pytest.mark.parametrize(
    ("count", "ratio", "kept"),
    [(3, 0.67, 2), (3, 0.34, 1), (3, 0.5, 2), (2, 0.5, 1), (8, 0.01, 1), (4, 1, 4)],
)
def test_a_share_of_branches_is_the_nearest_number_and_at_least_one(
    count: int, ratio: float, kept: int
) -> None:
    assert count_branches_kept(count, ratio) == kept


@pytest.mark.parametrize(
    ("count", "ratio", "text"),
    [(0, 0.5, "depth_ratio is 0.5: Net has no branch beside a shortcut; leave depth_ratio out"),
     (1, 0.5, "Net has one branch beside a shortcut, which stays"),
     (3, 0.9, "3 branches beside a shortcut, and so much of them is all; give at most 0.667")],
)  # fmt: skip
def test_a_network_that_cannot_become_shorter_is_refused_by_name(count: int, ratio: float, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_depth(count, ratio, "Net")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "measure_peak_rss", lambda data: 60_000_000)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_block_of_the_transformer_is_two_branches() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(16, 2), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.block(x.reshape(x.shape[0], 4, 16)).mean(1))
            return result

    attention, feed = find_branches(make(One), INPUT_SHAPE)
    assert attention.layers == ("block.norm1", "block.attn.qkv", "block.attn.proj")
    assert feed.layers == ("block.norm2", "block.mlp.0", "block.mlp.2")
