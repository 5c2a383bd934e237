"""A candidate made of rules: fitted, encoded, measured through the agent's runtime, and registered.

Rules: what is scored is what ships, as for networks; rules that are slower than what they replace are
rejected. Their numbers are float32, so that their precision is fp32; they have no multiply-accumulates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from cloud.compression import evaluate
from cloud.compression.budget import check_rule_bytes
from cloud.compression.choose import reject_against_parent
from cloud.compression.export import INPUT_NAME, OUTPUT_NAME
from cloud.compression.pack import executable_of
from cloud.compression.quantise import count_weights
from cloud.compression.rules import fit_rules
from cloud.domain.candidates import Candidate, CandidateMetrics
from cloud.domain.losses import Loss
from cloud.domain.specs import Precision
from cloud.domain.tasks import StudentTask
from cloud.training.datasets import Dataset
from edgeloop import rules
from edgeloop.artifact import build_manifest, encode_manifest, golden_set
from edgeloop.errors import ConfigError
from edgeloop.formats import RULES_FORMAT
from edgeloop.v1 import artifact_pb2

Report = Callable[[float, str], None]

FIT_FROM, FIT_TO = 0.05, 0.85


class Blobs(Protocol):
    """What is needed of the registry."""

    def put(self, data: bytes) -> str: ...

    def get(self, digest: str) -> bytes: ...


def build_rules(
    task: StudentTask,
    teacher: nn.Module,
    dataset: Dataset,
    *,
    registry: Blobs,
    device: torch.device,
    report: Report,
) -> Candidate:
    """Build, measure and register the rules that ``task`` describes.

    Raises ``ConfigError`` when the teacher or its inputs do not suit rules.
    """
    if dataset.loss is not Loss.CROSS_ENTROPY:
        raise ConfigError(
            f"road=rules needs a workload of loss cross-entropy, and {task.workload.name} has "
            f"{dataset.loss}: take another road, or label two classes for cross-entropy",
            code="rules-loss",
        )
    check_rule_bytes(task.profile.constraints, dataset.num_classes, task.profile.name)
    spec = task.spec.rules
    assert spec is not None, "a spec of road rules has them"

    def fitting(fraction: float, message: str) -> None:
        report(FIT_FROM + (FIT_TO - FIT_FROM) * fraction, message)

    fitted = fit_rules(teacher, dataset, spec, seed=task.spec.seed, device=device, report=fitting)
    data = rules.encode(fitted.model)
    runtime = evaluate.load(data, num_threads=task.profile.num_threads)
    report(0.88, "measuring")
    runtimes = [runtime]
    parent = executable_of(registry.get(task.parent_digest)) if task.parent_digest else None
    if parent is not None:
        runtimes.append(evaluate.load(parent, num_threads=task.profile.num_threads))
    timing = evaluate.time_artifacts(runtimes, dataset.validation.inputs[:1])
    rejected_reason = ""
    if parent is not None and parent != data:
        rejected_reason = reject_against_parent(
            slowdown_ratio=timing.slowdown_ratio(0, 1),
            num_weights=fitted.model.num_numbers,
            parent_num_weights=count_numbers(parent),
        )
    validation, test = dataset.validation, dataset.test
    score = evaluate.accuracy(runtime, validation.inputs, validation.labels)
    fidelity = evaluate.accuracy(runtime, validation.inputs, fitted.lesson.held_out_classes)
    report(0.94, "measuring memory")
    metrics = CandidateMetrics(
        accuracy=score,
        test_accuracy=evaluate.accuracy(runtime, test.inputs, test.labels),
        latency_p50_ms=timing.p50_ms(0),
        latency_p95_ms=timing.p95_ms(0),
        reference_p50_ms=timing.reference_p50_ms,
        artifact_bytes=len(data),
        peak_rss_bytes=evaluate.measure_peak_rss(data),
        macs=0,
        num_parameters=fitted.model.num_numbers,
        fidelity=fidelity,
    )
    candidate = Candidate(
        digest=registry.put(data),
        manifest_digest=registry.put(encode_manifest(_manifest(task, data, runtime, dataset, score))),
        workload=task.workload.name,
        profile=task.profile.name,
        parent_digest=task.parent_digest,
        spec=task.spec,
        precision=Precision.FP32,
        metrics=metrics,
        rejected_reason=rejected_reason,
        create_time_s=time.time(),
    )
    report(
        1.0,
        f"{spec.kind}, accuracy {score:.4f}, fidelity {fidelity:.4f}, p50 {metrics.latency_p50_ms:.4f} ms",
    )
    return candidate


def count_numbers(data: bytes) -> int:
    """Weights of a network's graph, or thresholds and leaf values of rules."""
    return rules.decode(data).num_numbers if rules.is_rules(data) else count_weights(data)


def _manifest(
    task: StudentTask, data: bytes, runtime: evaluate.Runtime, dataset: Dataset, score: float
) -> artifact_pb2.Manifest:
    golden = evaluate.golden_samples(runtime, dataset.validation.inputs, Precision.FP32)
    return build_manifest(
        data,
        artifact_format=RULES_FORMAT,
        workload=task.workload.name,
        profile=task.profile.name,
        precision=artifact_pb2.PRECISION_FP32,
        inputs=[artifact_pb2.TensorSpec(name=INPUT_NAME, datatype="FP32", shape=(0, *dataset.input_shape))],
        outputs=[artifact_pb2.TensorSpec(name=OUTPUT_NAME, datatype="FP32", shape=(0, dataset.num_classes))],
        golden=golden_set(golden.inputs, golden.outputs, absolute_tolerance=golden.absolute_tolerance),
        accuracy=score,
        parent_digest=task.parent_digest,
        spec_json=task.spec.to_json(),
    )
