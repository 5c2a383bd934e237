"""Nested widths and depths are the cut networks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from compression_networks import INPUT_SHAPE, NETWORKS, make
from compression_own_networks import OWN_NETWORKS, MobileNet, VisionTransformer
from torch import nn

from cloud.compression import evaluate
from cloud.compression.attention import open_attention
from cloud.compression.branches import find_branches
from cloud.compression.dependency import trace_channels
from cloud.compression.elastic import ElasticNetwork
from cloud.compression.importance import magnitude
from cloud.compression.prune import choose_removed

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "measure_peak_rss", lambda data: 60_000_000)


@pytest.mark.parametrize("kind", [*NETWORKS, *OWN_NETWORKS], ids=lambda kind: kind.__name__)
def test_a_width_computes_what_the_network_cut_at_it_computes(kind: type[nn.Module]) -> None:
    model = open_attention(make(kind))
    graph = trace_channels(model, INPUT_SHAPE)
    elastic = ElasticNetwork(model, graph, magnitude()(model, graph), INPUT_SHAPE)
    inputs = torch.randn(6, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    widths = elastic.widths(0.1)
    assert len(widths) > 1
    for width in widths:
        cut = elastic.cut(width).train()
        torch.manual_seed(1)  # for dropout, the same twice
        alone = cut(inputs)
        torch.manual_seed(1)
        assert torch.equal(elastic.forward(width, inputs), alone)


@pytest.mark.parametrize("kind", [MobileNet, VisionTransformer], ids=lambda kind: kind.__name__)
def test_a_depth_computes_what_the_network_cut_at_it_computes_and_trains_the_shared_weights(
    kind: type[nn.Module],
) -> None:
    model = make(kind)
    graph = trace_channels(model, INPUT_SHAPE)
    gone = find_branches(model, INPUT_SHAPE)[1].layers
    short = ElasticNetwork(model, graph, magnitude()(model, graph), INPUT_SHAPE).without_branches([gone])
    inputs = torch.randn(6, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    for width in (0.25, 1.0):
        with torch.no_grad():
            next(iter(model.parameters())).mul_(1.5)  # what the family learns since is what is cut
        cut = short.cut(width).train()
        assert not dict(cut.named_modules()).keys() & set(gone)
        torch.manual_seed(1)
        alone = cut(inputs)
        torch.manual_seed(1)
        shared = short.forward(width, inputs)
        assert torch.equal(shared, alone)
        model.zero_grad()
        shared.sum().backward()
        reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert reached == {name for name, _ in cut.named_parameters()}


def test_units_of_a_shorter_network_leave_in_the_order_of_the_whole() -> None:
    model = make(MobileNet)
    graph = trace_channels(model, INPUT_SHAPE)
    whole = ElasticNetwork(model, graph, magnitude()(model, graph), INPUT_SHAPE)
    short = whole.without_branches([find_branches(model, INPUT_SHAPE)[0].layers])
    for width in (0.25, 0.5):
        pair = [dict(network.cut(width).named_parameters()) for network in (whole, short)]
        assert all(torch.equal(value, pair[0][name]) for name, value in pair[1].items())


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_gradients_of_a_width_reach_the_shared_weights_that_it_uses_and_no_others(
    kind: type[nn.Module],
) -> None:
    model = make(kind)
    graph = trace_channels(model, INPUT_SHAPE)
    scores = magnitude()(model, graph)
    elastic = ElasticNetwork(model, graph, scores, INPUT_SHAPE)
    narrowest = elastic.widths(0.1)[0]
    elastic.forward(narrowest, torch.randn(6, *INPUT_SHAPE)).square().sum().backward()
    removed = choose_removed(graph, scores, narrowest)
    parameters = dict(model.named_parameters())
    for layer in graph.layers.values():
        weight = parameters.get(f"{layer.name}.weight")
        if weight is None:
            continue
        gone = np.isin(layer.outputs, list(removed))
        assert weight.grad is not None
        assert not weight.grad[torch.from_numpy(gone)].any()
    assert all(parameter.grad is not None for parameter in parameters.values())


def test_narrower_networks_are_part_of_wider_ones() -> None:
    model = make(NETWORKS[1])
    graph = trace_channels(model, INPUT_SHAPE)
    elastic = ElasticNetwork(model, graph, magnitude()(model, graph), INPUT_SHAPE)
    kept = [elastic._removed(width) for width in elastic.widths(0.1)]
    assert all(narrow > wide for narrow, wide in itertools.pairwise(kept))
