"""The layers of a network, as the latency model of a profile wants them.

Rules: shapes are seen in one forward pass, so nothing is exported; what ONNX Runtime fuses into the layer
before (activations, normalisations) is not counted; a layer that is called twice counts twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cloud.compression.channel_rules import Convolution
from cloud.domain.latency import LayerKind, LayerShape


def layer_shapes(model: nn.Module, input_shape: Sequence[int]) -> tuple[LayerShape, ...]:
    """In the order in which they run. The model's mode is put back."""
    layers: list[LayerShape] = []

    def see(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            layers.append(_shape(module, output))

    hooks = [
        module.register_forward_hook(see)
        for module in model.modules()
        if isinstance(module, Convolution | nn.Linear)
    ]
    was_training = model.training
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *input_shape, device=device))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return tuple(layers)


def _shape(module: nn.Module, output: Tensor) -> LayerShape:
    if isinstance(module, nn.Linear):
        return LayerShape(
            kind=LayerKind.CONVOLUTION,
            in_channels=module.in_features,
            out_channels=module.out_features,
            positions=max(1, math.prod(output.shape[1:-1])),
        )
    assert isinstance(module, Convolution)
    return LayerShape(
        kind=LayerKind.DEPTHWISE if module.groups == module.in_channels > 1 else LayerKind.CONVOLUTION,
        in_channels=module.in_channels // module.groups,
        out_channels=module.out_channels,
        kernel_size=math.prod(module.kernel_size),
        positions=math.prod(output.shape[2:]),
    )
