"""How each operation of a traced network moves channels about.

One function a kind of operation, in one table. A function either says exactly what happens to the atoms on
the channel axis, or raises ``UnknownOperationError``; it never guesses, for a wrong guess is a wrong network.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional

Labels = NDArray[np.int64]
#: Label of an index that must stay.
FIXED = -1

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class UnknownOperationError(Exception):
    """The effect of an operation on channels is not known; the text says why, for people."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Channels:
    """The atoms along axis ``axis`` of a tensor."""

    axis: int
    labels: Labels


@dataclass(kw_only=True, slots=True, eq=False)
class _Layer:
    outputs: Labels
    inputs: Labels | None


@dataclass(slots=True, eq=False)
class Atoms:
    """Atoms and which of them belong together (a union-find whose root 0 is "fixed")."""

    _parent: list[int] = field(default_factory=lambda: [0])
    layers: dict[str, _Layer] = field(default_factory=dict)

    def new(self, count: int) -> Labels:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def union(self, left: Labels, right: Labels) -> None:
        """Tie index to index. Raises ``UnknownOperationError`` when the lengths differ."""
        if len(left) != len(right):
            raise UnknownOperationError(f"it joins {len(left)} channels with {len(right)}")
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            low, high = sorted((self._root(one), self._root(other)))
            self._parent[high] = low

    def freeze(self, channels: Channels | None) -> None:
        if channels is not None:
            self.union(channels.labels, np.full(len(channels.labels), FIXED))

    def touches(self, channels: Channels) -> bool:
        """Whether any of these was an atom, that is, could have been removed but for a freeze."""
        return bool((channels.labels != FIXED).any())

    def resolve(self, labels: Labels) -> Labels:
        """The unit of each label."""
        roots = np.array([self._root(label) for label in labels.tolist()], dtype=np.int64)
        return np.where(roots == 0, FIXED, roots)

    def layer(self, name: str, outputs: Labels, inputs: Labels | None) -> Labels:
        """Note a layer's channels; one that is called again is tied to its first call."""
        known = self.layers.get(name)
        if known is None:
            self.layers[name] = _Layer(outputs=outputs, inputs=inputs)
            return outputs
        if known.inputs is not None and inputs is not None:
            self.union(known.inputs, inputs)
        self.union(known.outputs, outputs)
        return known.outputs

    def _root(self, label: int) -> int:
        root = max(label, 0)
        while self._parent[root] != root:
            root = self._parent[root]
        at = max(label, 0)
        while self._parent[at] != root:
            self._parent[at], at = root, self._parent[at]
        return root


Values = Mapping[fx.Node, Channels | None]
Rule = Callable[[fx.Node, Values, Atoms], Channels | None]


def apply(node: fx.Node, values: Values, modules: Mapping[str, nn.Module], atoms: Atoms) -> Channels | None:
    """Channels of the node's value; None when it is no tensor. Raises ``UnknownOperationError``."""
    if node.op == "placeholder":
        return opaque(node)
    if node.op == "output":
        for argument in node.all_input_nodes:
            atoms.freeze(values[argument])
        return None
    if node.op == "get_attr":
        return opaque(node)
    if node.op == "call_module":
        return _apply_module(node, values, modules[str(node.target)], atoms)
    shape = tensor_shape(node)
    if shape is None:
        if node.target in SHAPE_QUERIES or not any(values[argument] for argument in node.all_input_nodes):
            return None
        raise UnknownOperationError(f"{_operation(node)} gives something other than one tensor")
    rule = RULES.get(node.target)
    if rule is None:
        raise UnknownOperationError(f"{_operation(node)} is not known to keep channels apart")
    return rule(node, values, atoms)


def opaque(node: fx.Node) -> Channels | None:
    """A value of which nothing may be removed."""
    shape = tensor_shape(node)
    if shape is None or not shape:
        return None
    axis = min(1, len(shape) - 1)
    return Channels(axis=axis, labels=np.full(shape[axis], FIXED))


def tensor_shape(node: fx.Node) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else None


def _operation(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _first(node: fx.Node, values: Values) -> Channels:
    argument = node.args[0] if node.args else node.kwargs.get("input")
    channels = values.get(argument) if isinstance(argument, fx.Node) else None
    if channels is None:
        raise UnknownOperationError(f"{_operation(node)} has no tensor as its first argument")
    return channels


def _apply_module(node: fx.Node, values: Values, module: nn.Module, atoms: Atoms) -> Channels | None:
    name = str(node.target)
    if isinstance(module, Convolution):
        return _convolution(name, _first(node, values), module, atoms)
    if isinstance(module, nn.Linear):
        return _linear(node, name, _first(node, values), module, atoms)
    if isinstance(module, BatchNorm):
        channels = _first(node, values)
        if channels.axis != 1:
            raise UnknownOperationError("its channels are not on axis 1")
        return Channels(axis=1, labels=atoms.layer(name, channels.labels, None))
    if isinstance(module, nn.Flatten):
        return _flatten(node, values, module.start_dim, module.end_dim)
    if isinstance(module, PASSING_MODULES):
        return _passing(node, values, atoms)
    raise UnknownOperationError(f"{type(module).__name__} is not known to keep channels apart")


def _convolution(name: str, channels: Channels, module: Convolution, atoms: Atoms) -> Channels:
    if channels.axis != 1:
        channels = _as_fixed(channels, 1, module.in_channels, atoms)
    if module.groups == 1:
        labels = atoms.layer(name, _makes(name, module.out_channels, atoms), channels.labels)
        return Channels(axis=1, labels=labels)
    if module.groups == module.in_channels:
        follows = np.repeat(channels.labels, module.out_channels // module.in_channels)
        return Channels(axis=1, labels=atoms.layer(name, follows, None))
    raise UnknownOperationError(
        f"it is a convolution of {module.groups} groups, which are kept whole: only depthwise ones are pruned"
    )


def _linear(node: fx.Node, name: str, channels: Channels, module: nn.Linear, atoms: Atoms) -> Channels:
    shape = tensor_shape(node)
    assert shape is not None
    if channels.axis != len(shape) - 1:
        channels = _as_fixed(channels, len(shape) - 1, module.in_features, atoms)
    labels = atoms.layer(name, _makes(name, module.out_features, atoms), channels.labels)
    return Channels(axis=len(shape) - 1, labels=labels)


def _as_fixed(channels: Channels, axis: int, count: int, atoms: Atoms) -> Channels:
    """Where nothing is to be removed, it does not matter which axis was followed."""
    if (atoms.resolve(channels.labels) != FIXED).any():
        raise UnknownOperationError("it mixes an axis other than the channels")
    return Channels(axis=axis, labels=np.full(count, FIXED))


def _makes(name: str, count: int, atoms: Atoms) -> Labels:
    known = atoms.layers.get(name)
    return atoms.new(count) if known is None else known.outputs


def _passing(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    """Works on each channel by itself and leaves the axes where they are."""
    channels = _first(node, values)
    shape = tensor_shape(node)
    if shape is None or len(shape) <= channels.axis or shape[channels.axis] != len(channels.labels):
        raise UnknownOperationError(f"{_operation(node)} changes the channel axis")
    return channels


def _elementwise(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    """Two operands, index by index, with broadcasting; a number as one of them changes nothing."""
    shape = tensor_shape(node)
    assert shape is not None
    operands = [(values[a], tensor_shape(a)) for a in node.args[:2] if isinstance(a, fx.Node)]
    tensors = [(c, s) for c, s in operands if c is not None and s is not None]
    if not tensors:
        raise UnknownOperationError(f"{_operation(node)} has no tensor operand")
    if len(tensors) == 1:
        return _passing(node, values, atoms) if operands[0][0] is not None else tensors[0][0]
    if any(len(s) != len(shape) for _, s in tensors) or len({c.axis for c, _ in tensors}) > 1:
        raise UnknownOperationError(f"{_operation(node)} joins tensors of different axes")
    (left, _), (right, _) = tensors
    if len(left.labels) != len(right.labels):
        raise UnknownOperationError(f"{_operation(node)} spreads one tensor over the channels of another")
    atoms.union(left.labels, right.labels)
    return left


def _cat(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    if not isinstance(parts, list | tuple) or not all(isinstance(part, fx.Node) for part in parts):
        raise UnknownOperationError("cat of something other than a list of tensors")
    channels = [values[part] for part in parts if isinstance(part, fx.Node)]
    shape = tensor_shape(node)
    if shape is None or any(c is None for c in channels):
        raise UnknownOperationError("cat of something other than tensors")
    known = [c for c in channels if c is not None]
    if len({c.axis for c in known}) > 1:
        raise UnknownOperationError("cat joins tensors of different axes")
    axis = _axis(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0), len(shape))
    if axis == known[0].axis:
        return Channels(axis=axis, labels=np.concatenate([c.labels for c in known]))
    for other in known[1:]:
        atoms.union(known[0].labels, other.labels)
    return known[0]


def _flatten(node: fx.Node, values: Values, start: Any, end: Any) -> Channels:
    """Axes from the channels on become one: each channel turns into a run of equal labels."""
    channels = _first(node, values)
    source = node.args[0] if node.args else node.kwargs.get("input")
    before = tensor_shape(source) if isinstance(source, fx.Node) else None
    if before is None:
        raise UnknownOperationError("flatten of something other than a tensor")
    first, last = _axis(start, len(before)), _axis(end, len(before))
    if first != channels.axis:
        if first == last:
            return channels
        raise UnknownOperationError("flatten merges the channels with an axis before them")
    run = int(np.prod(before[first + 1 : last + 1], dtype=np.int64))
    return Channels(axis=first, labels=np.repeat(channels.labels, run))


def _flatten_call(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return _flatten(node, values, start, end)


def _view(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    """Only ``x.view(n, -1)``: any other form would go on asking for the size that it had."""
    sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], list | tuple) else node.args[1:]
    before = tensor_shape(node.args[0]) if isinstance(node.args[0], fx.Node) else None
    if (
        before is None
        or len(sizes) != 2
        or sizes[1] != -1
        or tensor_shape(node)
        != (
            before[0],
            int(np.prod(before[1:], dtype=np.int64)),
        )
    ):
        raise UnknownOperationError(f"{_operation(node)} to given sizes: use flatten(1) instead")
    return _flatten(node, values, 1, -1)


def _reduce(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    """Mean, sum or maximum over axes other than the channels."""
    channels = _first(node, values)
    source = node.args[0] if node.args else node.kwargs.get("input")
    before = tensor_shape(source) if isinstance(source, fx.Node) else None
    after = tensor_shape(node)
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if before is None or after is None or given is None:
        raise UnknownOperationError(f"{_operation(node)} runs over all axes")
    axes = {_axis(one, len(before)) for one in (given if isinstance(given, list | tuple) else (given,))}
    if channels.axis in axes:
        raise UnknownOperationError(f"{_operation(node)} runs over the channels")
    lost = sum(axis < channels.axis for axis in axes) if len(after) < len(before) else 0
    return Channels(axis=channels.axis - lost, labels=channels.labels)


def _transpose(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    channels = _first(node, values)
    shape = tensor_shape(node)
    assert shape is not None
    one, other = (_axis(axis, len(shape)) for axis in node.args[1:3])
    moved = {one: other, other: one}.get(channels.axis, channels.axis)
    return Channels(axis=moved, labels=channels.labels)


def _permute(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    channels = _first(node, values)
    shape = tensor_shape(node)
    assert shape is not None
    order = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], list | tuple) else node.args[1:]
    axes = [_axis(axis, len(shape)) for axis in order]
    return Channels(axis=axes.index(channels.axis), labels=channels.labels)


def _axis(value: Any, rank: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -rank <= value < rank:
        raise UnknownOperationError(f"axis {value!r} is not a plain number")
    return value % rank


PASSING_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip

SHAPE_QUERIES = frozenset({"size", "dim", getattr, operator.getitem, len})

_PASSING = (
    torch.relu, torch.sigmoid, torch.tanh, torch.abs,
    functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.gelu,
    functional.silu, functional.hardtanh, functional.hardswish, functional.hardsigmoid,
    functional.softplus,
    functional.dropout, functional.sigmoid, functional.tanh,
    functional.max_pool1d, functional.max_pool2d, functional.avg_pool1d, functional.avg_pool2d,
    functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d,
    functional.adaptive_max_pool1d, functional.adaptive_max_pool2d, functional.interpolate,
    "relu", "relu_", "sigmoid", "tanh", "abs", "contiguous", "clone", "float", "detach",
)  # fmt: skip
_ELEMENTWISE = (
    operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv,
    torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum,
    "add", "add_", "sub", "mul", "mul_", "div",
)  # fmt: skip

RULES: Mapping[Any, Rule] = {
    **dict.fromkeys(_PASSING, _passing),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys((torch.cat, torch.concat), _cat),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten_call),
    **dict.fromkeys(("view", "reshape", torch.reshape), _view),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"), _reduce),
    **dict.fromkeys((torch.transpose, "transpose"), _transpose),
    **dict.fromkeys((torch.permute, "permute"), _permute),
}
