"""Makes single weights zero, a few at a time while the student learns, and keeps them so.

Rules:

- A weight that was cut stays zero through every later step, through BatchNorm folding (a factor of the row)
  and through symmetric int8 (zero is one of its levels).
- After the last cut the share of zeros is the spec's, to the weight; a pattern N:M holds in every whole group
  of M neighbours in a row (``weight.flatten(1)``); a rest shorter than M stays as it is.
- No layer is emptied: with scope global each keeps at least a quarter of what it would keep with scope layer.
- Depthwise convolutions, biases and norms are left whole: they hold few weights, each of which counts.

Sizes of weights do not compare between layers, since BatchNorm makes each layer's scale arbitrary. So with
scope global a weight competes by its share in what would be left of its layer (LAMP: Lee et al., 2021).
Taylor scores are changes of the loss and compare as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from cloud.compression.channel_rules import Convolution
from cloud.domain.losses import Loss
from cloud.domain.sparsity import Scope, SparsitySpec, WeightImportance
from cloud.domain.tasks import StudentTask
from cloud.training.datasets import Dataset
from cloud.training.objectives import label_loss

Batches = Iterable[tuple[Tensor, Tensor]]
#: One score a weight: the lowest go first.
Scorer = Callable[[nn.Module], dict[str, Tensor]]
Masks = dict[str, Tensor]

NUM_TAYLOR_SAMPLES = 512
FLOOR_SHARE = 0.25


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """The weights that may become zero, by name."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Convolution) and module.groups == module.in_channels > 1:
            continue
        if isinstance(module, nn.Linear | Convolution):
            found[f"{name}.weight" if name else "weight"] = module.weight
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            found[f"{name}.in_proj_weight" if name else "in_proj_weight"] = module.in_proj_weight
    return found


def zero_share(model: nn.Module) -> float:
    """Share of zeros in the prunable weights."""
    weights = list(prunable(model).values())
    return sum(int((w == 0).sum()) for w in weights) / max(1, sum(w.numel() for w in weights))


def magnitude_scores(scope: Scope) -> Scorer:
    """Size of each weight; over the network, its share of what would be left of its layer."""

    def score(model: nn.Module) -> dict[str, Tensor]:
        return {
            name: _lamp(weight.detach()) if scope is Scope.GLOBAL else weight.detach().abs()
            for name, weight in prunable(model).items()
        }

    return score


def taylor_scores(batches: Batches, kind: Loss = Loss.CROSS_ENTROPY) -> Scorer:
    """What the loss does without a weight, to first order: sum over batches of (weight x gradient)^2."""
    kept = list(batches)

    def score(model: nn.Module) -> dict[str, Tensor]:
        weights = prunable(model)
        device = next(iter(weights.values())).device
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        was_training = model.training
        model.eval()
        for inputs, labels in kept:
            loss = label_loss(kind, model(inputs.to(device)), labels.to(device))
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                if gradient is not None:
                    total[name] += (weight.detach() * gradient).square()
        model.train(was_training)
        return total

    return score


class Sparsifier:
    """Brings a spec into force over a training (``distil.WeightRule``)."""

    def __init__(self, spec: SparsitySpec, scorer: Scorer) -> None:
        self._spec, self._scorer = spec, scorer
        self._masks: Masks = {}
        self._num_cuts = self._num_steps = 0

    @classmethod
    def of(cls, spec: SparsitySpec, dataset: Dataset, batch_size: int) -> Sparsifier:
        """With the scores that the spec names, on training samples."""
        if spec.importance is WeightImportance.MAGNITUDE:
            return cls(spec, magnitude_scores(spec.scope))
        train = dataset.train
        rows = [slice(n, n + batch_size) for n in range(0, min(NUM_TAYLOR_SAMPLES, len(train)), batch_size)]
        batches = [(torch.from_numpy(train.inputs[r]), torch.from_numpy(train.labels[r])) for r in rows]
        return cls(spec, taylor_scores(batches, dataset.loss))

    @property
    def in_force(self) -> bool:
        """Whether all cuts are made."""
        return self._num_cuts == self._spec.num_steps

    def begin(self, model: nn.Module, num_steps: int) -> None:
        """Before the first of ``num_steps`` steps; with none, all is cut now."""
        self._masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(model).items()}
        self._num_cuts, self._num_steps = 0, num_steps
        self.after_step(model, 0)

    def after_step(self, model: nn.Module, step: int) -> None:
        """After step ``step``, counted from 1: cuts what is due, and holds what was cut."""
        due = self._spec.cuts_due(step, self._num_steps)
        if due > self._num_cuts:
            self._num_cuts = due
            self._masks = choose_masks(self._scored(model), self._spec, self._spec.share_after(due))
        self.hold(model)

    @torch.no_grad()
    def hold(self, model: nn.Module) -> None:
        """Make zero again what was cut, whatever was done to the weights since."""
        for name, weight in prunable(model).items():
            weight.masked_fill_(~self._masks[name], 0.0)

    def _scored(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """What was cut comes first, then low scores, then of equal scores the smaller weight."""
        weights = prunable(model)
        return {
            name: (scores.masked_fill(~self._masks[name], -1.0), weights[name].detach().abs())
            for name, scores in self._scorer(model).items()
        }


def sparsifier_for(task: StudentTask, dataset: Dataset) -> Sparsifier | None:
    """What makes single weights of a task's student zero, if its spec asks for it."""
    if task.spec.sparsity is None:
        return None
    return Sparsifier.of(task.spec.sparsity, dataset, task.workload.training.batch_size)


def choose_masks(scored: dict[str, tuple[Tensor, Tensor]], spec: SparsitySpec, share: float) -> Masks:
    """What stays when ``share`` of the spec's sparsity is to be there, by (score, size) of each weight."""
    group = spec.group
    if group is not None:
        kept, size = group
        num_cut = round((size - kept) * share)
        return {name: _group_mask(*pair, size, num_cut) for name, pair in scored.items()}
    ratio = spec.ratio * share
    if spec.scope is Scope.LAYER:
        return {name: _mask(*pair, round(pair[0].numel() * ratio)) for name, pair in scored.items()}
    return _global_masks(scored, ratio)


def _global_masks(scored: dict[str, tuple[Tensor, Tensor]], ratio: float) -> Masks:
    scores, sizes = [], []
    for score, size in scored.values():
        flat = score.flatten().clone()
        num_safe = max(1, round(flat.numel() * (1.0 - ratio) * FLOOR_SHARE))
        flat[_ascending(flat, size.flatten())[-num_safe:]] = torch.inf
        scores.append(flat)
        sizes.append(size.flatten())
    together = torch.cat(scores)
    mask = _mask(together, torch.cat(sizes), round(len(together) * ratio))
    parts = mask.split([len(part) for part in scores])
    return {
        name: part.reshape(pair[0].shape) for (name, pair), part in zip(scored.items(), parts, strict=True)
    }


def _mask(score: Tensor, size: Tensor, num_cut: int) -> Tensor:
    mask = torch.ones(score.numel(), dtype=torch.bool, device=score.device)
    mask[_ascending(score.flatten(), size.flatten())[:num_cut]] = False
    return mask.reshape(score.shape)


def _group_mask(score: Tensor, size: Tensor, group: int, num_cut: int) -> Tensor:
    rows = score.flatten(1)
    mask = torch.ones_like(rows, dtype=torch.bool)
    whole = rows.shape[1] // group * group
    if whole:
        grouped = rows[:, :whole].reshape(-1, group)
        order = _ascending(grouped, size.flatten(1)[:, :whole].reshape(-1, group))
        cut = torch.ones_like(grouped, dtype=torch.bool).scatter_(1, order[:, :num_cut], False)
        mask[:, :whole] = cut.reshape(len(rows), whole)
    return mask.reshape(score.shape)


def _ascending(score: Tensor, size: Tensor) -> Tensor:
    """Indices along the last dimension by score, then by size, then by position."""
    by_size = size.argsort(dim=-1, stable=True)
    return by_size.gather(-1, score.gather(-1, by_size).argsort(dim=-1, stable=True))


def _lamp(weight: Tensor) -> Tensor:
    """Squared size over the sum of it and all larger ones of the layer."""
    squares, order = weight.flatten().double().square().sort()
    left = squares.flip(0).cumsum(0).flip(0).clamp_min(1e-300)
    scores = torch.empty_like(squares)
    scores[order] = squares / left
    return scores.reshape(weight.shape)
