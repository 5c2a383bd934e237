"""Attention written out in operations that can be traced, narrowed by whole heads, and exported.

``torch.nn.MultiheadAttention`` and ``torch.nn.TransformerEncoderLayer`` are closed boxes to a tracer and know
no width but the embedding's. ``open_attention`` puts modules in their place that compute the same from the
same weights.

Rules: the network given is not changed; in evaluation mode the new one gives what the old one gave. What has
no counterpart here (masks, other widths for keys and values) is left as it is, and its heads stay.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention with a linear layer each for query, key and value."""

    def __init__(self, closed: nn.MultiheadAttention) -> None:
        super().__init__()
        width = closed.embed_dim
        self.num_heads, self.batch_first = closed.num_heads, closed.batch_first
        self.query, self.key, self.value = (
            nn.Linear(width, width, bias=closed.in_proj_bias is not None) for _ in range(3)
        )
        self.project = nn.Linear(width, width, bias=closed.out_proj.bias is not None)
        self.dropout = nn.Dropout(closed.dropout)
        self._take(closed)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """The output, and None in place of the weights."""
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise ValueError("attention with a mask is not supported")
        if not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self._heads(self.query(query)), self._heads(self.key(key)), self._heads(self.value(value))
        scores = torch.matmul(q, k.transpose(2, 3)) * (self.query.in_features // self.num_heads) ** -0.5
        weights = self.dropout(functional.softmax(scores, dim=-1))
        joined = torch.matmul(weights, v).transpose(1, 2).flatten(2)
        output = self.project(joined)
        return (output if self.batch_first else output.transpose(0, 1)), None

    def _heads(self, x: Tensor) -> Tensor:
        size = self.query.in_features // self.num_heads
        return x.reshape(-1, x.size(1), self.num_heads, size).transpose(1, 2)

    @torch.no_grad()
    def _take(self, closed: nn.MultiheadAttention) -> None:
        weights = closed.in_proj_weight.chunk(3)
        biases = [None] * 3 if closed.in_proj_bias is None else closed.in_proj_bias.chunk(3)
        for layer, weight, bias in zip((self.query, self.key, self.value), weights, biases, strict=True):
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
        self.project.weight.copy_(closed.out_proj.weight)
        if closed.out_proj.bias is not None:
            self.project.bias.copy_(closed.out_proj.bias)
        self.to(closed.out_proj.weight.device).train(closed.training)


class EncoderLayer(nn.Module):
    """One layer of a transformer: attention, then two linear layers, each beside a shortcut."""

    def __init__(self, closed: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.attention = Attention(closed.self_attn)
        self.linear1, self.linear2 = closed.linear1, closed.linear2
        self.norm1, self.norm2 = closed.norm1, closed.norm2
        self.dropout, self.dropout1, self.dropout2 = closed.dropout, closed.dropout1, closed.dropout2
        self.norm_first, self.activation = closed.norm_first, closed.activation
        self.train(closed.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self._attend(self.norm1(x))
            return x + self._feed(self.norm2(x))
        x = self.norm1(x + self._attend(x))
        output: Tensor = self.norm2(x + self._feed(x))
        return output

    def _attend(self, x: Tensor) -> Tensor:
        output: Tensor = self.dropout1(self.attention(x, x, x)[0])
        return output

    def _feed(self, x: Tensor) -> Tensor:
        output: Tensor = self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))
        return output


def open_attention(model: nn.Module) -> nn.Module:
    """``model`` itself when it has no closed attention, else a copy in which it is written out."""
    if not any(_opened(module) for module in model.modules()):
        return model
    holder = nn.ModuleList([copy.deepcopy(model)])
    _open_children(holder)
    return holder[0]


def _open_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        if (opened := _opened(child)) is not None:
            setattr(module, name, opened)
        else:
            _open_children(child)


def _opened(module: nn.Module) -> nn.Module | None:
    """What stands for ``module``, or None."""
    if isinstance(module, nn.MultiheadAttention):
        plain = module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn
        return Attention(module) if plain else None
    if isinstance(module, nn.TransformerEncoderLayer):
        return EncoderLayer(module) if _opened(module.self_attn) is not None else None
    if isinstance(module, nn.TransformerEncoder):
        layers = [_opened(layer) for layer in module.layers]
        if any(layer is None for layer in layers):
            return None
        # torch types the members of a ModuleList as Tensor | Module
        return nn.Sequential(*layers, *([] if module.norm is None else [module.norm]))  # type: ignore[arg-type]
    return None
