"""Students that are networks of a workload's own: taught, narrowed, packed, and found again by content."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from memory_registry import Memory
from striped_images import striped
from weights_in_memory import Shelf

from cloud.cli import app as cli
from cloud.compression import evaluate
from cloud.compression import preview as previewing
from cloud.compression.build import build_student, finish_teacher
from cloud.compression.own_networks import check_own_networks, own_network
from cloud.compression.own_students import fresh
from cloud.compression.pack import executable_of
from cloud.compression.shelf import training_key
from cloud.documents import load_documents
from cloud.domain.candidates import Candidate
from cloud.domain.networks import StudentNetwork
from cloud.domain.profiles import Constraints, DeviceProfile, MatchRule
from cloud.domain.quantisation import QuantisationSpec, Scheme
from cloud.domain.sparsity import SparsitySpec
from cloud.domain.specs import CompressionSpec, Precision, Road
from cloud.domain.tasks import StudentTask, TeacherResult
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload
from cloud.job_plans import student_task_id
from cloud.resources import WorkloadDocument
from cloud.training.teacher import TeacherTrainer
from edgeloop.artifact import parse_manifest
from edgeloop.errors import ConfigError, RejectedError

torch.set_num_threads(1)

CODE = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, num_outputs, width):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, stride=2, padding=1)
        nn.init.constant_(self.conv.bias, 0.25)  # begins as its author wants it
        self.head = nn.Linear(width * 36, num_outputs)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))


def tiny(num_outputs, width=16):
    return Tiny(num_outputs, width)


def like(num_outputs):
    from cloud.training.networks import ResidualCnn

    return ResidualCnn(in_channels=1, num_classes=num_outputs, base_width=8, num_stages=2)


def linear(num_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(144, num_outputs))


def wrong(num_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(144, num_outputs + 1))


class Branching(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.head = nn.Linear(144, num_outputs)

    def forward(self, x):
        return self.head(x.flatten(1)) if x.sum() > -1e9 else self.head(-x.flatten(1))
"""
DATA = """
import numpy as np


def load():
    answer = {}
    for split in ("train", "validation", "test"):
        answer[split + "_inputs"] = np.random.default_rng(0).normal(size=(40, 1, 12, 12)).astype(np.float32)
        answer[split + "_labels"] = np.arange(40) % 4
    return answer
"""
DATASET = striped()
PROFILE = DeviceProfile(name="gateway", workload="stripes", match=MatchRule())


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_nets.py").write_text(CODE)
    named = {"tiny": "tiny", "like": "like", "linear": "linear"}
    return Workload(
        name="stripes",
        dataset="digits",
        teacher_options={"base_width": 16, "num_stages": 2},
        training=TrainingBudget(num_epochs=3, batch_size=16, learning_rate=5e-3),
        search=SearchBudget(
            num_calibration_samples=64,
            students=(
                *(StudentNetwork(name=name, network=f"own_nets:{what}") for name, what in named.items()),
                StudentNetwork(
                    name="small", network="residual-cnn", options={"base_width": 8, "num_stages": 1}
                ),
            ),
        ),
        source_dir=str(folder),
    )


@pytest.fixture(scope="module")
def trained(workload: Workload) -> tuple[TeacherResult, Memory]:
    registry = Memory()
    alone = replace(workload, search=SearchBudget())  # or each of its networks would be exported first
    trainer = TeacherTrainer(alone, DATASET, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    return finish_teacher(workload, trainer, registry=registry), registry


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "measure_peak_rss", lambda data: 60_000_000)


def task_of(
    workload: Workload, teacher: TeacherResult, *, profile: DeviceProfile = PROFILE, **spec: Any
) -> StudentTask:
    given = {"road": Road.DISTILLED, "width_ratio": 1.0, "num_epochs": 2, "precision": Precision.FP32, **spec}
    return StudentTask(
        task_id="t", workload=workload, teacher=teacher, profile=profile, spec=CompressionSpec(**given)
    )


def build(trained: tuple[TeacherResult, Memory], task: StudentTask, shelf: Shelf | None = None) -> Candidate:
    return build_student(
        task, registry=trained[1], report=lambda *_: None, dataset=DATASET, device="cpu", shelf=shelf
    )


def weights_of(trained: tuple[TeacherResult, Memory], candidate: Candidate) -> dict[str, tuple[int, ...]]:
    graph = onnx.load_from_string(executable_of(trained[1].get(candidate.digest))).graph
    return {one.name: tuple(one.dims) for one in graph.initializer}


@pytest.mark.parametrize("road", [Road.DISTILLED, Road.SCRATCH])
def test_the_network_itself_is_built_along_both_roads_and_says_so(
    workload: Workload, trained: tuple[TeacherResult, Memory], road: Road
) -> None:
    built = build(trained, task_of(workload, trained[0], network="tiny", road=road, num_epochs=4))
    assert built.metrics.num_parameters == 16 * 9 + 16 + 16 * 36 * 4 + 4
    assert (4, 576) in weights_of(trained, built).values() or (576, 4) in weights_of(trained, built).values()
    assert built.metrics.accuracy > 0.8
    manifest = parse_manifest(trained[1].get(built.manifest_digest), expected_digest=built.manifest_digest)
    assert json.loads(manifest.spec_json)["network"] == "tiny"


def test_the_teacher_teaches_on_one_road_alone(
    workload: Workload, trained: tuple[TeacherResult, Memory]
) -> None:
    made = [build(trained, task_of(workload, trained[0], network="tiny", road=road)) for road in
            (Road.DISTILLED, Road.DISTILLED, Road.SCRATCH)]  # fmt: skip
    assert made[0].digest == made[1].digest != made[2].digest
    others = [replace(made[0].spec, seed=1), replace(made[0].spec, alpha=0.0)]
    assert len({made[0].digest, *(build(trained, replace(task_of(workload, trained[0]), spec=spec)).digest
                                  for spec in others)}) == 3  # fmt: skip


def test_whole_it_begins_as_its_callable_made_it_and_narrower_its_layers_begin_afresh(
    workload: Workload,
) -> None:
    spec = CompressionSpec(network="tiny", road=Road.SCRATCH, width_ratio=1.0)
    whole = fresh(own_network(workload, DATASET, "tiny", seed=3), DATASET, spec)
    assert torch.all(whole.conv.bias == 0.25)  # type: ignore[union-attr]
    again, other = (own_network(workload, DATASET, "tiny", seed=seed) for seed in (3, 4))
    assert torch.equal(whole.head.weight, again.head.weight)  # type: ignore[union-attr,arg-type]
    assert not torch.equal(whole.head.weight, other.head.weight)  # type: ignore[union-attr,arg-type]
    half = fresh(again, DATASET, replace(spec, width_ratio=0.5))
    assert half.conv.weight.shape == (8, 1, 3, 3)  # type: ignore[union-attr]
    assert half.head.weight.shape == (4, 8 * 36)  # type: ignore[union-attr]
    assert not torch.any(half.conv.bias == 0.25)  # type: ignore[union-attr,arg-type]
    assert again.conv.weight.shape == (16, 1, 3, 3), "the network is not changed"  # type: ignore[union-attr]


def test_a_width_that_it_cannot_have_is_refused_with_the_layer(workload: Workload) -> None:
    narrow = CompressionSpec(network="linear", road=Road.SCRATCH, width_ratio=0.5)
    with pytest.raises(RejectedError, match=r"network linear has no channels .* take width_ratio=1"):
        fresh(own_network(workload, DATASET, "linear"), DATASET, narrow)
    with pytest.raises(RejectedError, match=r"network small stays as it is, with 8 channels"):
        fresh(own_network(workload, DATASET, "small"), DATASET, replace(narrow, network="small"))
    assert fresh(own_network(workload, DATASET, "linear"), DATASET, replace(narrow, width_ratio=1.0))


@pytest.mark.parametrize(
    "spec",
    [
        {"precision": Precision.INT8},
        {"width_ratio": 0.5, "quantisation": QuantisationSpec(scheme=Scheme.CODEBOOK, bits=3, qat_epochs=0)},
        {"precision": Precision.INT8, "quantisation": QuantisationSpec(bits=4, qat_epochs=0),
         "sparsity": SparsitySpec(ratio=0.75)},
    ],
    ids=["int8", "half as wide, a codebook", "4 bits and zeros"],
)  # fmt: skip
def test_every_method_works_on_it(
    workload: Workload, trained: tuple[TeacherResult, Memory], spec: dict[str, Any]
) -> None:
    built = build(trained, task_of(workload, trained[0], network="tiny", **spec))
    plain = build(
        trained, task_of(workload, trained[0], network="tiny", width_ratio=spec.get("width_ratio", 1.0))
    )
    assert built.precision is spec.get("precision", Precision.FP32)
    assert built.metrics.num_parameters == plain.metrics.num_parameters
    assert built.metrics.artifact_bytes < plain.metrics.artifact_bytes
    assert built.metrics.accuracy > 0.5


def test_hints_come_from_a_layer_of_the_same_name_and_shape_and_are_refused_otherwise(
    workload: Workload, trained: tuple[TeacherResult, Memory]
) -> None:
    hinted = build(trained, task_of(workload, trained[0], network="like", hint_weight=5.0))
    assert hinted.digest != build(trained, task_of(workload, trained[0], network="like")).digest
    with pytest.raises(
        ConfigError, match=r"search\.students\.tiny: hint_weight: no inner layer .* leave hint_w"
    ):
        build(trained, task_of(workload, trained[0], network="tiny", hint_weight=5.0))


def test_its_weights_are_found_again_by_content_whatever_it_is_called(
    workload: Workload, trained: tuple[TeacherResult, Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf()
    first = build(trained, task_of(workload, trained[0], network="tiny", width_ratio=0.5), shelf)
    network = workload.search.students[0]

    def of(*students: StudentNetwork) -> Workload:
        return replace(workload, search=replace(workload.search, students=students))

    renamed = of(replace(network, name="renamed"))
    changed = of(replace(network, options={"width": 32}))
    task = task_of(renamed, trained[0], network="renamed", width_ratio=0.5)
    with monkeypatch.context() as patched:
        patched.setattr("cloud.compression.roads.make_own", None)  # nothing is trained
        again = build(trained, task, shelf)
    assert again.digest == first.digest
    keys = [training_key(task_of(work, trained[0], network=name, width_ratio=0.5))
            for work, name in ((workload, "tiny"), (renamed, "renamed"), (changed, "tiny"))]  # fmt: skip
    assert keys[0] == keys[1]
    assert keys[0] in shelf.kept
    assert keys[2] != keys[0]
    ids = [student_task_id(work, trained[0], PROFILE, task_of(work, trained[0], network="tiny").spec)
           for work in (workload, changed)]  # fmt: skip
    assert ids[0] != ids[1]
    code = Path(workload.source_dir, "own_nets.py")
    try:
        code.write_text(CODE + "\n# edited\n")
        spec = task_of(workload, trained[0], network="tiny").spec
        assert student_task_id(workload, trained[0], PROFILE, spec) != ids[0]
    finally:
        code.write_text(CODE)
    plain = CompressionSpec()
    without = replace(workload, search=SearchBudget(num_calibration_samples=64))
    assert student_task_id(workload, trained[0], PROFILE, plain) == student_task_id(
        without, trained[0], PROFILE, plain
    )


def test_what_is_wrong_is_said_of_its_field_before_the_teacher_is_trained(workload: Workload) -> None:
    def of(network: str, **options: Any) -> Workload:
        students = (StudentNetwork(name="mine", network=network, options=options),)
        return replace(workload, search=replace(workload.search, students=students))

    for work, said in (
        (of("own_nets:wrong"), r"search\.students\.mine: own_nets:wrong gives \[2, 5\] for 2 samples"),
        (of("own_nets:gone"), r"search\.students\.mine: own_nets has no callable named gone"),
        (
            of("own_nets:tiny", depth=3),
            r"search\.students\.mine\.options: own_nets:tiny takes no argument 'depth'",
        ),
        (of("own_nets:CODE"), r"search\.students\.mine: own_nets has no callable"),
        (of("residual-cnn", base_width=4), r"search\.students\.mine\.options\.base_width is 4"),
        (of("own_nets:Branching"), r"search\.students\.mine: Branching cannot be traced.* must not branch"),
    ):
        with pytest.raises(ConfigError, match=said):
            TeacherTrainer(work, DATASET, device="cpu")
    with pytest.raises(ConfigError, match=r"search\.students\.mine: Branching cannot be traced"):
        check_own_networks(of("own_nets:Branching"), DATASET)


def test_a_student_of_a_network_that_is_gone_or_too_large_is_refused(
    workload: Workload, trained: tuple[TeacherResult, Memory]
) -> None:
    with pytest.raises(ConfigError, match=r"network is 'gone': the workload's search.students has tiny"):
        build(trained, task_of(workload, trained[0], network="gone"))
    small = replace(PROFILE, constraints=Constraints(artifact_bytes=100))
    with pytest.raises(ConfigError, match=r"artifact_bytes is 100: network tiny has 2468 parameters"):
        build(trained, task_of(workload, trained[0], network="tiny", profile=small))
    with pytest.raises(ConfigError, match="num_epochs is 0 on road distilled"):
        build(trained, task_of(workload, trained[0], network="tiny", num_epochs=0))


def test_check_shows_them_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "check_nets.py").write_text(CODE + "\n" + DATA)
    (tmp_path / "both.yaml").write_text(
        "kind: Workload\nname: mine\ndataset: check_nets:load\n"
        "teacher_options: {base_width: 16, num_stages: 1}\n"
        "search:\n  width_ratios: [0.5]\n  students:\n"
        "    tiny: {network: 'check_nets:tiny', options: {width: 16}}\n"
        "    linear: {network: 'check_nets:linear'}\n---\n"
        "kind: Fleet\nworkload: mine\nprofiles:\n- {name: s, match: {}, constraints: {artifact_bytes: 60}}\n"
    )
    (document, _) = load_documents(tmp_path / "both.yaml")
    assert isinstance(document, WorkloadDocument)
    once = previewing.preview(document.to_domain())  # some seconds each time
    monkeypatch.setattr(previewing, "preview", lambda _workload: once)
    command = ["check", "-f", str(tmp_path / "both.yaml")]
    cli.app([*command, "-o", "json"], standalone_mode=False)
    (found,) = json.loads(capsys.readouterr().out)
    tiny, linear = found["students"]
    assert (tiny["name"], tiny["size"]["cost"]["num_parameters"]) == ("tiny", 2468)
    assert tiny["groups"] == [{"layers": ["conv"], "num_units": 16, "unit_size": 1, "kept": [8]}]
    assert tiny["hint_layer"] == ""
    assert linear["least_parameters"] == 580 == linear["size"]["cost"]["num_parameters"]
    assert found["least_parameters"] == 580, "the profile's bytes are held against the smallest network"
    cli.app(command, standalone_mode=False)
    told = capsys.readouterr().out
    assert "network tiny: from 2468 parameters down to 1236" in told
    assert "network linear: it cannot be narrower, so that its width_ratio is 1" in told
