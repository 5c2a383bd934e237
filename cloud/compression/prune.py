"""Makes a network narrower: which units stay, and the smaller network without the others.

Rules: every group keeps the same share of its units, a multiple of 8 and at least 8 (fewer starve a layer,
and odd counts cost more time than they save); a group of 8 or fewer is left whole. The smaller network
computes what the full one computes with the removed channels set to zero. The input network is not changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cloud.compression.channel_rules import BatchNorm, Convolution
from cloud.compression.dependency import ChannelGraph, LayerChannels
from edgeloop.errors import ConfigError

ALIGNMENT = 8
FLOOR = 8


def count_kept(num_units: int, width_ratio: float) -> int:
    """How many units of a group stay."""
    aligned = math.floor(num_units * width_ratio / ALIGNMENT + 0.5) * ALIGNMENT
    return min(num_units, max(FLOOR, aligned))


def choose_removed(graph: ChannelGraph, scores: Mapping[int, float], width_ratio: float) -> frozenset[int]:
    """The least important units of each group; of equal ones the later go."""
    removed: set[int] = set()
    for group in graph.groups:
        if width_ratio < 1.0:
            ranked = sorted(group.units, key=lambda unit: (-scores[unit], unit))
            removed.update(ranked[count_kept(len(ranked), width_ratio) :])
    return frozenset(removed)


def remove_units(
    model: nn.Module, graph: ChannelGraph, removed: frozenset[int], input_shape: Sequence[int]
) -> nn.Module:
    """A copy of ``model`` without the ``removed`` units.

    Raises ``ConfigError`` when the smaller network no longer runs, as when its forward has sizes written out.
    """
    smaller = copy.deepcopy(model)
    modules = dict(smaller.named_modules())
    for layer in graph.layers.values():
        _narrow(modules[layer.name], layer, removed)
    try:
        check_runs(smaller, input_shape)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"teacher: {type(model).__name__} does not run with fewer channels: {error}; take sizes from the "
            "tensors in forward instead of writing them out",
            code="teacher-fixed-sizes",
        ) from error
    return smaller


def reinitialise(model: nn.Module, seed: int) -> None:
    """Give every layer that knows how to its random first weights, decided by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()


def check_runs(model: nn.Module, input_shape: Sequence[int]) -> None:
    """One forward pass in evaluation mode; raises whatever the network raises."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, *input_shape, device=device))
    finally:
        model.train(was_training)


def _narrow(module: nn.Module, layer: LayerChannels, removed: frozenset[int]) -> None:
    outputs = _kept(layer.outputs.tolist(), removed)
    inputs = None if layer.inputs is None else _kept(layer.inputs.tolist(), removed)
    if isinstance(module, BatchNorm):
        for name in ("weight", "bias", "running_mean", "running_var"):
            _slice(module, name, outputs)
        module.num_features = len(outputs)
        return
    _slice(module, "weight", outputs, inputs)
    _slice(module, "bias", outputs)
    if isinstance(module, nn.Linear):
        assert inputs is not None
        module.out_features, module.in_features = len(outputs), len(inputs)
    elif isinstance(module, Convolution):
        if inputs is None:  # depthwise: as many groups as channels come in
            per_channel = module.out_channels // module.in_channels
            module.in_channels = module.groups = len(outputs) // per_channel
        else:
            module.in_channels = len(inputs)
        module.out_channels = len(outputs)


def _kept(labels: Sequence[int], removed: frozenset[int]) -> Tensor:
    return torch.tensor([i for i, unit in enumerate(labels) if unit not in removed], dtype=torch.int64)


def _slice(module: nn.Module, name: str, outputs: Tensor, inputs: Tensor | None = None) -> None:
    value = getattr(module, name, None)
    if not isinstance(value, Tensor):
        return
    narrowed = value.detach().index_select(0, outputs.to(value.device))
    if inputs is not None:
        narrowed = narrowed.index_select(1, inputs.to(value.device))
    if isinstance(value, nn.Parameter):
        setattr(module, name, nn.Parameter(narrowed.clone(), requires_grad=value.requires_grad))
    else:
        setattr(module, name, narrowed.clone())
