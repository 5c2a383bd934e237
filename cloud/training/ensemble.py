"""Several teachers as one: the mean of what they give.

Rule: all answer alike in shape; the mean is of logits (of numbers, for a regression), so that one teacher's
doubt counts against another's certainty.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeloop.errors import ConfigError


class MeanOfOutputs(nn.Module):
    """A teacher for ``distil`` made of several, as of one network trained from several seeds."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise ConfigError("an ensemble needs at least one teacher", code="ensemble-empty")
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(dim=0)


def lead_of(teacher: nn.Module) -> nn.Module:
    """The first of an ensemble, which others are compared with inside; any other teacher itself."""
    return teacher.members[0] if isinstance(teacher, MeanOfOutputs) else teacher
