"""A small network that was trained once, so that what follows begins with the same one everywhere.

Training it again on another processor gives another network: the last digits differ from the first step on,
and what rounding costs differs between two networks by more than what is tested here. To train a new one: run
this file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

_WEIGHTS = Path(__file__).with_name("small_network_v1.npz")


class Small(nn.Module):
    """Two convolutions with BatchNorm and a linear layer, for digits of 24 x 24."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(24)
        self.head = nn.Linear(24 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = nn.functional.max_pool2d(torch.relu(self.norm2(self.conv2(x))), 2)
        result: Tensor = self.head(x.flatten(1))
        return result


def trained() -> Small:
    """The one that is kept."""
    model = Small()
    with np.load(_WEIGHTS, allow_pickle=False) as kept:
        model.load_state_dict({name: torch.from_numpy(kept[name]) for name in kept.files})
    return model.eval()


def train(inputs: Tensor, labels: Tensor) -> None:
    """Trains a new one and keeps it."""
    torch.manual_seed(0)
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(6):
        for rows in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    np.savez_compressed(_WEIGHTS, **{name: value.numpy() for name, value in model.state_dict().items()})


if __name__ == "__main__":
    from cloud.domain.workloads import Workload
    from cloud.training.datasets import load_dataset

    digits = load_dataset(Workload(name="digits", dataset="digits"))
    train(torch.from_numpy(digits.train.inputs), torch.from_numpy(digits.train.labels))
