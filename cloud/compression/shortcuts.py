"""Which shortcuts a network has beside branches, and whether it can do without them.

A network without its shortcuts must learn as networks did before them. Those of about twenty layers do: He
et al. 2015 train 18 to the accuracy of their residual twin, and 34 to less than that of 18. Attention without
shortcuts loses its rank with depth (Dong et al. 2021), and what LayerNorm normalises is made for them.

Rules: asked before anything is trained, from the traced graph alone; the same network gives the same answer.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import fx, nn
from torch.nn import functional

from cloud.compression.branches import remove_shortcuts

#: Layers in a row, of those that have weights, up to which a network is expected to learn without shortcuts.
MAX_CHAIN_LAYERS: Final = 20
_PRODUCTS = frozenset(
    {torch.matmul, torch.bmm, operator.matmul, "matmul", "bmm", functional.scaled_dot_product_attention}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortcuts:
    """``beside`` are the branches that stand alone without them; ``needed`` is why they must stay, or ""."""

    beside: tuple[str, ...]
    needed: str

    @property
    def num_dispensable(self) -> int:
        """How many the search may leave out: all or none."""
        return 0 if self.needed else len(self.beside)


def find_shortcuts(model: nn.Module, input_shape: Sequence[int]) -> Shortcuts:
    """Of a network whose attention is written out. Raises ``ConfigError`` where it has no graph."""
    chain, beside = remove_shortcuts(model, input_shape)
    modules = dict(chain.named_modules())
    return Shortcuts(beside=beside, needed=_why_needed(chain.graph, modules) if beside else "")


def _why_needed(graph: fx.Graph, modules: dict[str, nn.Module]) -> str:
    for node in graph.nodes:
        computed = [source for source in node.all_input_nodes if source.op != "get_attr"]
        if node.op in ("call_function", "call_method") and node.target in _PRODUCTS and len(computed) > 1:
            return "attention does not learn without them"
        if node.op == "call_module" and isinstance(modules[str(node.target)], nn.LayerNorm):
            return "layers behind LayerNorm are made for them"
    num_layers = _longest_chain(graph, modules)
    if num_layers > MAX_CHAIN_LAYERS:
        return f"{num_layers} layers in a row would not learn without them, {MAX_CHAIN_LAYERS} might"
    return ""


def _longest_chain(graph: fx.Graph, modules: dict[str, nn.Module]) -> int:
    """Most layers with a matrix of weights on one way through the network."""
    depth: dict[fx.Node, int] = {}
    for node in graph.nodes:
        depth[node] = max((depth[source] for source in node.all_input_nodes), default=0)
        if node.op == "call_module":
            own = modules[str(node.target)].parameters()
            depth[node] += any(parameter.dim() > 1 for parameter in own)
    return max(depth.values(), default=0)
