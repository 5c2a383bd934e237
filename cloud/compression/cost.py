"""What a network costs on paper: multiply-accumulates and parameters.

For people and for prediction. What ships is decided by measured latency, because these mislead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """``macs`` is for one sample, over convolutions and matrix products."""

    macs: int
    num_parameters: int


def measure_cost(model: nn.Module, input_shape: Sequence[int]) -> Cost:
    """Count one forward pass. The model's mode is put back."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, *input_shape, device=device))
    model.train(was_training)
    return Cost(
        macs=counter.get_total_flops() // 2,
        num_parameters=count_parameters(model),
    )


def count_parameters(model: nn.Module) -> int:
    """Numbers that training decides."""
    return sum(parameter.numel() for parameter in model.parameters())
