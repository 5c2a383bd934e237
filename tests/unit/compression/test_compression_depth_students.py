"""Students of fewer layers: asked for, built, measured, and cut from a family."""

from __future__ import annotations

import json

import onnx
import pytest
import torch
from compression_networks import Plain, make
from depth_networks import CPU, NOISE
from memory_registry import Memory
from striped_images import striped
from weights_in_memory import Shelf

from cloud.compression import evaluate
from cloud.compression.build import build_student, finish_teacher
from cloud.compression.depth import shorten
from cloud.compression.pack import executable_of
from cloud.compression.roads import make_elastic
from cloud.compression.teacher_weights import load_teacher
from cloud.domain.families import FamilyResult
from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.specs import CompressionSpec, Precision, Road
from cloud.domain.tasks import StudentTask, TeacherResult
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload
from cloud.training.teacher import TeacherTrainer
from edgeloop.artifact import parse_manifest
from edgeloop.errors import ConfigError

torch.set_num_threads(1)


def test_a_spec_says_its_depth_and_one_without_is_what_it_was() -> None:
    assert "depth_ratio" not in CompressionSpec().to_json()
    assert CompressionSpec(depth_ratio=1.0) == CompressionSpec()
    spec = CompressionSpec.from_mapping({"road": "pruned", "depth_ratio": 0.5, "width_ratio": 0.5})
    assert json.loads(spec.to_json())["depth_ratio"] == 0.5
    for value in (0, 1.5, "half", True):
        with pytest.raises(ValueError, match=r"depth_ratio is .*: it must be a number from 0.01 to 1"):
            CompressionSpec.from_mapping({"depth_ratio": value})
    with pytest.raises(ValueError, match=r"depth_ratio is .*, but road is rules"):
        CompressionSpec.from_mapping({"road": "rules", "depth_ratio": 0.5})


DATASET = striped()
WORKLOAD = Workload(
    name="stripes",
    dataset="digits",
    teacher_options={"base_width": 16, "num_stages": 2},
    training=TrainingBudget(num_epochs=4, batch_size=16, learning_rate=5e-3),
    search=SearchBudget(num_calibration_samples=64),
)
PROFILE = DeviceProfile(name="gateway", workload="stripes", match=MatchRule())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "measure_peak_rss", lambda data: 60_000_000)


@pytest.fixture(scope="module")
def trained() -> tuple[TeacherResult, Memory]:
    registry = Memory()
    trainer = TeacherTrainer(WORKLOAD, DATASET, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    return finish_teacher(WORKLOAD, trainer, registry=registry), registry


def task_of(teacher: TeacherResult, **spec: object) -> StudentTask:
    return StudentTask(
        task_id="t", workload=WORKLOAD, teacher=teacher, profile=PROFILE,
        spec=CompressionSpec(**{"num_epochs": 2, "width_ratio": 0.5, **spec}),  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("road", [Road.PRUNED, Road.DISTILLED, Road.SCRATCH])
def test_a_shorter_student_is_built_measured_and_found_again(
    trained: tuple[TeacherResult, Memory], road: Road
) -> None:
    teacher, registry = trained
    assert teacher.num_branches == 2
    shelf, said = Shelf(), []
    task = task_of(teacher, road=road, depth_ratio=0.5, precision=Precision.FP32)
    first = build_student(
        task, registry=registry, report=lambda *_: None, dataset=DATASET, device="cpu", shelf=shelf
    )
    again = build_student(
        task, registry=registry, report=lambda *step: said.append(step[1]), dataset=DATASET, device="cpu",
        shelf=shelf,
    )  # fmt: skip
    assert "trained for another profile already" in said
    assert again.digest == first.digest
    graph = onnx.load_from_string(executable_of(registry.get(first.digest))).graph
    assert sum(node.op_type == "Conv" for node in graph.node) == 4  # of six
    assert sum(node.op_type == "Add" for node in graph.node) == 1  # of two
    assert first.metrics.accuracy > 0.4  # of four classes
    manifest = parse_manifest(registry.get(first.manifest_digest), expected_digest=first.manifest_digest)
    spec_json = manifest.spec_json
    assert json.loads(spec_json)["depth_ratio"] == 0.5


def test_a_teacher_without_branches_is_refused_before_its_student_is_trained(
    trained: tuple[TeacherResult, Memory],
) -> None:
    teacher, registry = trained
    steps: list[str] = []
    task = task_of(teacher, depth_ratio=0.9)
    with pytest.raises(ConfigError, match=r"depth_ratio is 0.9: ResidualCnn has 2 branches .* at most 0.5"):
        build_student(
            task, registry=registry, report=lambda *step: steps.append(step[1]), dataset=DATASET, device="cpu"
        )
    assert not any("epoch" in step for step in steps)
    with pytest.raises(ConfigError, match="Plain has no branch beside a shortcut"):
        shorten(make(Plain), NOISE, depth_ratio=0.5, batch_size=16, device=CPU)


def test_a_cut_of_the_family_becomes_shorter_only_where_it_is_trained(
    trained: tuple[TeacherResult, Memory],
) -> None:
    teacher, registry = trained
    task = task_of(teacher, road=Road.ELASTIC, depth_ratio=0.5, num_epochs=0)
    network = load_teacher(WORKLOAD, DATASET, teacher, registry=registry)
    with pytest.raises(ConfigError, match=r"depth_ratio is 0.5 with num_epochs 0 on road elastic"):
        make_elastic(
            StudentTask(**{**{name: getattr(task, name) for name in task.__slots__}, "family": _no_family()}),
            network, DATASET, device=CPU, registry=registry, report=lambda *_: None,
        )  # fmt: skip


def _no_family() -> FamilyResult:
    return FamilyResult(
        workload="stripes", teacher_key="k", family_key="f", checkpoint_digest="", num_epochs=1, train_s=0.0,
        narrowest=0.125, widths=(),
    )  # fmt: skip
