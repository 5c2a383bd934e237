"""How each operation of a traced network moves channels about.

One function a kind of operation, in one table. A function either says exactly what happens to the atoms on
the channel axis, or raises ``UnknownOperationError``; it never guesses, for a wrong guess is a wrong network.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from cloud.compression import attention_rules, shape_rules
from cloud.compression.channels import (
    FIXED,
    Atoms,
    Channels,
    Labels,
    UnknownOperationError,
    Value,
    Values,
    argument,
    axis_number,
    each,
    first_channels,
    first_shape,
    opaque,
    operation_name,
    tensor_shape,
)

__all__ = ["FIXED", "BatchNorm", "Convolution", "GroupNorm", "apply"]

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
#: One factor and one offset a channel, and no more.
BatchNorm = (
    nn.BatchNorm1d
    | nn.BatchNorm2d
    | nn.BatchNorm3d
    | nn.InstanceNorm1d
    | nn.InstanceNorm2d
    | nn.InstanceNorm3d
)
GroupNorm = nn.GroupNorm

Rule = Callable[[fx.Node, Values, Atoms], Value]


def apply(node: fx.Node, values: Values, modules: Mapping[str, nn.Module], atoms: Atoms) -> Value:
    """Channels of the node's value; None when it is no tensor. Raises ``UnknownOperationError``."""
    if node.op in ("placeholder", "get_attr"):
        return opaque(node)
    if node.op == "output":
        for source in node.all_input_nodes:
            for channels in each(values[source]):
                atoms.freeze(channels)
        return None
    if node.op == "call_module":
        return _apply_module(node, values, modules[str(node.target)], atoms)
    if node.target in TUPLE_RULES:
        return TUPLE_RULES[node.target](node, values, atoms)
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        parts = values[node.args[0]]
        if isinstance(parts, tuple) and isinstance(node.args[1], int):
            return parts[node.args[1]]
    if tensor_shape(node) is None:
        if node.target in SHAPE_QUERIES or not any(values[source] for source in node.all_input_nodes):
            return None
        raise UnknownOperationError(f"{operation_name(node)} gives something other than one tensor")
    rule = RULES.get(node.target)
    if rule is None:
        raise UnknownOperationError(f"{operation_name(node)} is not known to keep channels apart")
    return rule(node, values, atoms)


def _apply_module(node: fx.Node, values: Values, module: nn.Module, atoms: Atoms) -> Value:
    name = str(node.target)
    if isinstance(module, Convolution):
        return _convolution(name, first_channels(node, values), module, atoms)
    if isinstance(module, nn.Linear):
        return _linear(node, name, first_channels(node, values), module, atoms)
    if isinstance(module, BatchNorm):
        channels = _on_axis_one(first_channels(node, values))
        return Channels(axis=1, labels=atoms.layer(name, channels.labels, None))
    if isinstance(module, GroupNorm):
        return _group_norm(name, first_channels(node, values), module, atoms)
    if isinstance(module, nn.LayerNorm):
        return _layer_norm(node, values, module)
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        channels = _on_axis_one(first_channels(node, values))
        return Channels(axis=1, labels=atoms.layer(name, channels.labels, None))
    if isinstance(module, nn.Flatten):
        return shape_rules.flatten(node, values, atoms)
    if isinstance(module, nn.Softmax):
        return attention_rules.softmax(node, values, atoms, module.dim)
    if isinstance(module, PASSING_MODULES):
        return _passing(node, values, atoms)
    raise UnknownOperationError(f"{type(module).__name__} is not known to keep channels apart")


def _convolution(name: str, channels: Channels, module: Convolution, atoms: Atoms) -> Channels:
    if channels.axis != 1:
        channels = _as_fixed(channels, 1, module.in_channels, atoms)
    if module.groups == 1:
        labels = atoms.layer(name, _makes(name, module.out_channels, atoms), channels.labels)
        return Channels(axis=1, labels=labels)
    # Of a depthwise convolution a group is a channel; of others a group goes or stays as a whole.
    groups = atoms.tie_columns(channels.labels.reshape(module.groups, -1).T)
    follows = np.repeat(groups, module.out_channels // module.groups)
    return Channels(axis=1, labels=atoms.layer(name, follows, None))


def _linear(node: fx.Node, name: str, channels: Channels, module: nn.Linear, atoms: Atoms) -> Channels:
    shape = tensor_shape(node)
    assert shape is not None
    if channels.axis != len(shape) - 1:
        channels = _as_fixed(channels, len(shape) - 1, module.in_features, atoms)
    labels = atoms.layer(name, _makes(name, module.out_features, atoms), channels.labels)
    return Channels(axis=len(shape) - 1, labels=labels)


def _group_norm(name: str, channels: Channels, module: nn.GroupNorm, atoms: Atoms) -> Channels:
    """Statistics are of a group, so a group goes or stays as a whole."""
    if module.num_groups == 1:
        raise UnknownOperationError("GroupNorm of one group mixes all its channels")
    groups = atoms.tie_columns(_on_axis_one(channels).labels.reshape(module.num_groups, -1).T)
    follows = np.repeat(groups, module.num_channels // module.num_groups)
    return Channels(axis=1, labels=atoms.layer(name, follows, None))


def _layer_norm(node: fx.Node, values: Values, module: nn.LayerNorm) -> Channels:
    channels = first_channels(node, values)
    if channels.axis >= len(first_shape(node)) - len(module.normalized_shape):
        raise UnknownOperationError("LayerNorm mixes its channels, which are kept whole")
    return channels


def _on_axis_one(channels: Channels) -> Channels:
    if channels.axis != 1:
        raise UnknownOperationError("its channels are not on axis 1")
    return channels


def _as_fixed(channels: Channels, axis: int, count: int, atoms: Atoms) -> Channels:
    """Where nothing is to be removed, it does not matter which axis was followed."""
    if atoms.count_free(channels):
        raise UnknownOperationError("it mixes an axis other than the channels")
    return Channels(axis=axis, labels=np.full(count, FIXED))


def _makes(name: str, count: int, atoms: Atoms) -> Labels:
    known = atoms.layers.get(name)
    return atoms.new(count) if known is None else known.outputs


def _passing(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    """Works on each channel by itself and leaves the axes where they are."""
    channels = first_channels(node, values)
    shape = tensor_shape(node)
    if shape is None or len(shape) <= channels.axis or shape[channels.axis] != len(channels.labels):
        raise UnknownOperationError(f"{operation_name(node)} changes the channel axis")
    return channels


def _elementwise(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    """Two operands, index by index, with broadcasting; a number as one of them changes nothing."""
    shape = tensor_shape(node)
    assert shape is not None
    operands = [source for source in node.args[:2] if isinstance(source, fx.Node)]
    found = [
        (channels.axis + len(shape) - len(sizes), channels, sizes)
        for source in operands
        if isinstance(channels := values[source], Channels) and (sizes := tensor_shape(source)) is not None
    ]
    if not found:
        raise UnknownOperationError(f"{operation_name(node)} has no tensor operand")
    if len(found) == 1:
        return Channels(axis=found[0][0], labels=found[0][1].labels)
    free = [one for one in found if atoms.count_free(one[1])] or found[:1]
    axis, channels, _ = free[0]
    other_axis, other, other_sizes = found[1] if found[0] is free[0] else found[0]
    if axis == other_axis and len(channels.labels) == len(other.labels):
        atoms.union(channels.labels, other.labels)
        return Channels(axis=axis, labels=channels.labels)
    at = axis - (len(shape) - len(other_sizes))
    is_spread = at < 0 or other_sizes[at] == 1
    if len(free) > 1 and not (is_spread and axis == other_axis):
        raise UnknownOperationError(f"{operation_name(node)} joins tensors of different axes")
    if not is_spread:
        raise UnknownOperationError(
            f"{operation_name(node)} joins channels with a tensor that must stay whole"
        )
    atoms.freeze(other)
    return Channels(axis=axis, labels=channels.labels)


def _reduce(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    """Mean, sum or maximum over axes other than the channels."""
    channels, before, after = first_channels(node, values), first_shape(node), tensor_shape(node)
    given = argument(node, 1, "dim")
    if after is None or given is None:
        raise UnknownOperationError(f"{operation_name(node)} runs over all axes")
    axes = {axis_number(one, len(before)) for one in (given if isinstance(given, list | tuple) else (given,))}
    if channels.axis in axes:
        raise UnknownOperationError(f"{operation_name(node)} runs over the channels")
    lost = sum(axis < channels.axis for axis in axes) if len(after) < len(before) else 0
    return Channels(axis=channels.axis - lost, labels=channels.labels)


PASSING_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.PReLU, nn.CELU, nn.SELU, nn.Softsign, nn.LogSigmoid,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip

SHAPE_QUERIES = frozenset({"size", "dim", getattr, operator.getitem, len})

_PASSING = (
    torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.sqrt, torch.exp, torch.square, torch.clamp,
    functional.mish, functional.selu, functional.celu, functional.softsign,
    functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.gelu,
    functional.silu, functional.hardtanh, functional.hardswish, functional.hardsigmoid,
    functional.softplus,
    functional.dropout, functional.sigmoid, functional.tanh,
    functional.max_pool1d, functional.max_pool2d, functional.avg_pool1d, functional.avg_pool2d,
    functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d,
    functional.adaptive_max_pool1d, functional.adaptive_max_pool2d, functional.interpolate,
    "relu", "relu_", "sigmoid", "tanh", "abs", "contiguous", "clone", "float", "detach",
    "sqrt", "exp", "square", "clamp",
)  # fmt: skip
_ELEMENTWISE = (
    operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv,
    torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum,
    "add", "add_", "sub", "mul", "mul_", "div",
)  # fmt: skip

#: What gives several tensors, of which ``getitem`` then takes one.
TUPLE_RULES: Mapping[Any, Rule] = {
    **dict.fromkeys((torch.chunk, "chunk"), shape_rules.chunk),
    **dict.fromkeys((torch.split, "split"), shape_rules.split),
    **dict.fromkeys((torch.unbind, "unbind"), shape_rules.unbind),
}

RULES: Mapping[Any, Rule] = {
    **dict.fromkeys(_PASSING, _passing),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys((torch.cat, torch.concat), shape_rules.concatenate),
    **dict.fromkeys((torch.flatten, "flatten"), shape_rules.flatten),
    **dict.fromkeys(("view", "reshape", torch.reshape), shape_rules.reshape),
    **dict.fromkeys((torch.unsqueeze, "unsqueeze"), shape_rules.unsqueeze),
    **dict.fromkeys((torch.squeeze, "squeeze"), shape_rules.squeeze),
    **dict.fromkeys((torch.transpose, "transpose"), shape_rules.transpose),
    **dict.fromkeys((torch.permute, "permute"), shape_rules.permute),
    operator.getitem: shape_rules.index,
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys((torch.matmul, torch.bmm, operator.matmul, "matmul", "bmm"), attention_rules.matmul),
    **dict.fromkeys((torch.softmax, functional.softmax, "softmax"), attention_rules.softmax),
    functional.scaled_dot_product_attention: attention_rules.scaled_dot_product,
}
