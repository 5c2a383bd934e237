"""Whether a graph really computes in int8: asked of ONNX Runtime's own optimised graph, not hoped for.

A QDQ file only says where values are rounded; it is the runtime's optimiser that makes integer kernels of it,
and whatever it cannot fuse is silently computed in float32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort

#: What does the work of a network, in float32, under every name that the optimiser gives it.
FLOAT_COMPUTE = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "NhwcFusedConv"}
)


def optimised_graph(data: bytes) -> onnx.GraphProto:
    """The graph that ONNX Runtime executes for ``data`` on this machine's processor."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="edgeloop-fusion-") as folder:
        target = Path(folder, "optimised.onnx")
        options.optimized_model_filepath = str(target)
        ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return onnx.load_from_string(target.read_bytes()).graph


def float_compute_nodes(data: bytes) -> list[str]:
    """Convolutions and matrix products left in float32, as ``operator -> output``; empty when all fused."""
    return [
        f"{node.op_type} -> {node.output[0]}"
        for node in optimised_graph(data).node
        if node.op_type in FLOAT_COMPUTE
    ]
