"""How well latencies of students are predicted from nine probes of a profile: this machine, one thread."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from cloud.compression import evaluate
from cloud.compression.build import calibration_samples, export_verified
from cloud.compression.dependency import trace_channels
from cloud.compression.elastic import ElasticNetwork
from cloud.compression.layers import layer_shapes
from cloud.compression.quantise import quantise
from cloud.domain.latency import Probe, fit_latency
from cloud.training.datasets import Dataset

MAX_PROBES = 9
NUM_SESSIONS = 3


def predictor_errors(teacher: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """Nine widths are probes of this machine as a profile; the others are predicted. Any weights will do."""
    graph = trace_channels(teacher, dataset.input_shape)
    scores = {unit: 0.0 for group in graph.groups for unit in group.units}
    elastic = ElasticNetwork(copy.deepcopy(teacher), graph, scores, dataset.input_shape)
    widths = elastic.widths(0.0625)
    samples = calibration_samples(dataset, 32, 0)
    networks = [elastic.cut(width).eval() for width in widths]
    shapes = [layer_shapes(network, dataset.input_shape) for network in networks]
    fp32 = [export_verified(network, dataset) for network in networks]
    forms_of = {"fp32": fp32, "int8": [quantise(data, samples, reduced_range=True) for data in fp32]}
    runtimes = [evaluate.load(data) for datas in forms_of.values() for data in datas]
    sample = dataset.validation.inputs[:1]
    timings = [evaluate.time_artifacts(runtimes, sample) for _ in range(NUM_SESSIONS)]
    timing = replace(timings[0], chunks=tuple(chunk for one in timings for chunk in one.chunks))
    count = min(MAX_PROBES, len(widths) - 1)
    chosen = {round(i * (len(widths) - 1) / (count - 1)) for i in range(count)}
    errors = []
    for offset, _ in enumerate(forms_of):
        probes = [
            Probe(layers=layers, latency_ms=timing.p50_ms(offset * len(widths) + i))
            for i, layers in enumerate(shapes)
        ]
        model = fit_latency([probe for i, probe in enumerate(probes) if i in chosen])
        errors += [
            abs(model.predict(probe.layers) / probe.latency_ms - 1)
            for i, probe in enumerate(probes)
            if i not in chosen
        ]
    within = sum(error <= 0.10 for error in errors) / len(errors)
    return {"num_probes": len(chosen), "num_predicted": len(errors), "within_10_percent": within,
            "worst": max(errors)}  # fmt: skip
