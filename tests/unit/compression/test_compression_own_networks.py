"""Networks as people bring them are narrowed, exported, quantised and run as they stand."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import compression_own_networks as own
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from compression_networks import INPUT_SHAPE, make, mask_units
from compression_own_networks import OWN_NETWORKS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cloud.compression import evaluate
from cloud.compression.attention import open_attention
from cloud.compression.dependency import trace_channels
from cloud.compression.elastic import ElasticNetwork
from cloud.compression.export import export_onnx
from cloud.compression.importance import magnitude
from cloud.compression.prune import choose_removed, count_kept, remove_units
from cloud.compression.quantise import quantise
from edgeloop.errors import ConfigError

torch.set_num_threads(1)


def halve(kind: type[nn.Module]) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The network, the same at half its width, and the same with as many channels at zero."""
    model = open_attention(make(kind))
    graph = trace_channels(model, INPUT_SHAPE)
    removed = choose_removed(graph, magnitude()(model, graph), 0.5)
    return model, remove_units(model, graph, removed, INPUT_SHAPE), mask_units(model, graph, removed)


@cache
def exported(kind: type[nn.Module]) -> bytes:
    """The network at half its width, as ONNX bytes."""
    return export_onnx(halve(kind)[1], INPUT_SHAPE)


#: Group -> (units, channels of a unit).
GROUPS = {
    "MobileNet": {
        ("features.0.0", "features.1.conv.6"): (16, 1),
        ("features.1.conv.0",): (32, 1),
        ("features.2.conv.0",): (32, 1),
        ("features.2.conv.6", "features.3.conv.6"): (24, 1),
        ("features.3.conv.0",): (48, 1),
    },
    "MobileNetV3": {
        ("stem.0", "project.0"): (16, 1),
        ("expand.0", "gate.fc.2"): (32, 1),
        ("gate.fc.0",): (16, 1),
    },
    "VisionTransformer": {
        ("blocks.0.attn.qkv",): (4, 24),
        ("blocks.0.mlp.0",): (64, 1),
        ("blocks.1.attn.qkv",): (4, 24),
        ("blocks.1.mlp.0",): (64, 1),
    },
    "ClosedTransformer": {
        ("attn.query", "attn.key", "attn.value"): (4, 8),
        ("encoder.0.attention.query", "encoder.0.attention.key", "encoder.0.attention.value"): (4, 8),
        ("encoder.0.linear1",): (48, 1),
        ("encoder.1.attention.query", "encoder.1.attention.key", "encoder.1.attention.value"): (4, 8),
        ("encoder.1.linear1",): (48, 1),
    },
    "GroupNormed": {("first",): (4, 8), ("last",): (24, 1)},
    "Written": {("a",): (16, 1), ("b",): (24, 1)},
}


@pytest.mark.parametrize("kind", OWN_NETWORKS, ids=lambda kind: kind.__name__)
def test_what_goes_together_is_found(kind: type[nn.Module]) -> None:
    graph = trace_channels(open_attention(make(kind)), INPUT_SHAPE)
    found = {group.layers: (len(group.units), group.unit_size) for group in graph.groups}
    assert found == GROUPS[kind.__name__]


@pytest.mark.parametrize("kind", OWN_NETWORKS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_pruned_equals_masked_whatever_goes(kind: type[nn.Module], data: st.DataObject) -> None:
    model = open_attention(make(kind))
    graph = trace_channels(model, INPUT_SHAPE)
    removed: set[int] = set()
    for group in graph.groups:
        kept = data.draw(st.integers(1, len(group.units)))
        removed.update(data.draw(st.permutations(group.units))[kept:])
    pruned = remove_units(model, graph, frozenset(removed), INPUT_SHAPE)
    masked = mask_units(model, graph, frozenset(removed))
    inputs = torch.randn(3, *INPUT_SHAPE, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(pruned(inputs), masked(inputs), atol=1e-5)


@pytest.mark.parametrize("kind", OWN_NETWORKS, ids=lambda kind: kind.__name__)
def test_at_half_its_width_it_runs_on_the_agent_in_fp32_and_int8(kind: type[nn.Module]) -> None:
    model, pruned, masked = halve(kind)
    for group in trace_channels(pruned, INPUT_SHAPE).groups:
        channels = len(group.units) * group.unit_size
        assert channels % 8 == 0
        assert channels >= 8
    assert sum(p.numel() for p in pruned.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    inputs = np.random.default_rng(0).normal(size=(32, *INPUT_SHAPE)).astype(np.float32)
    wanted = masked(torch.from_numpy(inputs)).detach().numpy()
    data = exported(kind)
    assert np.allclose(evaluate.predict(evaluate.load(data), inputs), wanted, atol=1e-4)
    int8 = evaluate.predict(evaluate.load(quantise(data, inputs, reduced_range=True)), inputs)
    assert np.abs(int8 - wanted).max() < 0.15 * np.ptp(wanted)


@pytest.mark.parametrize("kind", OWN_NETWORKS, ids=lambda kind: kind.__name__)
def test_an_elastic_family_of_it_holds_every_narrower_network(kind: type[nn.Module]) -> None:
    model = open_attention(make(kind))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    graph = trace_channels(model, INPUT_SHAPE)
    elastic = ElasticNetwork(model, graph, magnitude()(model, graph), INPUT_SHAPE)
    inputs = torch.randn(4, *INPUT_SHAPE, generator=torch.Generator().manual_seed(1))
    for width in (0.25, 0.5):
        cut = elastic.cut(width).train()
        assert torch.allclose(elastic.forward(width, inputs), cut(inputs), atol=1e-5)


def test_relu6_costs_the_int8_graph_nothing(tmp_path: Path) -> None:
    """Quantising clips anyway: no Clip is left, and every convolution is an integer one."""
    data = exported(own.MobileNet)
    assert "Clip" in {node.op_type for node in onnx.load_from_string(data).graph.node}
    inputs = np.random.default_rng(0).normal(size=(32, *INPUT_SHAPE)).astype(np.float32)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(
        quantise(data, inputs, reduced_range=True), options, providers=["CPUExecutionProvider"]
    )
    found = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert found["QLinearConv"] == 10
    assert not found["Clip"]
    assert not found["Conv"]


def test_a_transformer_keeps_its_embedding_whole_and_says_where() -> None:
    frozen = trace_channels(make(own.VisionTransformer), INPUT_SHAPE).frozen
    assert frozen[0].operation == "cat"
    assert {one.operation.partition(".")[0] for one in frozen[1:]} == {"blocks"}
    closed = trace_channels(open_attention(make(own.ClosedTransformer)), INPUT_SHAPE).frozen
    assert closed[0].operation == "encoder.0.norm1"
    assert "LayerNorm mixes its channels" in closed[0].reason


def test_attention_written_out_computes_what_torch_does() -> None:
    closed = make(own.ClosedTransformer)
    opened = open_attention(closed)
    assert not any(isinstance(module, nn.MultiheadAttention) for module in opened.modules())
    assert any(isinstance(module, nn.MultiheadAttention) for module in closed.modules())
    inputs = torch.randn(3, *INPUT_SHAPE)
    assert torch.allclose(opened(inputs), closed(inputs), atol=1e-5)
    plain = make(own.MobileNet)
    assert open_attention(plain) is plain


def test_attention_with_a_mask_is_refused_before_training() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
            self.mask = nn.Buffer(torch.zeros(8, 8))
            self.head = nn.Linear(64, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1, 2)
            output: torch.Tensor = self.head(self.attn(x, x, x, attn_mask=self.mask)[0].flatten(1))
            return output

    with pytest.raises(ConfigError, match="attention with a mask is not supported"):
        trace_channels(open_attention(Masked().eval()), INPUT_SHAPE)


@pytest.mark.parametrize(
    ("num_units", "size", "ratio", "kept"),
    [(4, 24, 0.5, 2), (4, 8, 0.1, 1), (8, 4, 0.5, 4), (8, 4, 0.1, 2), (12, 2, 0.4, 4), (6, 3, 0.5, 6)],
)
def test_whole_units_make_a_multiple_of_eight_channels(
    num_units: int, size: int, ratio: float, kept: int
) -> None:
    assert count_kept(num_units, ratio, size) == kept
