"""Zero weights: chosen, reached step by step, kept through training and int8, and cheap on the wire."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from memory_registry import Memory
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from cloud.compression import evaluate
from cloud.compression.build import build_student, finish_teacher
from cloud.compression.distil import recalibrate
from cloud.compression.export import export_onnx
from cloud.compression.pack import executable_of, pack_onnx
from cloud.compression.quantise import quantise
from cloud.compression.roads import make_student
from cloud.compression.sparsify import Sparsifier, prunable, zero_share
from cloud.domain.candidates import Candidate
from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.sparsity import Scope, SparsitySpec, WeightImportance
from cloud.domain.specs import CompressionSpec, Precision
from cloud.domain.tasks import StudentTask, TeacherResult
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload
from cloud.training.datasets import Dataset, load_dataset
from cloud.training.teacher import TeacherTrainer, measure_accuracy
from edge_agent.selftest import SelfTestJob, run_self_test
from edgeloop.artifact import parse_manifest

torch.set_num_threads(1)

CPU = torch.device("cpu")
PROFILE = DeviceProfile(name="gateway", workload="digits", match=MatchRule())
WORKLOAD = Workload(
    name="digits",
    dataset="digits",
    dataset_options={"image_size": 8},
    teacher_options={"base_width": 16, "num_stages": 2},
    training=TrainingBudget(num_epochs=8, batch_size=64, learning_rate=5e-3),
    search=SearchBudget(num_calibration_samples=64),
)


Trained = tuple[nn.Module, TeacherResult, Memory, Dataset]


@pytest.fixture(scope="module")
def trained() -> Trained:
    dataset, registry = load_dataset(WORKLOAD), Memory()
    trainer = TeacherTrainer(WORKLOAD, dataset, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    result = finish_teacher(WORKLOAD, trainer, registry=registry)
    assert result.accuracy > 0.95
    return trainer.model.eval(), result, registry, dataset


def cut_at_once(trained: Trained, sparsity: SparsitySpec) -> nn.Module:
    model = copy.deepcopy(trained[0])
    Sparsifier.of(sparsity, trained[3], batch_size=64).begin(model, 0)
    return recalibrated(model, trained)


def recalibrated(model: nn.Module, trained: Trained) -> nn.Module:
    recalibrate(model, torch.from_numpy(trained[3].train.inputs), batch_size=64, device=CPU)
    return model


def accuracy(model: nn.Module, trained: Trained) -> float:
    return measure_accuracy(model, trained[3].validation, CPU)


def task_for(trained: Trained, sparsity: SparsitySpec, **spec: object) -> StudentTask:
    values = {"width_ratio": 1.0, "num_epochs": 3, "learning_rate": 3e-3, "sparsity": sparsity}
    return StudentTask(
        task_id="t",
        workload=WORKLOAD,
        teacher=trained[1],
        profile=PROFILE,
        spec=CompressionSpec(**{**values, **spec}),  # type: ignore[arg-type]  # fields by name
    )


def student_for(trained: Trained, sparsity: SparsitySpec, **spec: object) -> nn.Module:
    task = task_for(trained, sparsity, **spec)
    teacher = copy.deepcopy(trained[0])
    return make_student(task, teacher, trained[3], device=CPU, report=lambda *_: None)


def matrices(data: bytes, dtype: type[np.generic]) -> list[NDArray[np.generic]]:
    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(data).graph.initializer]
    return [array for array in arrays if array.dtype == dtype and array.ndim > 1]


def share_of_zeros(weights: list[NDArray[np.generic]]) -> float:
    return sum(int((w == 0).sum()) for w in weights) / sum(w.size for w in weights)


METHODS = [(importance, scope) for importance in WeightImportance for scope in Scope]


@pytest.mark.parametrize(("importance", "scope"), METHODS, ids=lambda value: value.value)
def test_each_method_cuts_exactly_its_share_and_knows_which_weights_count(
    trained: Trained, importance: WeightImportance, scope: Scope
) -> None:
    spec = SparsitySpec(ratio=0.6, importance=importance, scope=scope)
    model = cut_at_once(trained, spec)
    weights = prunable(model)
    total = sum(weight.numel() for weight in weights.values())
    assert abs(zero_share(model) * total - 0.6 * total) <= len(weights)
    shares = [float((weight == 0).float().mean()) for weight in weights.values()]
    if scope is Scope.LAYER:
        assert shares == pytest.approx([0.6] * len(shares), abs=0.02)
    else:
        assert max(shares) - min(shares) > 0.1
        assert max(shares) < 1 - 0.4 * 0.2

    # The same number of weights in each layer, but the wrong ones: by chance.
    chance = copy.deepcopy(trained[0])
    generator = torch.Generator().manual_seed(0)
    for weight, share in zip(prunable(chance).values(), shares, strict=True):
        weight.data[torch.rand(weight.shape, generator=generator) < share] = 0.0
    assert accuracy(model, trained) > accuracy(recalibrated(chance, trained), trained) + 0.15


def test_taylor_and_magnitude_choose_differently(trained: Trained) -> None:
    models = [
        cut_at_once(trained, SparsitySpec(ratio=0.5, importance=importance, scope=Scope.LAYER))
        for importance in WeightImportance
    ]
    first, second = (torch.cat([(w == 0).flatten() for w in prunable(m).values()]) for m in models)
    assert float((first != second).float().mean()) > 0.05


def test_the_depthwise_layers_biases_and_norms_stay_whole() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(32, 3)
    )
    assert set(prunable(model)) == {"0.weight", "4.weight"}


def test_sparsity_grows_step_by_step_and_nothing_that_was_cut_comes_back(trained: Trained) -> None:
    model = copy.deepcopy(trained[0])
    spec = SparsitySpec(ratio=0.8, num_steps=4, begin_ratio=0.0, end_ratio=0.6)
    rule = Sparsifier.of(spec, trained[3], batch_size=64)
    rule.begin(model, 10)
    shares, gone = [zero_share(model)], None
    for step in range(1, 11):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)  # as an optimiser that knows nothing of masks
        rule.after_step(model, step)
        now = torch.cat([(w == 0).flatten() for w in prunable(model).values()])
        assert gone is None or bool((now | ~gone).all())
        gone = now
        shares.append(zero_share(model))
        assert rule.in_force == (step >= 6)
    expected = [0.8 * spec.share_after(n) for n in (1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4)]
    assert shares == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_the_pattern_holds_in_every_group_through_training_and_int8(trained: Trained, pattern: str) -> None:
    spec = SparsitySpec.from_mapping({"pattern": pattern, "num_steps": 2})
    kept, size = (int(part) for part in pattern.split(":"))
    student = student_for(trained, spec, num_epochs=1)
    dataset = trained[3]
    fp32 = export_onnx(student, dataset.input_shape)
    int8 = quantise(fp32, dataset.train.inputs[:64], reduced_range=True)
    for weights in (matrices(fp32, np.float32), matrices(int8, np.int8)):
        assert len(weights) >= 5
        for weight in weights:
            rows = weight.reshape(len(weight), -1)
            groups = rows[:, : rows.shape[1] // size * size].reshape(-1, size)
            assert int((groups != 0).sum(axis=1).max()) <= kept
    assert zero_share(student) == pytest.approx(spec.ratio, abs=0.02)


def test_a_sparse_student_learns_back_stays_sparse_in_int8_and_is_cheap_on_the_wire(trained: Trained) -> None:
    sparsity = SparsitySpec(ratio=0.75)
    student = student_for(trained, sparsity, num_epochs=4)
    assert zero_share(student) == pytest.approx(0.75, abs=0.001)
    teacher_accuracy = trained[1].accuracy
    assert accuracy(student, trained) > teacher_accuracy - 0.04
    assert accuracy(student, trained) > accuracy(cut_at_once(trained, sparsity), trained)

    dataset = trained[3]
    fp32 = export_onnx(student, dataset.input_shape)
    assert share_of_zeros(matrices(fp32, np.float32)) >= 0.745
    assert not any(np.signbit(w[w == 0]).any() for w in matrices(fp32, np.float32))
    int8 = quantise(fp32, dataset.train.inputs[:64], reduced_range=True)
    assert share_of_zeros(matrices(int8, np.int8)) >= share_of_zeros(matrices(fp32, np.float32))
    runtime = evaluate.load(pack_onnx(int8))
    score = evaluate.accuracy(runtime, dataset.validation.inputs, dataset.validation.labels)
    assert score > teacher_accuracy - 0.05

    dense = export_onnx(trained[0], dataset.input_shape)
    dense_int8 = quantise(dense, dataset.train.inputs[:64], reduced_range=True)
    assert len(pack_onnx(fp32)) < 0.4 * len(pack_onnx(dense))
    assert len(pack_onnx(int8)) < 0.55 * len(pack_onnx(dense_int8))
    assert len(pack_onnx(int8)) < 0.4 * len(int8)


def test_a_state_from_before_the_last_cut_is_never_kept(trained: Trained) -> None:
    # Ruinous for what is sparse: without the rule the untouched teacher would stay the best.
    late = SparsitySpec(ratio=0.9, num_steps=1, begin_ratio=1.0, end_ratio=1.0)
    student = student_for(trained, late, num_epochs=2)
    assert zero_share(student) == pytest.approx(0.9, abs=0.001)
    assert accuracy(student, trained) < trained[1].accuracy


def test_without_training_all_is_cut_at_once(trained: Trained) -> None:
    student = student_for(trained, SparsitySpec(ratio=0.5), num_epochs=0)
    assert zero_share(student) == pytest.approx(0.5, abs=0.001)
    assert accuracy(student, trained) > 0.85


def test_a_sparse_packed_student_passes_the_agents_self_test_and_serves_the_same(
    trained: Trained, tmp_path: Path
) -> None:
    registry, dataset = trained[2:]
    task = task_for(trained, SparsitySpec(ratio=0.75), num_epochs=2, precision=Precision.INT8)
    candidate: Candidate = build_student(
        task, registry=registry, report=lambda *_: None, dataset=dataset, device="cpu"
    )
    raw = registry.get(candidate.manifest_digest)
    manifest = parse_manifest(raw, expected_digest=candidate.manifest_digest)
    data = registry.get(candidate.digest)
    assert manifest.format == "onnx-packed-v1"
    assert candidate.metrics.artifact_bytes == len(data) < 0.5 * candidate.metrics.executable_bytes

    (tmp_path / "artifact").write_bytes(data)
    (tmp_path / "manifest").write_bytes(raw)
    job = SelfTestJob(
        artifact_path=tmp_path / "artifact",
        manifest_path=tmp_path / "manifest",
        manifest_digest=candidate.manifest_digest,
    )
    result = run_self_test(job)
    assert result.passed, result

    from edge_agent.runtime import load_artifact, load_onnx

    inputs = dataset.test.inputs[:50]
    served = load_artifact(data, manifest).run(inputs)
    assert np.array_equal(served, load_onnx(executable_of(data)).run(inputs))

    # What was built before is packed in the registry, and can be a parent.
    again = build_student(
        replace(task, parent_digest=candidate.digest),
        registry=registry,
        report=lambda *_: None,
        dataset=dataset,
        device="cpu",
    )
    assert again.digest == candidate.digest
    assert again.rejected_reason == ""
