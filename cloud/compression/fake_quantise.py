"""Rounds the weights of a network, and trains it through the rounding.

The weights of every convolution and linear layer are replaced by the values of their quantised tensors; a
short distillation passes gradients straight through the rounding (Bengio et al., Estimating or Propagating
Gradients Through Stochastic Neurons, 2013), while each step rounds afresh.

Rules: BatchNorm is folded first, so that the exported graph holds exactly the rounded values; weights that
are exactly zero (pruned) stay zero; the state before any tuning competes with what follows, by validation
accuracy, and the best one stays.
The optimiser is the distillation's AdamW: plain gradient descent was seen to collapse below 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cloud.compression.answers import TeacherAnswers
from cloud.compression.distil import distil
from cloud.compression.export import fold_batch_norm
from cloud.compression.quantised_tensor import Grid, QuantisedTensor, as_rows, fit_grid
from cloud.compression.uniform_grid import Floats
from cloud.compression.view_answers import AnswerShelf
from cloud.domain.quantisation import QuantisationSpec
from cloud.domain.specs import CompressionSpec
from cloud.domain.workloads import TrainingBudget
from cloud.training.datasets import Dataset
from edgeloop.errors import ConfigError

Report = Callable[[float, str], None]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
#: Codes are new in each step; the grid under them follows the moving weights every so many steps.
REFIT_STEPS = 16


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantisedNetwork:
    """``model`` has its BatchNorms folded and its weights rounded; ``tensors`` is by parameter name."""

    model: nn.Module
    tensors: Mapping[str, QuantisedTensor]
    spec: QuantisationSpec


class RoundedWeight(nn.Module):
    """A parametrization: the weight as its codes give it, gradients straight through.

    The grid is part of the state, so that a state that is put back computes what it computed.
    """

    def __init__(self, weight: Tensor, spec: QuantisationSpec, bits: int) -> None:
        super().__init__()
        self.spec, self.bits = spec, bits
        kept = weight.detach() != 0
        self.register_buffer("kept", None if bool(kept.all()) else kept, persistent=False)
        self._num_steps = 0
        self._grid: Grid = fit_grid(self._rows(weight), spec, bits)

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            if self._num_steps % REFIT_STEPS == REFIT_STEPS - 1:
                self._grid = fit_grid(self._rows(weight), self.spec, self.bits, self._grid)
            self._num_steps += 1
        rows = self._rows(weight)
        rounded = torch.from_numpy(self._grid.values(self._grid.codes(rows))).reshape(weight.shape)
        kept = self.kept
        assert kept is None or isinstance(kept, Tensor)
        # torch publishes no types for Function.apply
        result: Tensor = _StraightThrough.apply(weight, rounded.to(weight.device), kept)  # type: ignore[no-untyped-call]
        return result

    def quantised(self, weight: Tensor) -> QuantisedTensor:
        """What ``forward`` gives, with its codes."""
        codes = self._grid.codes(self._rows(weight)).reshape(tuple(weight.shape))
        return QuantisedTensor(codes=codes, grid=self._grid, bits=self.bits)

    def get_extra_state(self) -> dict[str, Any]:
        return {"grid": self._grid}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._grid = state["grid"]

    def _rows(self, weight: Tensor) -> Floats:
        return as_rows(weight.detach().cpu().numpy(), self.spec.granularity)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor, kept: Tensor | None) -> Tensor:
        ctx.kept = kept
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0]
        return gradient if ctx.kept is None else gradient * ctx.kept, None, None


def round_weights(model: nn.Module, spec: QuantisationSpec, bits: int) -> dict[str, RoundedWeight]:
    """Put each weight of ``model`` behind its rounding, in place. The result is by parameter name."""
    rounded = {}
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and not parametrize.is_parametrized(module):
            weight = module.weight
            if not bool(torch.isfinite(weight).all()):
                raise ConfigError(
                    f"quantisation: the weight of layer {name} holds NaN or infinity: its training diverged",
                    code="quantise-weights",
                )
            made = RoundedWeight(weight, spec, bits).train(module.training).to(weight.device)
            parametrize.register_parametrization(module, "weight", made)
            rounded[f"{name}.weight"] = made
    if not rounded:
        raise ConfigError(
            "quantisation: the network has no convolution and no linear layer to quantise",
            code="quantise-nothing",
        )
    return rounded


def settle(model: nn.Module, rounded: Mapping[str, RoundedWeight]) -> dict[str, QuantisedTensor]:
    """Take the roundings away again and leave the rounded values, in place."""
    tensors = {}
    for name, made in rounded.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        parametrizations: Any = module.parametrizations
        tensors[name] = made.quantised(parametrizations.weight.original)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        weight = module.weight
        assert isinstance(weight, Tensor)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(np.ascontiguousarray(tensors[name].dequantise())))
    return tensors


def quantise_network(
    student: nn.Module,
    teacher: nn.Module,
    dataset: Dataset,
    *,
    spec: CompressionSpec,
    bits: int,
    training: TrainingBudget,
    device: torch.device,
    report: Report,
    shelf: AnswerShelf | None = None,
) -> QuantisedNetwork:
    """A copy of ``student`` with weights as ``spec.quantisation`` says, tuned by distillation.

    ``shelf`` holds the teacher's answers that other trainings asked for.
    """
    quantisation = spec.quantisation
    assert quantisation is not None
    model = fold_batch_norm(student)
    rounded = round_weights(model, quantisation, bits)
    tune(
        model,
        teacher,
        dataset,
        spec=spec,
        num_epochs=quantisation.tuning_epochs,
        training=training,
        device=device,
        report=report,
        shelf=shelf,
    )
    model.cpu()
    tensors = settle(model, rounded)
    return QuantisedNetwork(model=model.eval(), tensors=tensors, spec=quantisation)


def tune(
    model: nn.Module,
    teacher: nn.Module,
    dataset: Dataset,
    *,
    spec: CompressionSpec,
    num_epochs: int,
    training: TrainingBudget,
    device: torch.device,
    report: Report,
    answers: TeacherAnswers | None = None,
    shelf: AnswerShelf | None = None,
) -> None:
    """Distil for ``num_epochs`` at the quantisation's own learning rate, in place."""
    assert spec.quantisation is not None
    if num_epochs == 0:
        return
    # Hints need the teacher's layers, which folding has changed.
    rate = spec.quantisation.tuning_learning_rate
    lesson = replace(spec, num_epochs=num_epochs, learning_rate=rate, hint_weight=None)
    distil(
        model,
        teacher,
        dataset,
        spec=lesson,
        training=training,
        device=device,
        report=report,
        answers=answers,
        shelf=shelf,
    )
