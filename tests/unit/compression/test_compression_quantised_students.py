"""Students of few levels, and training for int8 that starts by itself."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from digit_rounding import DIGITS, WORKLOAD, accuracy
from memory_registry import Memory
from onnx import numpy_helper

from cloud.compression import evaluate
from cloud.compression.build import build_student, finish_teacher
from cloud.compression.pack import executable_of
from cloud.compression.shelf import training_key
from cloud.domain.candidates import Candidate
from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.quantisation import QuantisationSpec, Scheme
from cloud.domain.specs import CompressionSpec, Precision
from cloud.domain.tasks import StudentTask, TeacherResult
from cloud.training.teacher import TeacherTrainer
from edgeloop.artifact import parse_manifest

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def teacher() -> tuple[TeacherResult, Memory]:
    registry = Memory()
    trainer = TeacherTrainer(WORKLOAD, DIGITS, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    return finish_teacher(WORKLOAD, trainer, registry=registry), registry


def task_of(
    teacher: TeacherResult, quantisation: QuantisationSpec | None, precision: Precision = Precision.INT8
) -> StudentTask:
    return StudentTask(
        task_id="t",
        workload=WORKLOAD,
        teacher=teacher,
        profile=DeviceProfile(name="gateway", workload="digits", match=MatchRule()),
        spec=CompressionSpec(width_ratio=1.0, num_epochs=0, precision=precision, quantisation=quantisation),
    )


def build_one(
    teacher: tuple[TeacherResult, Memory],
    quantisation: QuantisationSpec,
    precision: Precision = Precision.INT8,
) -> tuple[Candidate, list[tuple[float, str]]]:
    seen: list[tuple[float, str]] = []
    task = task_of(teacher[0], quantisation, precision)
    candidate = build_student(
        task, registry=teacher[1], report=lambda *step: seen.append(step), dataset=DIGITS, device="cpu"
    )
    return candidate, seen


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own to measure memory costs seconds, and is not the matter here."""
    monkeypatch.setattr(evaluate, "measure_peak_rss", lambda data: 60_000_000)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP32])
def test_a_student_of_few_levels_is_built_and_registered(
    teacher: tuple[TeacherResult, Memory], precision: Precision
) -> None:
    quantisation = QuantisationSpec(scheme=Scheme.CODEBOOK, bits=4, tuning_epochs=1)
    candidate, seen = build_one(teacher, quantisation, precision)
    data = executable_of(teacher[1].get(candidate.digest))
    assert candidate.precision is precision
    assert candidate.metrics.accuracy == accuracy(data)
    assert candidate.metrics.accuracy > teacher[0].accuracy - 0.05
    graph = onnx.load_from_string(data).graph
    weights = [numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) > 1]
    assert len(weights) > 5
    for weight in weights:
        assert max(len(np.unique(row)) for row in weight.reshape(len(weight), -1)) <= 16
    manifest = parse_manifest(
        teacher[1].get(candidate.manifest_digest), expected_digest=candidate.manifest_digest
    )
    assert json.loads(manifest.spec_json)["quantisation"]["scheme"] == "codebook"
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert any("rounding weights: codebook, 4 bits" in message for _, message in seen)


@pytest.mark.usefixtures("quick")
def test_training_for_int8_starts_by_itself_where_rounding_costs_too_much(
    teacher: tuple[TeacherResult, Memory],
) -> None:
    hard = QuantisationSpec(bits=3, tuning_epochs=0, qat_epochs=2)
    content, seen = build_one(teacher, replace(hard, tolerance=1.0))
    assert teacher[0].accuracy - content.metrics.accuracy > 0.05
    assert not any("training for it" in message for _, message in seen)
    trained, seen = build_one(teacher, hard)
    assert trained.metrics.accuracy > content.metrics.accuracy + 0.05
    assert any("training for it" in message for _, message in seen)


def test_one_training_serves_every_number_of_bits(teacher: tuple[TeacherResult, Memory]) -> None:
    plain = training_key(task_of(teacher[0], None))
    for bits in (2, 4, 8):
        assert training_key(task_of(teacher[0], QuantisationSpec(bits=bits))) == plain
