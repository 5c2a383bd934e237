"""Runs a model, and times it, alike on the device and where it was built.

The cloud imports this package to score candidates, so it imports nothing else of the agent.
"""

from edge_agent.runtime.formats import ArtifactForm, load_artifact
from edge_agent.runtime.measure import (
    LatencyStats,
    measure_interleaved,
    measure_latency,
    peak_rss_bytes,
    rss_bytes,
)
from edge_agent.runtime.onnx import OnnxRuntime, Runtime, load_onnx
from edge_agent.runtime.reference import REFERENCE_VERSION, ReferenceKernel

__all__ = [
    "REFERENCE_VERSION",
    "ArtifactForm",
    "LatencyStats",
    "OnnxRuntime",
    "ReferenceKernel",
    "Runtime",
    "load_artifact",
    "load_onnx",
    "measure_interleaved",
    "measure_latency",
    "peak_rss_bytes",
    "rss_bytes",
]
