"""Whether a teacher can be compressed at all, asked before hours of training go into it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from cloud.compression.attention import open_attention
from cloud.compression.branches import check_depth, find_branches
from cloud.compression.dependency import ChannelGraph, trace_channels
from cloud.compression.export import export_onnx
from edgeloop.errors import ConfigError

logger = logging.getLogger(__name__)


def check_compressible(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    try_export: bool = True,
    depth_ratios: Sequence[float] = (),
) -> ChannelGraph:
    """The network's channel graph. Raises ``ConfigError`` when it cannot be traced, exported or narrowed.

    Operations that keep their channels whole are logged by name; only when nothing is left to narrow is that
    an error. ``depth_ratios`` are depths under 1 that it is to be cut at.
    """
    opened = open_attention(model)
    graph = trace_channels(opened, input_shape)
    kept_whole = "; ".join(f"{frozen.operation}: {frozen.reason}" for frozen in graph.frozen)
    if not graph.groups:
        raise ConfigError(
            f"teacher: {type(model).__name__} has no channels that can be removed: "
            f"{kept_whole or 'it has no hidden layer'}",
            code="teacher-not-prunable",
        )
    if kept_whole:
        logger.warning("%s: some channels are kept whole (%s)", type(model).__name__, kept_whole)
    if depth_ratios:
        num_branches = len(find_branches(opened, input_shape))
        for depth_ratio in depth_ratios:
            check_depth(num_branches, depth_ratio, type(model).__name__)
    if try_export:
        export_onnx(opened, input_shape)
    return graph
