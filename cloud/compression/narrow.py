"""From a teacher to a narrower network of the same kind, at once or in steps.

Rules: the width that a spec asks for is a share of the *teacher's* channels, whatever the number of steps;
channels are ranked afresh before each step, on the network as it is then. BatchNorm statistics are measured
anew after each. The teacher is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from cloud.compression.dependency import ChannelGraph, ChannelGroup, trace_channels
from cloud.compression.distil import recalibrate
from cloud.compression.importance import Importance as Scorer
from cloud.compression.importance import magnitude, norm_scale, taylor
from cloud.compression.prune import count_kept, remove_units
from cloud.domain.specs import CompressionSpec, Importance, Road
from cloud.training.datasets import Dataset

_Key = tuple[tuple[str, ...], int]

NUM_IMPORTANCE_SAMPLES = 512
NUM_RECALIBRATION_SAMPLES = 2048


def narrow(
    network: nn.Module,
    dataset: Dataset,
    *,
    spec: CompressionSpec,
    batch_size: int,
    device: torch.device,
    tune: Callable[[nn.Module], object],
) -> nn.Module:
    """``network`` without the channels that ``spec`` gives up. ``tune`` trains it between two steps."""
    num_steps = (spec.pruning_steps or 1) if spec.road is Road.PRUNED else 1
    scorer = _scorer(spec, dataset, batch_size)
    full: dict[_Key, int] = {}
    for step in range(1, num_steps + 1):
        graph = trace_channels(network, dataset.input_shape)
        full = full or {_key(group): len(group.units) for group in graph.groups}
        scores = scorer(network.to(device), graph)
        removed = _least(graph, scores, full, spec.width_ratio ** (step / num_steps))
        if not removed:
            continue
        network = remove_units(network.cpu(), graph, removed, dataset.input_shape)
        if spec.road is Road.PRUNED:
            rows = torch.from_numpy(dataset.train.inputs[:NUM_RECALIBRATION_SAMPLES])
            recalibrate(network, rows, batch_size=batch_size, device=device)
        if step < num_steps:
            tune(network)
    return network


def split_epochs(spec: CompressionSpec) -> tuple[int, int]:
    """Epochs between two steps, and after the last: together what the spec may spend."""
    num_steps = (spec.pruning_steps or 1) if spec.road is Road.PRUNED else 1
    between = spec.num_epochs // (num_steps + 1) if num_steps > 1 else 0
    return between, spec.num_epochs - between * (num_steps - 1)


def _least(
    graph: ChannelGraph, scores: Mapping[int, float], full: Mapping[_Key, int], width_ratio: float
) -> frozenset[int]:
    """The least important units of each group beyond its share; of equal ones the later go."""
    removed: set[int] = set()
    for group in graph.groups:
        if width_ratio < 1.0:
            ranked = sorted(group.units, key=lambda unit: (-scores[unit], unit))
            num_units = full.get(_key(group), len(ranked))
            removed.update(ranked[count_kept(num_units, width_ratio, group.unit_size) :])
    return frozenset(removed)


def _key(group: ChannelGroup) -> _Key:
    """What tells a group apart in the narrower network too."""
    return group.layers, group.unit_size


def _scorer(spec: CompressionSpec, dataset: Dataset, batch_size: int) -> Scorer:
    if spec.importance is Importance.MAGNITUDE:
        return magnitude()
    if spec.importance is Importance.NORM_SCALE:
        return norm_scale()
    return lambda network, graph: taylor(_batches(dataset, batch_size), dataset.loss)(network, graph)


def _batches(dataset: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    train, last = dataset.train, min(NUM_IMPORTANCE_SAMPLES, len(dataset.train))
    for start in range(0, last, batch_size):
        stop = min(start + batch_size, last)
        yield torch.from_numpy(train.inputs[start:stop]), torch.from_numpy(train.labels[start:stop])
