"""In which numbers a network is run while something learns.

Rules: weights, their updates and all losses are float32 in any case; with ``bfloat16`` the products inside a
network are not, and images lie with their channels last. On processors that multiply bfloat16 (AVX512_BF16,
AMX, GPUs) training then costs about half; on others it costs many times as much, so nobody gets it unasked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def run(network: Callable[[Tensor], Tensor], inputs: Tensor, *, bfloat16: bool) -> Tensor:
    """What ``network`` gives for ``inputs``, as float32."""
    if not bfloat16:
        return network(inputs)
    if inputs.dim() == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        outputs = network(inputs)
    return outputs.float()
