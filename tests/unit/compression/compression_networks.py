"""One tiny network for each shape that a graph of channels can take."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cloud.compression.dependency import ChannelGraph


class Plain(nn.Module):
    """Two convolutions, flattened into a linear layer: each channel is a run of features."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 24, 3, stride=2)
        self.head = nn.Linear(24 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.a(x)))
        x = torch.relu(self.b(x))
        result: Tensor = self.head(x.view(x.size(0), -1))
        return result


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 24, 3, padding=1)
        self.outer = nn.Conv2d(24, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        result: Tensor = self.head(torch.relu(x).mean((2, 3)))
        return result


class Concat(nn.Module):
    """Two branches side by side, and one of them again behind an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 16, 3, padding=1)
        self.right = nn.Conv2d(1, 24, 1)
        self.mix = nn.Conv2d(40, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        left = torch.relu(self.left(x))
        both = torch.cat([left, torch.relu(self.right(x))], dim=1)
        result: Tensor = self.head(
            torch.flatten(nn.functional.adaptive_avg_pool2d(self.mix(both) + left, 1), 1)
        )
        return result


class Depthwise(nn.Module):
    """A depthwise convolution that doubles its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(1, 16, 1)
        self.depth = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.norm = nn.BatchNorm2d(32)
        self.project = nn.Conv2d(32, 16, 1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.depth(torch.relu(self.expand(x)))))
        result: Tensor = self.head(torch.relu(self.project(x)))
        return result


class Grouped(nn.Module):
    """A convolution of four groups between two that can be narrowed on their other sides."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3)
        self.second = nn.Conv2d(16, 16, 3)
        self.grouped = nn.Conv2d(16, 16, 3, groups=4)
        self.third = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        x = torch.relu(self.third(torch.relu(self.grouped(x))))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Gated(nn.Module):
    """Channels multiplied by a gate computed from their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 24, 3)
        self.squeeze = nn.Conv2d(24, 16, 1)
        self.excite = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        result: Tensor = self.head((x * gate).mean((2, 3)))
        return result


class Dense(nn.Module):
    """Linear layers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(32, 24),
            nn.ReLU(),
        )
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.layers(x))
        return result


class Sequence(nn.Module):
    """One-dimensional: sensor windows."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(1, 16, 5, stride=2)
        self.b = nn.Conv1d(16, 24, 3)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool1d(torch.relu(self.a(x.flatten(2))), 2)
        result: Tensor = self.head(torch.relu(self.b(x)).amax(2))
        return result


class Repeated(nn.Module):
    """One convolution called twice: what comes in and what goes out are the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1)
        self.again = nn.Conv2d(24, 24, 3, padding=1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.again(torch.relu(self.again(x))))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Normalised(nn.Module):
    """LayerNorm mixes its channels: they must stay, others may go."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 32)
        self.norm = nn.LayerNorm(32)
        self.second = nn.Linear(32, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x.flatten(1))))
        result: Tensor = self.head(torch.relu(self.second(x)))
        return result


class Split(nn.Module):
    """Halves by ``chunk``: a channel goes from both, so that they stay halves."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 32, 3)
        self.b = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.chunk(torch.relu(self.a(x)), 2, dim=1)
        result: Tensor = self.head(torch.relu(self.b(left * right)).mean((2, 3)))
        return result


class Taken(nn.Module):
    """Some of the channels by number."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 32, 3)
        self.b = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.relu(self.b(torch.relu(self.a(x))[:, :16])).mean((2, 3)))
        return result


class Shifted(nn.Module):
    """A parameter of the network's own is added to the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 32, 3)
        self.shift = nn.Parameter(torch.ones(1, 32, 1, 1))
        self.b = nn.Conv2d(32, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.relu(self.b(torch.relu(self.a(x) + self.shift))).mean((2, 3)))
        return result


INPUT_SHAPE = (1, 8, 8)
NETWORKS: tuple[type[nn.Module], ...] = (
    Plain, Residual, Concat, Depthwise, Grouped, Gated, Dense, Sequence, Repeated, Normalised, Split, Taken,
    Shifted,
)  # fmt: skip


def make(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """The network with random weights and BatchNorm statistics, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def mask_units(model: nn.Module, graph: ChannelGraph, removed: frozenset[int]) -> nn.Module:
    """A copy in which the removed units carry zeros; those who read them are left as they are."""
    masked = copy.deepcopy(model)
    modules = dict(masked.named_modules())
    for layer in graph.layers.values():
        module = modules[layer.name]
        gone = torch.tensor([unit in removed for unit in layer.outputs.tolist()])
        with torch.no_grad():
            for name in ("weight", "bias"):
                if getattr(module, name, None) is not None:
                    getattr(module, name)[gone] = 0.0
    return masked
