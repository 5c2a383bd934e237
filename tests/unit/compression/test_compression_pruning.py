"""Pruning: a network without units computes what the full one computes with those units at zero."""

from __future__ import annotations

import copy

import compression_networks as nets
import numpy as np
import pytest
import torch
from compression_networks import INPUT_SHAPE, NETWORKS, make, mask_units
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cloud.compression import evaluate
from cloud.compression.cost import measure_cost
from cloud.compression.dependency import trace_channels
from cloud.compression.export import export_onnx
from cloud.compression.importance import magnitude, norm_scale, taylor
from cloud.compression.prune import choose_removed, count_kept, reinitialise, remove_units
from cloud.training.networks import ResidualCnn
from edgeloop.errors import ConfigError

torch.set_num_threads(1)


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_pruned_equals_masked(kind: type[nn.Module], data: st.DataObject) -> None:
    model = make(kind)
    graph = trace_channels(model, INPUT_SHAPE)
    removed: set[int] = set()
    for group in graph.groups:
        kept = data.draw(st.integers(1, len(group.units)))
        removed.update(data.draw(st.permutations(group.units))[kept:])
    pruned = remove_units(model, graph, frozenset(removed), INPUT_SHAPE)
    masked = mask_units(model, graph, frozenset(removed))
    inputs = torch.randn(3, *INPUT_SHAPE, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(pruned(inputs), masked(inputs), atol=1e-5)
    lost = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in pruned.parameters())
    assert (lost > 0) == bool(removed)


GROUPS = {
    "Plain": {("a",): 16, ("b",): 24},
    "Residual": {("stem", "outer"): 16, ("inner",): 24},
    "Concat": {("left", "mix"): 16, ("right",): 24},
    "Depthwise": {("expand",): 16, ("project",): 16},
    "Grouped": {("first",): 16, ("second",): 4, ("third",): 24},
    "Gated": {("conv", "excite"): 24, ("squeeze",): 16},
    "Dense": {("layers.1",): 32, ("layers.5",): 24},
    "Sequence": {("a",): 16, ("b",): 24},
    "Repeated": {("stem", "again"): 24},
    "Normalised": {("second",): 24},
    "Split": {("a",): 16, ("b",): 24},
    "Taken": {("b",): 24},
    "Shifted": {("b",): 24},
}


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_channels_that_the_graph_ties_together_form_one_group(kind: type[nn.Module]) -> None:
    graph = trace_channels(make(kind), INPUT_SHAPE)
    assert {group.layers: len(group.units) for group in graph.groups} == GROUPS[kind.__name__]


@pytest.mark.parametrize(
    ("kind", "operation", "reason"),
    [
        (nets.Normalised, "norm", "LayerNorm"),
        (nets.Taken, "getitem", "takes some of the channels by number"),
        (nets.Shifted, "add", "something that must stay whole"),
    ],
    ids=["layer-norm", "index", "added"],
)
def test_what_cannot_be_pruned_is_named(kind: type[nn.Module], operation: str, reason: str) -> None:
    frozen = trace_channels(make(kind), INPUT_SHAPE).frozen
    assert [one.operation for one in frozen] == [operation]
    assert reason in frozen[0].reason


@given(num_units=st.integers(1, 600), width_ratio=st.floats(0.01, 1.0))
def test_a_group_keeps_a_multiple_of_eight_and_at_least_eight(num_units: int, width_ratio: float) -> None:
    kept = count_kept(num_units, width_ratio)
    assert kept == num_units or (kept % 8 == 0 and 8 <= kept < num_units)
    assert kept == num_units or abs(kept - num_units * width_ratio) <= 8


def test_width_one_removes_nothing_even_from_odd_widths() -> None:
    graph = trace_channels(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 37), nn.ReLU(), nn.Linear(37, 5)), INPUT_SHAPE
    )
    assert choose_removed(graph, dict.fromkeys(range(99), 0.0), 1.0) == frozenset()


@pytest.mark.parametrize("kind", [nets.Residual, nets.Concat, nets.Depthwise, nets.Plain])
def test_every_importance_throws_out_a_dead_channel_first(kind: type[nn.Module]) -> None:
    model = make(kind)
    graph = trace_channels(model, INPUT_SHAPE)
    group = graph.groups[0]
    dead = frozenset(group.units[3:5])
    dying = mask_units(model, graph, dead)
    batches = [(torch.randn(16, *INPUT_SHAPE), torch.randint(0, 5, (16,)))]
    for importance in (magnitude(1), magnitude(2), norm_scale(), taylor(batches)):
        scores = importance(dying, graph)
        assert set(scores) == {unit for g in graph.groups for unit in g.units}
        alive = min(scores[unit] for unit in group.units if unit not in dead)
        assert max(scores[unit] for unit in dead) <= alive


def test_importance_leaves_the_network_as_it_was() -> None:
    model = make(nets.Residual).train()
    before = copy.deepcopy(model.state_dict())
    graph = trace_channels(model, INPUT_SHAPE)
    taylor([(torch.randn(4, *INPUT_SHAPE), torch.tensor([0, 1, 2, 3]))])(model, graph)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_least_important_go() -> None:
    graph = trace_channels(make(nets.Plain), INPUT_SHAPE)
    units = graph.groups[0].units
    scores = {unit: float(unit) for group in graph.groups for unit in group.units}
    removed = choose_removed(graph, scores, 0.5)
    assert removed & set(units) == set(units[:8])


def test_two_inputs_are_refused_by_name() -> None:
    class Two(nn.Module):
        def forward(self, image: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            return image

    with pytest.raises(ConfigError, match=r"takes 2 inputs \(image, mask\)"):
        trace_channels(Two(), INPUT_SHAPE)


def test_the_built_in_teacher_narrows_everywhere() -> None:
    model = ResidualCnn(in_channels=1, num_classes=5, base_width=32, num_blocks=2).eval()
    graph = trace_channels(model, INPUT_SHAPE)
    assert not graph.frozen
    narrow = remove_units(model, graph, choose_removed(graph, magnitude()(model, graph), 0.25), INPUT_SHAPE)
    widths = {m.out_channels for m in narrow.modules() if isinstance(m, nn.Conv2d)}
    assert widths == {8, 16, 32}
    assert measure_cost(narrow, INPUT_SHAPE).macs < measure_cost(model, INPUT_SHAPE).macs / 12


def test_new_first_weights_depend_on_the_seed_alone() -> None:
    one, same, other = (make(nets.Plain, seed=seed) for seed in (0, 1, 2))
    for model, seed in ((one, 7), (same, 7), (other, 8)):
        reinitialise(model, seed)
    name = "a.weight"
    assert torch.equal(one.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_macs_are_counted_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 10))
    cost = measure_cost(model, INPUT_SHAPE)
    assert cost.macs == 64 * 4 * 9 + 256 * 10
    assert cost.num_parameters == 4 * 9 + 4 + 2560 + 10


def test_a_pruned_network_exports_and_computes_the_same() -> None:
    model = make(nets.Concat)
    graph = trace_channels(model, INPUT_SHAPE)
    pruned = remove_units(model, graph, choose_removed(graph, magnitude()(model, graph), 0.5), INPUT_SHAPE)
    data = export_onnx(pruned, INPUT_SHAPE)
    inputs = np.random.default_rng(0).normal(size=(5, *INPUT_SHAPE)).astype(np.float32)
    found = evaluate.predict(evaluate.load(data), inputs)
    assert np.allclose(found, pruned(torch.from_numpy(inputs)).detach().numpy(), atol=1e-4)
    assert data == export_onnx(pruned, INPUT_SHAPE)
    assert b".py" not in data
