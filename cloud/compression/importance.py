"""How much a unit of channels matters: the higher the score, the longer it stays.

Rules: an importance takes a network and its channel graph and gives one finite score a unit; scores are
compared within a group only; the network comes back as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from cloud.compression.channel_rules import BatchNorm
from cloud.compression.channels import FIXED
from cloud.compression.dependency import ChannelGraph
from cloud.domain.losses import Loss
from cloud.training.objectives import label_loss

Importance = Callable[[nn.Module, ChannelGraph], dict[int, float]]
Batches = Iterable[tuple[Tensor, Tensor]]


def magnitude(norm: int = 2) -> Importance:
    """L1 or L2 norm of the weights that make a channel, relative to its layer's mean."""

    def score(model: nn.Module, graph: ChannelGraph) -> dict[int, float]:
        return _collect(graph, _magnitudes(model, graph, norm))

    return score


def norm_scale() -> Importance:
    """Size of the BatchNorm factor behind a channel; magnitude where a unit passes no BatchNorm."""

    def score(model: nn.Module, graph: ChannelGraph) -> dict[int, float]:
        modules = dict(model.named_modules())
        scales: dict[str, Tensor] = {}
        for name in graph.layers:
            module = modules[name]
            if isinstance(module, BatchNorm) and module.weight is not None:
                scales[name] = _relative(module.weight.detach().abs())
        return {**_collect(graph, _magnitudes(model, graph, 2)), **_collect(graph, scales, partial=True)}

    return score


def taylor(batches: Batches, loss: Loss = Loss.CROSS_ENTROPY) -> Importance:
    """First-order estimate of what the loss does without a channel: squared sum of weight x gradient."""

    def score(model: nn.Module, graph: ChannelGraph) -> dict[int, float]:
        parameters = dict(model.named_parameters())
        weights = {name: parameters[f"{name}.weight"] for name in _makers(graph)}
        device = next(iter(parameters.values())).device
        total = {name: torch.zeros(len(weight), device=device) for name, weight in weights.items()}
        was_training = model.training
        model.eval()
        for inputs, labels in batches:
            cost = label_loss(loss, model(inputs.to(device)), labels.to(device))
            gradients = torch.autograd.grad(cost, list(weights.values()))
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                total[name] += (weight.detach() * gradient).flatten(1).sum(1).square()
        model.train(was_training)
        return _collect(graph, total)

    return score


def _makers(graph: ChannelGraph) -> list[str]:
    return [layer.name for layer in graph.layers.values() if layer.makes_channels]


def _magnitudes(model: nn.Module, graph: ChannelGraph, norm: int) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {
        name: _relative(
            torch.linalg.vector_norm(parameters[f"{name}.weight"].detach().flatten(1), norm, dim=1)
        )
        for name in _makers(graph)
    }


def _relative(scores: Tensor) -> Tensor:
    return scores / scores.mean().clamp_min(1e-12)


def _collect(graph: ChannelGraph, scores: Mapping[str, Tensor], *, partial: bool = False) -> dict[int, float]:
    """Sum each unit's scores over the layers and indices where it stands."""
    units = [unit for group in graph.groups for unit in group.units]
    collected: dict[int, float] = {} if partial else dict.fromkeys(units, 0.0)
    for name, values in scores.items():
        for unit, value in zip(graph.layers[name].outputs.tolist(), values.tolist(), strict=True):
            if unit != FIXED:
                collected[unit] = collected.get(unit, 0.0) + value
    return collected
