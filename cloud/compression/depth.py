"""Makes a network shorter: whole branches beside a shortcut are left out; a narrower one keeps them all.

A graph call costs a small device some microseconds however few channels it has, so that under a few million
multiply-accumulates only fewer calls make a network faster. Residual networks bear the loss of a layer: they
behave like many shallower ones beside each other (Veit et al. 2016), and networks trained with branches left
out at random lose least (stochastic depth, Huang et al. 2016). Blocks are ranked by what the loss does
without them, one after the other, as ShortGPT and BlockPruner (2024) do for the blocks of language models.

The other way round, the shortcuts may go and the branches stay alone, as in networks before He et al. 2015:
each costs a call for the sum and those of its projection. Shallow networks learn without them.

Rules: branches beside an identity go before those beside a projection, which lose more than the loss without
them shows: a projection of stride 2 looks at a quarter of the positions, and what read the others is gone.
The same network and data lead to the same branches. What may go at all, ``branches`` says.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cloud.compression.branches import Branch, check_depth, find_branches, remove_branch, remove_shortcuts
from cloud.compression.distil import recalibrate
from cloud.domain.specs import CompressionSpec
from cloud.domain.workloads import TrainingBudget
from cloud.training.datasets import Dataset
from cloud.training.objectives import label_loss
from edgeloop.errors import ConfigError

#: Training samples on which a network without a branch is scored.
NUM_SCORED_SAMPLES = 512


def shorten(
    model: nn.Module, dataset: Dataset, *, depth_ratio: float, batch_size: int, device: torch.device
) -> nn.Module:
    """``model`` without the branches that matter least, one by one: each time the one whose loss is least.

    Those beside an identity go before those beside a projection. The loss is with the labels of training
    samples, with BatchNorm statistics measured anew, as they will be; of equal ones the later branch goes.
    Raises ``ConfigError`` when there is nothing to leave out.
    """
    return _leave(model, dataset, depth_ratio, batch_size, device)[0]


def leaving_order(
    model: nn.Module, dataset: Dataset, *, depth_ratio: float, batch_size: int, device: torch.device
) -> tuple[tuple[str, ...], ...]:
    """Layers of the branches that ``shorten`` leaves out, the first to go first."""
    return _leave(model, dataset, depth_ratio, batch_size, device)[1]


def _leave(
    model: nn.Module, dataset: Dataset, depth_ratio: float, batch_size: int, device: torch.device
) -> tuple[nn.Module, tuple[tuple[str, ...], ...]]:
    branches = find_branches(model, dataset.input_shape)
    num_kept = check_depth(len(branches), depth_ratio, type(model).__name__)
    gone: list[tuple[str, ...]] = []
    while len(branches) > num_kept:
        best: tuple[tuple[bool, float, int], tuple[str, ...], nn.Module, tuple[Branch, ...]] | None = None
        for place, branch in enumerate(branches):
            shorter = remove_branch(model, branch, dataset.input_shape)
            left = find_branches(shorter, dataset.input_shape)
            if not num_kept <= len(left) < len(branches):
                continue  # an outer one, with too much inside
            loss = measure_loss(shorter, dataset, batch_size=batch_size, device=device)
            rank = (not branch.beside_identity, loss, -place)
            if best is None or rank < best[0]:
                best = (rank, branch.layers, shorter, left)
        if best is None:
            break
        gone.append(best[1])
        model, branches = best[2:]
    return model, tuple(gone)


def as_deep_as(
    spec: CompressionSpec,
    model: nn.Module,
    dataset: Dataset,
    training: TrainingBudget,
    device: torch.device,
) -> nn.Module:
    """``model`` without the branches that ``spec`` gives up; itself where it keeps all of them."""
    if spec.depth_ratio is None:
        return model
    ratio, size = spec.depth_ratio, training.batch_size
    return shorten(model, dataset, depth_ratio=ratio, batch_size=size, device=device)


def without_shortcuts(spec: CompressionSpec, model: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """``model`` without its shortcuts where ``spec`` gives them up; itself where it does not.

    Raises ``ConfigError`` when there are none.
    """
    if spec.shortcuts is None:
        return model
    plain, left_alone = remove_shortcuts(model, input_shape)
    if not left_alone:
        raise ConfigError(
            f"shortcuts is false: {type(model).__name__} has no shortcut beside a branch; leave it out",
            code="teacher-without-shortcuts",
        )
    return plain


@torch.no_grad()
def measure_loss(model: nn.Module, dataset: Dataset, *, batch_size: int, device: torch.device) -> float:
    """Mean loss with the labels over the first training samples, BatchNorm statistics measured on them."""
    network = copy.deepcopy(model).to(device)
    rows = torch.from_numpy(dataset.train.inputs[:NUM_SCORED_SAMPLES])
    labels = torch.from_numpy(dataset.train.labels[:NUM_SCORED_SAMPLES]).to(device)
    recalibrate(network, rows, batch_size=batch_size, device=device)
    network.eval()
    outputs: list[Tensor] = [network(part.to(device)) for part in rows.split(batch_size)]
    loss = float(label_loss(dataset.loss, torch.cat(outputs), labels))
    return loss if math.isfinite(loss) else math.inf
