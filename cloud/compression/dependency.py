"""Which channels of a network must go together.

Each output channel of a convolution or linear layer is an *atom*. The traced graph carries, for every tensor,
the atom behind each index of its channel axis; where the graph ties two channels together (an addition, a
depthwise convolution, one layer called twice), their atoms become one *unit*. A unit is what can be removed;
units made by the same layers form a *group*, inside which they are ranked.

Rules: removing a unit removes a slice of every weight that makes or reads it, and changes nothing else. An
operation whose effect on channels is not known here freezes the units it touches and is named; so is one that
ties them to what must stay. Input features and the network's outputs are never removed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from cloud.compression import channel_rules
from cloud.compression.channels import FIXED, Atoms, Resize, UnknownOperationError, Value, each, opaque
from cloud.training.callables import describe
from edgeloop.errors import ConfigError

Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerChannels:
    """Units behind a layer's weight, ``-1`` where an index is not to be removed.

    ``outputs`` labels axis 0 of the weight; ``inputs`` labels axis 1, and is None for layers without one
    (BatchNorm, depthwise convolution), whose channels merely follow what comes in.
    """

    name: str
    outputs: Labels
    inputs: Labels | None

    @property
    def makes_channels(self) -> bool:
        """Whether channels begin here, as they do not in BatchNorm."""
        return self.inputs is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelGroup:
    """Units of equal standing. ``layers`` are the layers that make them; the first names the group.

    ``unit_size`` is how many channels of a layer one unit is: more than one for heads and for groups.
    """

    layers: tuple[str, ...]
    units: tuple[int, ...]
    unit_size: int = 1

    @property
    def name(self) -> str:
        return self.layers[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Frozen:
    """An operation, by its name in the graph, that keeps its channels whole, and why."""

    operation: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChannelGraph:
    """All that pruning must know of a network."""

    layers: dict[str, LayerChannels]
    groups: tuple[ChannelGroup, ...]
    frozen: tuple[Frozen, ...]
    resizes: tuple[Resize, ...] = ()

    @property
    def num_units(self) -> int:
        return sum(len(group.units) for group in self.groups)


def trace_channels(model: nn.Module, input_shape: Sequence[int]) -> ChannelGraph:
    """Derive the groups of ``model`` for inputs ``[n, *input_shape]``. The model is not changed.

    Raises ``ConfigError`` when the network cannot be traced.
    """
    graph_module = trace(model, input_shape)
    modules = dict(graph_module.named_modules())
    atoms = Atoms()
    values: dict[fx.Node, Value] = {}
    frozen: list[Frozen] = []
    for node in graph_module.graph.nodes:
        read = [channels for source in node.all_input_nodes for channels in each(values[source])]
        free = [atoms.count_free(channels) for channels in read]
        reason = "it joins these channels with something that must stay whole"
        try:
            values[node] = channel_rules.apply(node, values, modules, atoms)
        except UnknownOperationError as error:
            reason = str(error)
            for channels in read:
                atoms.freeze(channels)
            values[node] = opaque(node)
        lost = [before > atoms.count_free(channels) for channels, before in zip(read, free, strict=True)]
        if any(lost) and node.op != "output":
            frozen.append(Frozen(operation=_name(node), reason=reason))
    layers = {
        name: LayerChannels(
            name=name,
            outputs=atoms.resolve(channels.outputs),
            inputs=None if channels.inputs is None else atoms.resolve(channels.inputs),
        )
        for name, channels in atoms.layers.items()
    }
    resizes = tuple(replace(one, labels=atoms.resolve(one.labels)) for one in atoms.resizes)
    return ChannelGraph(layers=layers, groups=_group(layers), frozen=tuple(frozen), resizes=resizes)


def trace(model: nn.Module, input_shape: Sequence[int]) -> fx.GraphModule:
    """The network as a graph whose nodes know their shapes. Raises ``ConfigError`` when it cannot be had."""
    network = copy.deepcopy(model).cpu().eval()
    tracer = _Tracer()
    try:
        graph_module = fx.GraphModule(network, tracer.trace(network), type(model).__name__)
        with torch.no_grad():
            ShapeProp(graph_module).propagate(torch.zeros(2, *input_shape))
    except Exception as error:
        where = f" in layer {tracer.failed_at}" if tracer.failed_at else ""
        raise ConfigError(
            f"teacher: {type(model).__name__} cannot be traced{where}: {describe(error)}; forward must not "
            "branch on data",
            code="teacher-trace",
        ) from error
    inputs = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        names = ", ".join(str(node.target) for node in inputs)
        raise ConfigError(
            f"teacher: {type(model).__name__} takes {len(inputs)} inputs ({names}): it must take one tensor",
            code="teacher-inputs",
        )
    return graph_module


class _Tracer(fx.Tracer):
    """Remembers the innermost layer that could not be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.failed_at = ""

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_at = self.failed_at or self.path_of_module(m)
            raise


def _group(layers: dict[str, LayerChannels]) -> tuple[ChannelGroup, ...]:
    """Units by the layers that make them, in the order of the network."""
    makers: dict[int, list[str]] = {}
    for layer in layers.values():
        if layer.makes_channels:
            for unit in np.unique(layer.outputs[layer.outputs != FIXED]).tolist():
                makers.setdefault(unit, []).append(layer.name)
    grouped: dict[tuple[tuple[str, ...], int], list[int]] = {}
    for unit in sorted(makers):
        names = tuple(makers[unit])
        size = min(int((layers[name].outputs == unit).sum()) for name in names)
        grouped.setdefault((names, size), []).append(unit)
    return tuple(
        ChannelGroup(layers=names, units=tuple(units), unit_size=size)
        for (names, size), units in grouped.items()
    )


def _name(node: fx.Node) -> str:
    """The module's path where the node calls one, else that of the module it stands in, and its own name."""
    if node.op == "call_module":
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}))
    return f"{stack[-1]}.{node.name}" if stack and stack[-1] else node.name
