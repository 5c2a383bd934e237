"""Makes a network narrower: which units stay, and the smaller network without the others.

Rules: every group keeps the same share of its units, a multiple of 8 channels and at least 8 (fewer starve a
layer, and odd counts cost more time than they save); a group of 8 or fewer is left whole. The smaller network
computes what the full one computes with the removed channels set to zero. The input network is not changed;
where its forward has sizes written out, the smaller one is its traced graph with smaller sizes, else it is an
instance of the same class.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from cloud.compression.channel_rules import BatchNorm, Convolution, GroupNorm
from cloud.compression.channels import Resize
from cloud.compression.dependency import ChannelGraph, LayerChannels
from edgeloop.errors import ConfigError

ALIGNMENT = 8
FLOOR = 8


def count_kept(num_units: int, width_ratio: float, unit_size: int = 1) -> int:
    """How many units of a group stay, of ``unit_size`` channels each."""
    step = ALIGNMENT // math.gcd(ALIGNMENT, unit_size)
    floor = math.ceil(FLOOR / unit_size / step) * step
    aligned = math.floor(num_units * width_ratio / step + 0.5) * step
    return min(num_units, max(floor, aligned))


def choose_removed(graph: ChannelGraph, scores: Mapping[int, float], width_ratio: float) -> frozenset[int]:
    """The least important units of each group; of equal ones the later go."""
    removed: set[int] = set()
    for group in graph.groups:
        if width_ratio < 1.0:
            ranked = sorted(group.units, key=lambda unit: (-scores[unit], unit))
            removed.update(ranked[count_kept(len(ranked), width_ratio, group.unit_size) :])
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
    smaller = _with_sizes(smaller, graph.resizes, removed)
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
        if inputs is None:  # a convolution of groups, which are as large as they were
            group_in = module.in_channels // module.groups
            module.groups = len(outputs) * module.groups // module.out_channels
            module.in_channels = group_in * module.groups
        else:
            module.in_channels = len(inputs)
        module.out_channels = len(outputs)
    elif isinstance(module, GroupNorm):
        module.num_groups = len(outputs) * module.num_groups // module.num_channels
        module.num_channels = len(outputs)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(outputs)


def _with_sizes(model: nn.Module, resizes: Sequence[Resize], removed: frozenset[int]) -> nn.Module:
    """``model``, or its graph where a size that it has written out must be a smaller one."""
    changed = [one for one in resizes if not removed.isdisjoint(one.labels.tolist())]
    if not changed:
        return model
    was_training = model.training
    traced = fx.symbolic_trace(model.eval())
    nodes = {node.name: node for node in traced.graph.nodes}
    for one in changed:
        sizes = list(one.sizes)
        sizes[one.axis] = len(_kept(one.labels.tolist(), removed))
        node = nodes[one.node]
        node.args, node.kwargs = (node.args[0], tuple(sizes)), {}
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced.train(was_training)


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
