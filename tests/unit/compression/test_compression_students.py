"""Students: distilled, quantised, chosen by measurement, registered with a manifest that a device accepts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from memory_registry import Memory
from onnx import numpy_helper
from stripes import DATASET, WORKLOAD

from cloud.compression import evaluate
from cloud.compression.build import build_student, finish_teacher
from cloud.compression.distil import distil
from cloud.compression.evaluate import measure_peak_rss
from cloud.compression.pack import executable_of
from cloud.compression.quantise import count_weights, quantise
from cloud.compression.roads import make_student
from cloud.compression.teacher_weights import load_teacher
from cloud.domain.candidates import Candidate
from cloud.domain.profiles import Constraints, DeviceProfile, MatchRule
from cloud.domain.quantisation import QuantisationSpec
from cloud.domain.rungs import next_rung
from cloud.domain.sparsity import SparsitySpec
from cloud.domain.specs import CompressionSpec, Precision, Road
from cloud.domain.tasks import StudentTask, TeacherResult
from cloud.domain.workloads import SearchBudget
from cloud.training.teacher import TeacherTrainer, measure_accuracy
from edgeloop.artifact import check_artifact, golden_arrays, parse_manifest
from edgeloop.errors import ConfigError
from edgeloop.v1 import artifact_pb2

torch.set_num_threads(1)


PROFILE = DeviceProfile(name="gateway", workload="stripes", match=MatchRule())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own to measure memory costs a second each time: only the tests about it pay for it."""
    monkeypatch.setattr(evaluate, "measure_peak_rss", lambda data: 60_000_000)


@pytest.fixture(scope="module")
def trained() -> tuple[TeacherTrainer, TeacherResult, Memory]:
    registry = Memory()
    trainer = TeacherTrainer(WORKLOAD, DATASET, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    return trainer, finish_teacher(WORKLOAD, trainer, registry=registry), registry


def build_one(
    trained: tuple[TeacherTrainer, TeacherResult, Memory], *, parent: str = "", **spec: Any
) -> tuple[Candidate, list[tuple[float, str]]]:
    _, teacher, registry = trained
    task = StudentTask(
        task_id="t",
        workload=WORKLOAD,
        teacher=teacher,
        profile=PROFILE,
        spec=CompressionSpec(**{"num_epochs": 2, **spec}),
        parent_digest=parent,
    )
    seen: list[tuple[float, str]] = []
    candidate = build_student(
        task, registry=registry, report=lambda *step: seen.append(step), dataset=DATASET, device="cpu"
    )
    return candidate, seen


def test_the_teacher_is_registered_and_measured_through_the_runtime(
    trained: tuple[TeacherTrainer, TeacherResult, Memory],
) -> None:
    trainer, teacher, registry = trained
    runtime = evaluate.load(registry.get(teacher.artifact_digest))
    validation = DATASET.validation
    assert evaluate.accuracy(runtime, validation.inputs, validation.labels) == teacher.accuracy > 0.9
    assert teacher.artifact_bytes == len(registry.get(teacher.artifact_digest))
    assert teacher.latency_p50_ms > 0
    assert teacher.reference_p50_ms > 0
    again = load_teacher(WORKLOAD, DATASET, teacher, registry=registry)
    inputs = torch.from_numpy(validation.inputs)
    assert torch.equal(again(inputs), trainer.model.eval()(inputs))


def test_a_student_ships_with_a_manifest_that_a_device_accepts(
    trained: tuple[TeacherTrainer, TeacherResult, Memory],
) -> None:
    candidate, seen = build_one(trained, width_ratio=0.5, precision=Precision.INT8)
    registry = trained[2]
    data = registry.get(candidate.digest)
    manifest = parse_manifest(
        registry.get(candidate.manifest_digest), expected_digest=candidate.manifest_digest
    )
    check_artifact(manifest, data)
    assert (manifest.workload, manifest.profile) == ("stripes", "gateway")
    assert manifest.precision == artifact_pb2.PRECISION_INT8
    assert manifest.accuracy == candidate.metrics.accuracy > 0.85
    assert CompressionSpec.from_mapping(json.loads(manifest.spec_json)) == candidate.spec
    inputs, outputs = golden_arrays(manifest)
    assert 1 <= len(inputs) <= 8
    gap = np.abs(evaluate.load(data).run(inputs) - outputs).max()
    assert gap <= manifest.golden.absolute_tolerance < np.ptp(outputs) / 10
    assert [fraction for fraction, _ in seen] == sorted(fraction for fraction, _ in seen)
    assert seen[-1][0] == 1.0
    metrics = candidate.metrics
    assert metrics.macs < trained[1].macs / 2
    assert metrics.artifact_bytes == manifest.size_bytes == len(data)
    assert metrics.executable_bytes == manifest.executable_size_bytes > len(data) * 1.2
    assert manifest.format == "onnx-packed-v1"
    assert manifest.executable_digest == hashlib.sha256(executable_of(data)).hexdigest()
    assert 20e6 < measure_peak_rss(data) < 500e6
    assert metrics.latency_p50_ms <= metrics.latency_p95_ms


@pytest.mark.parametrize("road", list(Road))
def test_every_road_leads_to_a_network_of_the_same_shape_and_repeats(
    trained: tuple[TeacherTrainer, TeacherResult, Memory], road: Road
) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        teacher = load_teacher(WORKLOAD, DATASET, trained[1], registry=trained[2])
        spec = CompressionSpec(road=road, width_ratio=0.5, num_epochs=1, seed=seed)
        task = StudentTask(task_id="t", workload=WORKLOAD, teacher=trained[1], profile=PROFILE, spec=spec)
        student = make_student(task, teacher, DATASET, device=torch.device("cpu"), report=lambda *_: None)
        return student.state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert first["head.weight"].shape == (4, 16)
    assert first["stem.0.weight"].shape == (8, 1, 3, 3)


def test_the_full_width_pruned_is_the_teacher_itself(
    trained: tuple[TeacherTrainer, TeacherResult, Memory],
) -> None:
    candidate, _ = build_one(trained, width_ratio=1.0, precision=Precision.FP32)
    manifest = parse_manifest(
        trained[2].get(candidate.manifest_digest), expected_digest=candidate.manifest_digest
    )
    assert manifest.executable_digest == trained[1].artifact_digest


def test_auto_ships_one_of_the_two_that_it_measured(
    trained: tuple[TeacherTrainer, TeacherResult, Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    for ratio, wanted in ((0.8, Precision.INT8), (1.5, Precision.FP32)):
        monkeypatch.setattr(evaluate.Timing, "slowdown_ratio", lambda *_, ratio=ratio: ratio)
        candidate, _ = build_one(trained, width_ratio=0.5, num_epochs=0)
        assert candidate.precision is wanted
        raw = trained[2].get(candidate.manifest_digest)
        manifest = parse_manifest(raw, expected_digest=candidate.manifest_digest)
        assert artifact_pb2.Precision.Name(manifest.precision) == f"PRECISION_{wanted.upper()}"


@pytest.mark.parametrize(("slowdown", "rejected"), [(1.3, True), (0.9, False)])
def test_a_student_that_measures_slower_than_its_parent_is_rejected_but_kept(
    trained: tuple[TeacherTrainer, TeacherResult, Memory],
    monkeypatch: pytest.MonkeyPatch,
    slowdown: float,
    rejected: bool,
) -> None:
    parent = trained[1].artifact_digest
    monkeypatch.setattr(evaluate.Timing, "slowdown_ratio", lambda *_: slowdown)
    candidate, _ = build_one(trained, width_ratio=0.5, num_epochs=0, precision=Precision.FP32, parent=parent)
    assert candidate.parent_digest == parent
    assert ("30.0% slower" in candidate.rejected_reason) == rejected
    assert bool(candidate.rejected_reason) == rejected
    assert trained[2].get(candidate.digest)


def test_weights_of_a_changed_teacher_are_refused(
    trained: tuple[TeacherTrainer, TeacherResult, Memory],
) -> None:
    _, teacher, registry = trained
    changed = replace(WORKLOAD, teacher_options={"base_width": 24, "num_stages": 2})
    with pytest.raises(ConfigError, match="train it again"):
        load_teacher(changed, DATASET, teacher, registry=registry)


def test_cancelling_stops_a_build(trained: tuple[TeacherTrainer, TeacherResult, Memory]) -> None:
    class CancelledError(Exception):
        pass

    def report(fraction: float, message: str) -> None:
        if fraction > 0.1:
            raise CancelledError

    task = StudentTask(
        task_id="t", workload=WORKLOAD, teacher=trained[1], profile=PROFILE, spec=CompressionSpec()
    )
    with pytest.raises(CancelledError):
        build_student(task, registry=trained[2], report=report, dataset=DATASET, device="cpu")


def test_int8_halves_nothing_but_bytes(trained: tuple[TeacherTrainer, TeacherResult, Memory]) -> None:
    _, teacher, registry = trained
    data = registry.get(teacher.artifact_digest)
    int8 = quantise(data, DATASET.train.inputs[:64], reduced_range=True)
    assert len(int8) < len(data) / 2
    assert count_weights(int8) == count_weights(data) > 0
    validation = DATASET.validation
    drop = teacher.accuracy - evaluate.accuracy(evaluate.load(int8), validation.inputs, validation.labels)
    assert drop < 0.05


@pytest.mark.parametrize(("reduced", "bound"), [(True, 64), (False, 127)])
def test_reduced_range_keeps_weights_within_seven_bits(
    trained: tuple[TeacherTrainer, TeacherResult, Memory], reduced: bool, bound: int
) -> None:
    import onnx
    from onnx import numpy_helper

    data = trained[2].get(trained[1].artifact_digest)
    graph = onnx.load_from_string(quantise(data, DATASET.train.inputs[:32], reduced_range=reduced)).graph
    weights = [numpy_helper.to_array(t) for t in graph.initializer]
    largest = max(int(np.abs(w.astype(int)).max()) for w in weights if w.dtype == np.int8 and w.ndim > 1)
    assert bound - 1 <= largest <= bound


def test_distilling_keeps_the_best_epoch(trained: tuple[TeacherTrainer, TeacherResult, Memory]) -> None:
    trainer = trained[0]
    student = load_teacher(WORKLOAD, DATASET, trained[1], registry=trained[2])
    ruinous = CompressionSpec(num_epochs=2, learning_rate=9.0)
    device = torch.device("cpu")
    before = measure_accuracy(student, DATASET.validation, device)
    result = distil(
        student,
        trainer.model,
        DATASET,
        spec=ruinous,
        training=WORKLOAD.training,
        device=device,
        report=lambda *_: None,
    )
    assert result.validation_accuracy == measure_accuracy(student, DATASET.validation, device) >= before


def test_a_search_meets_bytes_that_no_plain_student_meets(
    trained: tuple[TeacherTrainer, TeacherResult, Memory],
) -> None:
    _, teacher, registry = trained
    built: list[Candidate] = []

    def build_all(specs: list[CompressionSpec], limit: int | None) -> None:
        profile = replace(PROFILE, constraints=Constraints(artifact_bytes=limit))
        for spec in specs:
            task = StudentTask(task_id="t", workload=WORKLOAD, teacher=teacher, profile=profile, spec=spec)
            built.append(
                build_student(task, registry=registry, report=lambda *_: None, dataset=DATASET, device="cpu")
            )

    tried = [CompressionSpec(width_ratio=0.75, num_epochs=2, precision=Precision.INT8)]
    build_all(tried, None)
    plain = built[0]
    limit = int(plain.metrics.artifact_bytes * 0.8)
    while True:
        more = next_rung(
            tried, built, constraints=Constraints(artifact_bytes=limit),
            budget=SearchBudget(width_ratios=(0.75,)), max_trials=5,
        )  # fmt: skip
        levers = [p for p in more if p.spec.quantisation is not None or p.spec.sparsity is not None]
        if not levers:
            break
        tried += [p.spec for p in levers]
        build_all([p.spec for p in levers], limit)
    assert len(tried) <= 5
    fitting = [c for c in built if c.metrics.artifact_bytes <= limit]
    assert fitting
    assert all(c.spec.width_ratio == 0.75 for c in fitting)
    assert max(c.metrics.accuracy for c in fitting) > 0.8


def test_zeros_survive_rounding_through_a_build(
    trained: tuple[TeacherTrainer, TeacherResult, Memory],
) -> None:
    candidate, _ = build_one(
        trained,
        width_ratio=0.75,
        precision=Precision.INT8,
        sparsity=SparsitySpec(ratio=0.75),
        quantisation=QuantisationSpec(bits=4, qat_epochs=0),
    )
    rounded, _ = build_one(
        trained,
        width_ratio=0.75,
        precision=Precision.INT8,
        quantisation=QuantisationSpec(bits=4, qat_epochs=0),
    )
    graph = onnx.load_from_string(executable_of(trained[2].get(candidate.digest))).graph
    weights = [
        numpy_helper.to_array(t)
        for t in graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
    ]
    values = np.concatenate([w.ravel() for w in weights])
    assert (values == 0).mean() >= 0.74
    assert all(len(np.unique(w)) <= 16 for w in weights)
    assert candidate.metrics.artifact_bytes < rounded.metrics.artifact_bytes
