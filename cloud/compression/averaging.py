"""The mean of a student's weights over the steps that are just behind it.

Weights near the end of a training wander around a good point; their mean lies nearer to it, and in a flatter
place (Polyak and Juditsky 1992; Izmailov et al., Averaging Weights Leads to Wider Optima, 2018).

Rules: each step moves the mean by one part in ``num_steps`` (more while it is young), so that it lags behind
by about as many; training does not see it; BatchNorm statistics belong to weights and are measured anew for
the mean.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

#: While fewer steps than this are behind, the mean forgets its start quickly.
YOUNG_STEPS = 10


class AveragedWeights:
    """``network`` is a copy of a student that has the mean of its weights."""

    def __init__(self, student: nn.Module, *, num_steps: float) -> None:
        self.network = copy.deepcopy(student).eval()
        self._share = 1.0 / max(1.0, num_steps)
        self._num_seen = 0

    def begin_anew(self, student: nn.Module) -> None:
        """What was before no longer counts."""
        self.network.load_state_dict(student.state_dict())
        self._num_seen = 0

    @torch.no_grad()
    def after_step(self, student: nn.Module) -> None:
        """Take in the weights as they are now."""
        share = max(self._share, 1.0 - (1.0 + self._num_seen) / (YOUNG_STEPS + self._num_seen))
        self._num_seen += 1
        for mean, weight in zip(self.network.parameters(), student.parameters(), strict=True):
            mean.lerp_(weight, share)

    @torch.no_grad()
    def take_buffers(self, student: nn.Module) -> None:
        """All that is not learnt, as the student has it; BatchNorm statistics then are to be measured."""
        for mean, buffer in zip(self.network.buffers(), student.buffers(), strict=True):
            mean.copy_(buffer)
