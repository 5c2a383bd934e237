"""Builds what ships: a teacher's result from a finished training, a student from a spec.

Rules: every figure is measured through the agent's runtime; validation decides, test is only reported; blobs
go to the registry before a result names them. The same task gives the same weights on the same machine; only
a precision of ``auto`` depends on a measurement, and then both forms are built alike.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cloud.compression import evaluate
from cloud.compression.attention import open_attention
from cloud.compression.branches import find_branches
from cloud.compression.choose import choose_precision, reject_against_parent
from cloud.compression.cost import measure_cost
from cloud.compression.distil import part_of
from cloud.compression.export import EXPORT_TOLERANCE_RATIO, INPUT_NAME, OUTPUT_NAME, export_onnx
from cloud.compression.family import Blobs
from cloud.compression.own_networks import own_network
from cloud.compression.pack import Shipped, executable_of, ship
from cloud.compression.quantise import count_weights, quantise
from cloud.compression.roads import trained_student
from cloud.compression.rule_candidate import build_rules, count_numbers
from cloud.compression.shelf import WeightsShelf, shelved
from cloud.compression.shortcuts import find_shortcuts
from cloud.compression.student_quantiser import StudentQuantiser
from cloud.compression.teacher_weights import load_teacher, load_wisdom
from cloud.compression.view_answers import AnswerShelf
from cloud.domain.candidates import Candidate, CandidateMetrics
from cloud.domain.specs import Precision, Road
from cloud.domain.tasks import StudentTask, TeacherResult
from cloud.domain.workloads import Workload
from cloud.training import checkpoints, kept_outputs
from cloud.training.datasets import Dataset, load_dataset
from cloud.training.teacher import TeacherTrainer, choose_device
from cloud.training.teacher import predict as predict_torch
from edgeloop.artifact import build_manifest, encode_manifest, golden_set
from edgeloop.errors import RejectedError
from edgeloop.v1 import artifact_pb2

logger = logging.getLogger(__name__)

Report = Callable[[float, str], None]

NUM_VERIFIED_SAMPLES = 16
#: Where the training of a student ends in its progress.
DISTIL_TO = 0.8
#: Where rounding its weights, and training it for int8, end, if the spec asks for them.
ROUND_TO, INT8_TO = 0.84, 0.88


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Form:
    """One precision of a student, loaded."""

    data: bytes
    precision: Precision
    runtime: evaluate.Runtime
    accuracy: float


def finish_teacher(workload: Workload, trainer: TeacherTrainer, *, registry: Blobs) -> TeacherResult:
    """Store the trained teacher's weights and its fp32 ONNX graph, and measure it."""
    dataset = trainer.dataset
    model = copy.deepcopy(trainer.model).cpu().eval()
    data = export_verified(model, dataset)
    runtime = evaluate.load(data)
    timing = evaluate.time_artifacts([runtime], dataset.validation.inputs[:1])
    cost = measure_cost(model, dataset.input_shape)
    opened = open_attention(model)
    given = [
        (evaluate.predict(runtime, one.inputs), one.labels) for one in (dataset.validation, dataset.test)
    ]
    accuracy, test_accuracy = (evaluate.score_outputs(*one, dataset.loss) for one in given)
    kept = kept_outputs.to_bytes(*given)
    return TeacherResult(
        workload=workload.name,
        teacher_key=workload.teacher_key,
        checkpoint_digest=registry.put(checkpoints.to_bytes({"version": 1, "model": model.state_dict()})),
        artifact_digest=registry.put(data),
        artifact_bytes=len(data),
        accuracy=accuracy,
        test_accuracy=test_accuracy,
        macs=cost.macs,
        num_parameters=cost.num_parameters,
        latency_p50_ms=timing.p50_ms(0),
        reference_p50_ms=timing.reference_p50_ms,
        num_epochs=trainer.epoch,
        train_s=trainer.train_s,
        metric=dataset.loss.metric,
        num_inputs=math.prod(dataset.input_shape),
        num_branches=len(find_branches(opened, dataset.input_shape)),
        num_shortcuts=find_shortcuts(opened, dataset.input_shape).num_dispensable,
        outputs_digest=registry.put(kept) if kept else "",
    )


def build_student(
    task: StudentTask,
    *,
    registry: Blobs,
    report: Report,
    dataset: Dataset | None = None,
    device: str = "auto",
    shelf: WeightsShelf | None = None,
) -> Candidate:
    """Build, measure and register the student that ``task`` describes.

    ``report(fraction, message)`` is called often; what it raises stops the build and comes out. Pass
    ``dataset`` when it is loaded already. A student that ``shelf`` holds is not trained again, nor is the
    teacher asked again for answers that are there.
    """
    report(0.0, "loading data and teacher")
    dataset = load_dataset(task.workload) if dataset is None else dataset
    teacher = load_teacher(task.workload, dataset, task.teacher, registry=registry)
    wisdom = load_wisdom(task.workload, dataset, task.teacher, teacher, registry=registry)
    chosen_device = choose_device(device)
    if task.spec.road is Road.RULES:
        return build_rules(task, wisdom, dataset, registry=registry, device=chosen_device, report=report)

    answers = AnswerShelf.of(shelf, task)

    def make() -> nn.Module:
        return trained_student(task, teacher, wisdom, dataset, device=chosen_device, registry=registry,
                               report=part_of(report, 0.0, DISTIL_TO), shelf=answers)  # fmt: skip

    whole = own_network(task.workload, dataset, task.spec.network) if task.spec.network else teacher
    student = shelved(task, whole, dataset.input_shape, make, shelf=shelf, report=report)
    quantiser = None
    if task.spec.quantisation is not None:
        quantiser = StudentQuantiser(task, wisdom, dataset, device=chosen_device, shelf=answers)
        student = quantiser.round_weights(student, part_of(report, DISTIL_TO, ROUND_TO))
    report(ROUND_TO, "exporting")
    fp32 = export_verified(student, dataset)
    forms = _forms(task, fp32, dataset, report, quantiser)
    report(INT8_TO, "measuring")
    parent = executable_of(registry.get(task.parent_digest)) if task.parent_digest else None
    runtimes = [form.runtime for form in forms]
    if parent is not None:
        runtimes.append(evaluate.load(parent, num_threads=task.profile.num_threads))
    timing = evaluate.time_artifacts(runtimes, dataset.validation.inputs[:1])
    chosen = _choose(forms, timing, task.workload.search.tolerance)
    form = forms[chosen]
    rejected_reason = ""
    if parent is not None and parent != form.data:
        rejected_reason = reject_against_parent(
            slowdown_ratio=timing.slowdown_ratio(chosen, len(forms)),
            num_weights=count_weights(form.data),
            parent_num_weights=count_numbers(parent),
        )
    cost = measure_cost(student, dataset.input_shape)
    shipped = ship(form.data)
    report(0.94, "measuring memory")
    metrics = CandidateMetrics(
        accuracy=form.accuracy,
        test_accuracy=evaluate.accuracy(form.runtime, dataset.test.inputs, dataset.test.labels, dataset.loss),
        latency_p50_ms=timing.p50_ms(chosen),
        latency_p95_ms=timing.p95_ms(chosen),
        reference_p50_ms=timing.reference_p50_ms,
        artifact_bytes=len(shipped.data),
        executable_bytes=len(shipped.executable),
        peak_rss_bytes=evaluate.measure_peak_rss(shipped.data),
        macs=cost.macs,
        num_parameters=cost.num_parameters,
        metric=dataset.loss.metric,
        int8_loss=forms[0].accuracy - forms[1].accuracy if len(forms) == 2 else None,
    )
    candidate = Candidate(
        digest=registry.put(shipped.data),
        manifest_digest=registry.put(encode_manifest(_manifest(task, form, shipped, dataset))),
        workload=task.workload.name,
        profile=task.profile.name,
        parent_digest=task.parent_digest,
        spec=task.spec,
        precision=form.precision,
        metrics=metrics,
        rejected_reason=rejected_reason,
        create_time_s=time.time(),
    )
    report(
        1.0, f"{form.precision}, {metrics.metric} {metrics.accuracy:.4f}, p50 {metrics.latency_p50_ms:.4f} ms"
    )
    return candidate


def export_verified(model: nn.Module, dataset: Dataset) -> bytes:
    """ONNX bytes that were seen to compute what torch computes. Raises ``RejectedError`` when they do not."""
    data = export_onnx(model, dataset.input_shape)
    samples = dataset.validation.inputs[:NUM_VERIFIED_SAMPLES]
    wanted = predict_torch(model.cpu(), samples, torch.device("cpu")).numpy()
    found = evaluate.predict(evaluate.load(data), samples)
    gap, scale = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
    if not gap <= EXPORT_TOLERANCE_RATIO * max(1.0, scale):
        raise RejectedError(
            f"the exported graph differs from the network by {gap:.3g} on outputs up to {scale:.3g}: "
            "the network's forward may depend on something that export cannot see",
            code="export-differs",
        )
    return data


def _forms(
    task: StudentTask, fp32: bytes, dataset: Dataset, report: Report, quantiser: StudentQuantiser | None
) -> list[_Form]:
    """The precisions that the spec asks for."""
    wanted = task.spec.precision
    built: list[tuple[bytes, Precision]] = []
    if wanted is not Precision.INT8:
        built.append((fp32, Precision.FP32))
    if wanted is not Precision.FP32:
        report(ROUND_TO, "quantising")
        samples = calibration_samples(dataset, task.workload.search.num_calibration_samples, task.spec.seed)
        try:
            if quantiser is None:
                int8 = quantise(fp32, samples, reduced_range=task.profile.needs_reduced_range)
            else:
                int8 = quantiser.int8(fp32, samples, part_of(report, ROUND_TO, INT8_TO))
            built.append((int8, Precision.INT8))
        except RejectedError:
            if wanted is Precision.INT8:
                raise
            logger.warning("%s: int8 is left out", task.task_id, exc_info=True)
    validation = dataset.validation
    forms = []
    for data, precision in built:
        runtime = evaluate.load(data, num_threads=task.profile.num_threads)
        score = evaluate.accuracy(runtime, validation.inputs, validation.labels, dataset.loss)
        forms.append(_Form(data=data, precision=precision, runtime=runtime, accuracy=score))
    return forms


def calibration_samples(dataset: Dataset, count: int, seed: int) -> NDArray[np.float32]:
    """Training samples, chosen by chance but the same for a seed."""
    rows = np.random.default_rng(seed).permutation(len(dataset.train))[:count]
    return dataset.train.inputs[np.sort(rows)]


def _choose(forms: list[_Form], timing: evaluate.Timing, tolerance: float) -> int:
    if len(forms) == 1:
        return 0
    fp32, int8 = forms  # in the order in which they were built
    winner = choose_precision(
        fp32_accuracy=fp32.accuracy,
        int8_accuracy=int8.accuracy,
        int8_slowdown_ratio=timing.slowdown_ratio(1, 0),
        tolerance=tolerance,
    )
    return 0 if winner is Precision.FP32 else 1


def _manifest(task: StudentTask, form: _Form, shipped: Shipped, dataset: Dataset) -> artifact_pb2.Manifest:
    golden = evaluate.golden_samples(form.runtime, dataset.validation.inputs, form.precision)
    batch = form.runtime.input_shape[0]
    return build_manifest(
        shipped.data,
        artifact_format=shipped.artifact_format,
        executable=shipped.executable,
        workload=task.workload.name,
        profile=task.profile.name,
        precision=(
            artifact_pb2.PRECISION_INT8 if form.precision is Precision.INT8 else artifact_pb2.PRECISION_FP32
        ),
        inputs=[_tensor(INPUT_NAME, (batch, *dataset.input_shape))],
        outputs=[_tensor(OUTPUT_NAME, (batch, dataset.num_outputs))],
        golden=golden_set(golden.inputs, golden.outputs, absolute_tolerance=golden.absolute_tolerance),
        accuracy=form.accuracy,
        metric=dataset.loss.metric,
        parent_digest=task.parent_digest,
        spec_json=task.spec.to_json(),
    )


def _tensor(name: str, shape: tuple[int, ...]) -> artifact_pb2.TensorSpec:
    return artifact_pb2.TensorSpec(name=name, datatype="FP32", shape=shape)
