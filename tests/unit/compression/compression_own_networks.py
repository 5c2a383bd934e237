"""Networks as people write them, but small."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project; ReLU6 between, a shortcut where the shape allows."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = in_channels * expand
        self.use_shortcut = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.conv(x) if self.use_shortcut else self.conv(x)
        return output


class MobileNet(nn.Module):
    """Like MobileNetV2."""

    def __init__(self, num_classes: int = 5, in_channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(
                nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True)
            ),
            InvertedResidual(16, 16, 1, 2),
            InvertedResidual(16, 24, 2, 2),
            InvertedResidual(24, 24, 1, 2),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(24, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 1).reshape(x.shape[0], -1)
        output: Tensor = self.classifier(x)
        return output


class SqueezeExcite(nn.Module):
    """The gate by linear layers, shaped back as most code on the web does it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, 16), nn.ReLU(inplace=True), nn.Linear(16, channels), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        gate = self.fc(x.mean((2, 3))).view(b, c, 1, 1)
        return x * gate.expand_as(x) if self.training else x * gate


class MobileNetV3(nn.Module):
    """Hard-swish and squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.Hardswish())
        self.depth = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32), nn.Hardswish()
        )
        self.gate = SqueezeExcite(32)
        self.project = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.gate(self.depth(self.expand(x))))
        output: Tensor = self.head(x.mean((2, 3)))
        return output


class SelfAttention(nn.Module):
    """As timm writes it: one layer for query, key and value, sizes from the input and from attributes."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (width // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        output: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))
        return output


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SelfAttention(width, num_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        output: Tensor = x + self.mlp(self.norm2(x))
        return output


class VisionTransformer(nn.Module):
    """Patches, a class token, positions, two blocks."""

    def __init__(self, num_classes: int = 5, in_channels: int = 1, width: int = 32, size: int = 8) -> None:
        super().__init__()
        self.patch = nn.Conv2d(in_channels, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // 4) ** 2 + 1, width))
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        output: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return output


class ClosedTransformer(nn.Module):
    """torch's own attention and encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 4, 4)
        self.attn = nn.MultiheadAttention(32, 4)
        layer = nn.TransformerEncoderLayer(
            32, 4, dim_feedforward=48, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).permute(2, 0, 1)
        attended, _ = self.attn(x, x, x, need_weights=False)
        output: Tensor = self.head(self.encoder((x + attended).transpose(0, 1)).mean(1))
        return output


class GroupNormed(nn.Module):
    """Four groups each in a norm and in a convolution: a group goes or stays."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 3, padding=1)
        self.norm = nn.GroupNorm(4, 32)
        self.grouped = nn.Conv2d(32, 64, 3, padding=1, groups=4)
        self.last = nn.Conv2d(64, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.norm(self.first(x)))))
        output: Tensor = self.head(torch.relu(self.last(x)).mean((2, 3)))
        return output


class Written(nn.Module):
    """Sizes written out in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16
        self.a = nn.Conv2d(1, 16, 3)
        self.b = nn.Conv2d(16, 24, 3)
        self.head = nn.Linear(24 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x)).reshape(-1, self.width, 6, 6)
        output: Tensor = self.head(torch.relu(self.b(x)).view(-1, 384))
        return output


OWN_NETWORKS: tuple[type[nn.Module], ...] = (
    MobileNet, MobileNetV3, VisionTransformer, ClosedTransformer, GroupNormed, Written,
)  # fmt: skip
