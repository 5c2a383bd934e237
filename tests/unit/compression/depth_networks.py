"""Networks with branches that may go, and some that may not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from compression_networks import INPUT_SHAPE, Residual, make
from torch import Tensor, nn

from cloud.compression.attention import open_attention
from cloud.training.datasets import Dataset, Split
from cloud.training.networks import ResidualCnn

torch.set_num_threads(1)


CPU = torch.device("cpu")


class Bottleneck(nn.Module):
    """As in ResNet-50: one block with a projection, and one with an identity; ReLUs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.first, self.second = _bottleneck(16, 2), _bottleneck(32, 1)
        self.project = nn.Sequential(nn.Conv2d(16, 32, 1, 2), nn.BatchNorm2d(32))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.first(x)
        out += self.project(x)
        x = self.relu(out)
        out = self.second(x)
        out += x
        result: Tensor = self.head(self.relu(out).mean((2, 3)))
        return result


def _bottleneck(in_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32),
    )  # fmt: skip


class Windows(nn.Module):
    """One-dimensional, with two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 16, 5, stride=2, padding=2)
        self.a, self.b = nn.Conv1d(16, 16, 3, padding=1), nn.Conv1d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x.flatten(2)))
        x = torch.relu(torch.add(x, self.a(x)))
        x = torch.relu(self.b(x).add(x))
        result: Tensor = self.head(x.amax(2))
        return result


class ReadElsewhere(Residual):
    """The inside of its branch also goes to the head."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        inner = torch.relu(self.inner(x))
        x = x + self.outer(inner)
        result: Tensor = self.head(torch.relu(x).mean((2, 3)) + inner[:, :16].mean((2, 3)))
        return result


class InPlace(Residual):
    """Its branch begins by changing what the shortcut carries."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        inner = nn.functional.relu(x, inplace=True)
        x = x + self.outer(self.inner(inner))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class SideBySide(nn.Module):
    """Two sides of as many layers: neither is the shortcut of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3)
        self.left, self.right = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        result: Tensor = self.head(torch.relu(self.left(x) + self.right(x)).mean((2, 3)))
        return result


class TwoSources(SideBySide):
    """What is added comes from another tensor than the longer side."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        longer = self.left(self.left(torch.relu(x)))
        result: Tensor = self.head((longer + self.right(torch.tanh(x))).mean((2, 3)))
        return result


def residual_cnn() -> nn.Module:
    return ResidualCnn(in_channels=1, num_classes=5, base_width=16, num_stages=2, num_blocks=2)


def network_of(kind: Callable[[], nn.Module]) -> nn.Module:
    return open_attention(make(kind))  # type: ignore[arg-type]  # whatever gives a network


def noise(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, *INPUT_SHAPE)).astype(np.float32)
    return Split(inputs=inputs, labels=np.arange(count) % 5)


NOISE = Dataset(train=noise(64, 0), validation=noise(10, 1), test=noise(10, 2), num_classes=5)
