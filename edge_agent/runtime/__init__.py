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
from edge_agent.runtime.rules import RulesRuntime, load_rules

__all__ = [
    "REFERENCE_VERSION",
    "ArtifactForm",
    "LatencyStats",
    "OnnxRuntime",
    "ReferenceKernel",
    "RulesRuntime",
    "Runtime",
    "load_artifact",
    "load_onnx",
    "load_rules",
    "measure_interleaved",
    "measure_latency",
    "peak_rss_bytes",
    "rss_bytes",
]
