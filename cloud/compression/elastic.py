"""One network that holds all its narrower ones.

Each dependency group has an order in which its units leave; the network of a width has the first of them
in that order, so every narrower network is part of every wider one.

Rules: what a width computes here is what the network cut at that width computes (``remove_units`` makes it).
How a parameter is cut is not written down a second time: a network whose parameters hold their own positions
is narrowed by the pruner, and what stands in it then are the positions that stay. So whatever the pruner can
narrow is elastic. A narrower network runs on slices of the shared parameters, which is as much faster as it
is narrower, and gradients flow back through the slices.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cloud.compression.branches import without_branches
from cloud.compression.channels import FIXED
from cloud.compression.dependency import ChannelGraph, ChannelGroup, trace_channels
from cloud.compression.prune import choose_removed, remove_units
from edgeloop.errors import ConfigError

#: Widths lie on this grid, as the search's do.
GRID = 16
#: Float32 holds integers exactly up to its square; positions are carried as two digits of this base.
_DIGIT = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """A narrower network, and for each parameter the flat positions of what it takes (None: all of it)."""

    network: nn.Module
    positions: Mapping[str, Tensor | None]
    shapes: Mapping[str, torch.Size]


class ElasticNetwork:
    """``model`` as the widest of a family; it is trained in place.

    ``scores`` says how much each unit of ``graph`` matters: the least go first. ``shape`` is the network that
    is run where that is a part of ``model``, whose parameters it uses by their names; ``graph`` is its own.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        scores: Mapping[int, float],
        input_shape: Sequence[int],
        *,
        shape: nn.Module | None = None,
    ) -> None:
        self.model = model
        self._shape = model if shape is None else shape
        self.graph = graph
        self.scores = dict(scores)
        self._input_shape = tuple(input_shape)
        self._views: dict[frozenset[int], _View] = {}

    def widths(self, narrowest: float) -> tuple[float, ...]:
        """Grid widths that give different networks, narrowest first; 1 is the last."""
        by_removed: dict[frozenset[int], float] = {}
        for step in range(GRID, 0, -1):
            if step / GRID >= narrowest - 1e-9:
                by_removed.setdefault(self._removed(step / GRID), step / GRID)
        return tuple(sorted(by_removed.values()))

    def forward(self, width_ratio: float, inputs: Tensor) -> Tensor:
        """Logits of the network of this width, on the shared parameters, in training mode."""
        removed = self._removed(width_ratio)
        if not removed and self._shape is self.model:
            widest: Tensor = self.model.train()(inputs)
            return widest
        view = self._view(removed, inputs.device)
        shared = dict(self.model.named_parameters())
        sliced: dict[str, Any] = {}
        for name, positions in view.positions.items():
            whole = shared[name]
            sliced[name] = (
                whole
                if positions is None
                else whole.flatten().index_select(0, positions).view(view.shapes[name])
            )
        logits: Tensor = functional_call(view.network, sliced, (inputs,))
        return logits

    def cut(self, width_ratio: float) -> nn.Module:
        """A network of its own. Its BatchNorm statistics are the widest's: measure them afresh."""
        removed = self._removed(width_ratio)
        whole = copy.deepcopy(self._shape)
        if self._shape is not self.model:
            state = self.model.state_dict()
            whole.load_state_dict({name: state[name] for name in whole.state_dict()})
        return remove_units(whole, self.graph, removed, self._input_shape) if removed else whole

    def without_branches(self, layers: Collection[tuple[str, ...]]) -> ElasticNetwork:
        """The same family without the branches of these ``layers``, on the same parameters."""
        shape = without_branches(self.model, layers, self._input_shape)
        graph = trace_channels(shape, self._input_shape)
        scores = _scores_of_part(graph, self.graph, self.scores)
        return ElasticNetwork(self.model, graph, scores, self._input_shape, shape=shape)

    def _removed(self, width_ratio: float) -> frozenset[int]:
        return choose_removed(self.graph, self.scores, width_ratio)

    def _view(self, removed: frozenset[int], device: torch.device) -> _View:
        view = self._views.get(removed)
        if view is None:
            network = remove_units(self._shape, self.graph, removed, self._input_shape).to(device).train()
            positions = self._positions(removed)
            shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
            on_device = {name: None if at is None else at.to(device) for name, at in positions.items()}
            view = self._views[removed] = _View(network, on_device, shapes)
        return view

    def _positions(self, removed: frozenset[int]) -> dict[str, Tensor | None]:
        digits = [self._narrowed_digit(removed, high=high) for high in (True, False)]
        sizes = {name: parameter.numel() for name, parameter in self._shape.named_parameters()}
        positions: dict[str, Tensor | None] = {}
        for name, high in digits[0].items():
            flat = high.long().flatten() * _DIGIT + digits[1][name].long().flatten()
            positions[name] = None if len(flat) == sizes[name] else flat
        return positions

    def _narrowed_digit(self, removed: frozenset[int], *, high: bool) -> dict[str, Tensor]:
        carrier = copy.deepcopy(self._shape).cpu().eval()
        with torch.no_grad():
            for parameter in carrier.parameters():
                at = torch.arange(parameter.numel())
                digit = at.div(_DIGIT, rounding_mode="floor") if high else at % _DIGIT
                parameter.copy_(digit.view(parameter.shape))
        narrowed = remove_units(carrier, self.graph, removed, self._input_shape)
        return {name: parameter.detach() for name, parameter in narrowed.named_parameters()}


def _scores_of_part(part: ChannelGraph, whole: ChannelGraph, scores: Mapping[int, float]) -> dict[int, float]:
    """Each unit of a part of the network has the score of the unit that stands there in the whole of it.

    What stayed whole there and may go here has none, and goes first.
    """
    found = {unit: 0.0 for group in part.groups for unit in group.units}
    for name, layer in part.layers.items():
        for unit, same in zip(layer.outputs.tolist(), whole.layers[name].outputs.tolist(), strict=True):
            if unit != FIXED and same != FIXED:
                found[unit] = scores[same]
    return found


def scores_to_plain(graph: ChannelGraph, scores: Mapping[int, float]) -> dict[str, list[float]]:
    """Scores by group and position, which mean the same wherever the network is traced again."""
    return {_key(group): [float(scores[unit]) for unit in group.units] for group in graph.groups}


def scores_from_plain(graph: ChannelGraph, plain: Mapping[str, Sequence[float]]) -> dict[int, float]:
    """The inverse. Raises ``ConfigError`` when the network's groups are not those that were scored."""
    found = {_key(group): len(group.units) for group in graph.groups}
    if found != {name: len(values) for name, values in plain.items()}:
        raise ConfigError(
            "the elastic family does not fit its teacher's network: the teacher's code changed since the "
            "family was trained; train the teacher again",
            code="family-changed",
        )
    return {
        unit: float(value)
        for group in graph.groups
        for unit, value in zip(group.units, plain[_key(group)], strict=True)
    }


def _key(group: ChannelGroup) -> str:
    """What tells a group apart wherever the network is traced."""
    return f"{' '.join(group.layers)} of {group.unit_size}"
