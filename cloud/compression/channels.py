"""The channels behind a tensor, and which of them belong together.

Rules: a tensor has at most one channel axis; each index along it carries the label of an atom, or ``FIXED``.
Atoms that were tied once stay tied. Whatever is tied to something fixed is fixed itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import fx

Labels = NDArray[np.int64]
#: Label of an index that must stay.
FIXED = -1


class UnknownOperationError(Exception):
    """The effect of an operation on channels is not known; the text says why, for people."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Channels:
    """The atoms along axis ``axis`` of a tensor."""

    axis: int
    labels: Labels


#: What a node of the graph gives: one tensor's channels, those of several tensors, or neither.
Value = Channels | tuple[Channels, ...] | None
Values = Mapping[fx.Node, Value]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Resize:
    """A reshape whose sizes are written out, and the labels along the axis ``axis`` of what it gives.

    ``sizes`` are those of the whole network, with the batch left free.
    """

    node: str
    sizes: tuple[int, ...]
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
    resizes: list[Resize] = field(default_factory=list)

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

    def tie_columns(self, table: Labels) -> Labels:
        """Tie all that stands in one column; one label a column comes back."""
        first: Labels = table[0]
        for row in table[1:]:
            self.union(first, row)
        return first

    def freeze(self, channels: Channels) -> None:
        self.union(channels.labels, np.full(len(channels.labels), FIXED))

    def count_free(self, channels: Channels) -> int:
        """How many of these could still be removed."""
        return int((self.resolve(channels.labels) != FIXED).sum())

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


def each(value: Value) -> Iterator[Channels]:
    """The channels of every tensor of a value."""
    if isinstance(value, Channels):
        yield value
    elif value is not None:
        yield from value


def opaque(node: fx.Node) -> Channels | None:
    """A value of which nothing may be removed."""
    shape = tensor_shape(node)
    if not shape:
        return None
    axis = min(1, len(shape) - 1)
    return Channels(axis=axis, labels=np.full(shape[axis], FIXED))


def tensor_shape(node: object) -> tuple[int, ...] | None:
    """The shape of a node's tensor; None where it gives something else."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else None


def operation_name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def argument(node: fx.Node, position: int, name: str, default: object = None) -> object:
    """A call's argument, given by place or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def first_channels(node: fx.Node, values: Values) -> Channels:
    """Channels of the first argument. Raises ``UnknownOperationError`` where that is no tensor."""
    source = argument(node, 0, "input")
    channels = values.get(source) if isinstance(source, fx.Node) else None
    if not isinstance(channels, Channels):
        raise UnknownOperationError(f"{operation_name(node)} has no tensor as its first argument")
    return channels


def first_shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of the first argument. Raises ``UnknownOperationError`` where that is no tensor."""
    shape = tensor_shape(argument(node, 0, "input"))
    if shape is None:
        raise UnknownOperationError(f"{operation_name(node)} has no tensor as its first argument")
    return shape


def axis_number(value: object, rank: int) -> int:
    """An axis as a number from 0. Raises ``UnknownOperationError`` for anything but a plain number."""
    if isinstance(value, bool) or not isinstance(value, int) or not -rank <= value < rank:
        raise UnknownOperationError(f"axis {value!r} is not a plain number")
    return value % rank
