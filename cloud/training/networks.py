"""The networks that a workload may name as its teacher.

Rules: a network takes one float32 tensor ``[n, *input_shape]`` and gives one tensor of logits
``[n, num_outputs]``; the same workload gives the same initial weights. The built-in one keeps to what
compresses well: ReLU (it fuses into int8 convolutions), BatchNorm (it folds away), no branches on data.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def build_teacher(workload: Workload, dataset: Dataset) -> nn.Module:
    """The untrained teacher, on the CPU. Raises ``ConfigError`` naming the field and what to do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(workload.training.seed)
        model = _construct(workload, dataset)
    return check_forward(model, workload.teacher, dataset.input_shape, dataset.num_outputs)


def _construct(workload: Workload, dataset: Dataset) -> nn.Module:
    name = workload.teacher
    if is_callable_path(name):
        # Most networks call what they give num_classes, whatever it is.
        given = {"num_classes": dataset.num_outputs, "num_outputs": dataset.num_outputs}
        offers = {"input_shape": dataset.input_shape, **given}
        model = call(
            name, workload.teacher_options, source_dir=workload.source_dir, field="teacher", offers=offers
        )
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"teacher: {name} returned {type(model).__name__}, not a torch.nn.Module", code="teacher-type"
            )
        return model
    if name not in BUILT_IN:
        raise ConfigError(
            f"teacher is {name!r}: it must be {' or '.join(BUILT_IN)}, or module:callable",
            code="teacher-unknown",
        )
    if len(dataset.input_shape) != 3:
        raise ConfigError(
            f"teacher residual-cnn takes images [channels, height, width], but the dataset's inputs have "
            f"shape {dataset.input_shape}: name your own network as module:callable",
            code="teacher-input",
        )
    options = check_options(workload.teacher_options, RESIDUAL_DEFAULTS, field="teacher_options")
    bounds = {"base_width": (8, 1024), "num_stages": (1, 6), "num_blocks": (1, 32), "stem_stride": (1, 4)}
    numbers = {
        key: check_range(options, key, low, high, field="teacher_options")
        for key, (low, high) in bounds.items()
    }
    return ResidualCnn(in_channels=dataset.input_shape[0], num_classes=dataset.num_outputs, **numbers)


def check_forward(model: nn.Module, name: str, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """``model`` itself, when two samples give two rows of finite logits. Raises ``ConfigError`` otherwise."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"teacher: {name} has no trainable parameters", code="teacher-parameters")
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, *input_shape))
    except Exception as error:
        raise ConfigError(
            f"teacher: {name} fails on one input of shape [2, {', '.join(map(str, input_shape))}]: {error}",
            code="teacher-forward",
        ) from error
    finally:
        model.train(was_training)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, num_outputs):
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"teacher: {name} gives {found} for 2 samples: it must give one tensor [2, {num_outputs}]",
            code="teacher-output",
        )
    return model
