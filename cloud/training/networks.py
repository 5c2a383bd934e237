"""The networks that a workload may name: as its teacher, or for students beside it.

Rules: a network takes one float32 tensor ``[n, *input_shape]`` and gives one tensor of logits
``[n, num_outputs]``; the same workload gives the same initial weights. The built-in one keeps to what
compresses well: ReLU (it fuses into int8 convolutions), BatchNorm (it folds away), no branches on data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cloud.domain.workloads import Workload
from cloud.training.callables import call, is_callable_path
from cloud.training.datasets import Dataset
from cloud.training.options import check_options, check_range
from edgeloop.errors import ConfigError

#: Teachers that a workload may name without a module.
BUILT_IN = ("residual-cnn",)
RESIDUAL_DEFAULTS: Mapping[str, Any] = {"base_width": 16, "num_stages": 3, "num_blocks": 1, "stem_stride": 1}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.norm1(self.conv1(x)))
        output: Tensor = self.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))
        return output


class ResidualCnn(nn.Module):
    """A stem, then stages of residual blocks, each twice as wide and half as large as the one before."""

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        base_width: int = 16,
        num_stages: int = 3,
        num_blocks: int = 1,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, base_width, 3, stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(base_width),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        width = base_width
        for stage in range(num_stages):
            for block in range(num_blocks):
                channels = base_width * 2**stage
                blocks.append(ResidualBlock(width, channels, 2 if stage > 0 and block == 0 else 1))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(self.stem(x)).mean(dim=(2, 3))
        logits: Tensor = self.head(features)
        return logits


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSource:
    """Where a network comes from. ``field`` and ``options_field`` are where the workload's file says so."""

    name: str
    options: Mapping[str, Any]
    source_dir: str
    field: str
    options_field: str


def build_teacher(workload: Workload, dataset: Dataset) -> nn.Module:
    """The untrained teacher, on the CPU. Raises ``ConfigError`` naming the field and what to do."""
    source = NetworkSource(
        name=workload.teacher, options=workload.teacher_options, source_dir=workload.source_dir,
        field="teacher", options_field="teacher_options",
    )  # fmt: skip
    return build_network(source, dataset, seed=workload.training.seed)


def build_network(source: NetworkSource, dataset: Dataset, *, seed: int) -> nn.Module:
    """The untrained network, on the CPU. Raises ``ConfigError`` naming the field and what to do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _construct(source, dataset)
    return _check_forward(model, source, dataset.input_shape, dataset.num_outputs)


def _construct(source: NetworkSource, dataset: Dataset) -> nn.Module:
    name, field = source.name, source.field
    if is_callable_path(name):
        # Most networks call what they give num_classes, whatever it is.
        given = {"num_classes": dataset.num_outputs, "num_outputs": dataset.num_outputs}
        offers = {"input_shape": dataset.input_shape, **given}
        model = call(
            name, source.options, source_dir=source.source_dir, field=field, offers=offers,
            options_field=source.options_field,
        )  # fmt: skip
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"{field}: {name} returned {type(model).__name__}, not a torch.nn.Module", code="teacher-type"
            )
        return model
    if name not in BUILT_IN:
        raise ConfigError(
            f"{field} is {name!r}: it must be {' or '.join(BUILT_IN)}, or module:callable",
            code="teacher-unknown",
        )
    if len(dataset.input_shape) != 3:
        raise ConfigError(
            f"{field} residual-cnn takes images [channels, height, width], but the dataset's inputs have "
            f"shape {dataset.input_shape}: name your own network as module:callable",
            code="teacher-input",
        )
    options = check_options(source.options, RESIDUAL_DEFAULTS, field=source.options_field)
    bounds = {"base_width": (8, 1024), "num_stages": (1, 6), "num_blocks": (1, 32), "stem_stride": (1, 4)}
    numbers = {
        key: check_range(options, key, low, high, field=source.options_field)
        for key, (low, high) in bounds.items()
    }
    return ResidualCnn(in_channels=dataset.input_shape[0], num_classes=dataset.num_outputs, **numbers)


def _check_forward(
    model: nn.Module, source: NetworkSource, input_shape: tuple[int, ...], num_outputs: int
) -> nn.Module:
    """``model`` itself, when two samples give two rows of logits. Raises ``ConfigError`` otherwise."""
    name, field = source.name, source.field
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"{field}: {name} has no trainable parameters", code="teacher-parameters")
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, *input_shape))
    except Exception as error:
        raise ConfigError(
            f"{field}: {name} fails on one input of shape [2, {', '.join(map(str, input_shape))}]: {error}",
            code="teacher-forward",
        ) from error
    finally:
        model.train(was_training)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, num_outputs):
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"{field}: {name} gives {found} for 2 samples: it must give one tensor [2, {num_outputs}]",
            code="teacher-output",
        )
    return model
