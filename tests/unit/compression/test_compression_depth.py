"""Shorter networks: which branches may go, that nothing of them is left, and that the rest is what it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from compression_networks import INPUT_SHAPE, Plain, Repeated, Residual, make
from compression_own_networks import Block, ClosedTransformer, MobileNet, MobileNetV3, VisionTransformer
from memory_registry import Memory
from striped_images import striped
from torch import Tensor, nn
from weights_in_memory import Shelf

from cloud.compression import evaluate
from cloud.compression.attention import open_attention
from cloud.compression.branches import check_depth, find_branches, remove_branch
from cloud.compression.build import build_student, finish_teacher, make_elastic
from cloud.compression.dependency import trace_channels
from cloud.compression.depth import measure_loss, shorten
from cloud.compression.elastic import ElasticNetwork
from cloud.compression.export import export_onnx
from cloud.compression.importance import magnitude
from cloud.compression.pack import executable_of
from cloud.compression.quantise import quantise
from cloud.compression.teacher_weights import load_teacher
from cloud.domain.families import FamilyResult
from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.specs import CompressionSpec, Precision, Road, count_branches_kept
from cloud.domain.tasks import StudentTask, TeacherResult
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload
from cloud.training.datasets import Dataset, Split
from cloud.training.networks import ResidualCnn
from cloud.training.teacher import TeacherTrainer
from edgeloop.artifact import parse_manifest
from edgeloop.errors import ConfigError

torch.set_num_threads(1)
CPU = torch.device("cpu")


class Bottleneck(nn.Module):
    """As in ResNet-50: one block with a projection, and one with an identity; ReLUs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.first, self.second = _bottleneck(16, 2), _bottleneck(32, 1)
        self.project = nn.Sequential(nn.Conv2d(16, 32, 1, 2), nn.BatchNorm2d(32))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.first(x)
        out += self.project(x)
        x = self.relu(out)
        out = self.second(x)
        out += x
        result: Tensor = self.head(self.relu(out).mean((2, 3)))
        return result


def _bottleneck(in_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32),
    )  # fmt: skip


class Windows(nn.Module):
    """One-dimensional, with two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 16, 5, stride=2, padding=2)
        self.a, self.b = nn.Conv1d(16, 16, 3, padding=1), nn.Conv1d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x.flatten(2)))
        x = torch.relu(torch.add(x, self.a(x)))
        x = torch.relu(self.b(x).add(x))
        result: Tensor = self.head(x.amax(2))
        return result


class ReadElsewhere(Residual):
    """The inside of its branch also goes to the head."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        inner = torch.relu(self.inner(x))
        x = x + self.outer(inner)
        result: Tensor = self.head(torch.relu(x).mean((2, 3)) + inner[:, :16].mean((2, 3)))
        return result


class InPlace(Residual):
    """Its branch begins by changing what the shortcut carries."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        inner = nn.functional.relu(x, inplace=True)
        x = x + self.outer(self.inner(inner))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class SideBySide(nn.Module):
    """Two sides of as many layers: neither is the shortcut of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3)
        self.left, self.right = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        result: Tensor = self.head(torch.relu(self.left(x) + self.right(x)).mean((2, 3)))
        return result


class TwoSources(SideBySide):
    """What is added comes from another tensor than the longer side."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        longer = self.left(self.left(torch.relu(x)))
        result: Tensor = self.head((longer + self.right(torch.tanh(x))).mean((2, 3)))
        return result


def residual_cnn() -> nn.Module:
    return ResidualCnn(in_channels=1, num_classes=5, base_width=16, num_stages=2, num_blocks=2)


def network_of(kind: Callable[[], nn.Module]) -> nn.Module:
    return open_attention(make(kind))  # type: ignore[arg-type]  # whatever gives a network


SHORTENABLE: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "basic blocks": (residual_cnn, ("blocks.0", "blocks.1", "blocks.2", "blocks.3")),
    "bottleneck": (Bottleneck, ("first", "second")),
    "inverted residual": (MobileNet, ("features.1.conv", "features.3.conv")),
    "squeeze and excite": (MobileNetV3, ("expand.0",)),
    "one dimension": (Windows, ("a", "b")),
    "transformer": (VisionTransformer, ("blocks.0", "blocks.0", "blocks.1", "blocks.1")),
    "torch's transformer": (ClosedTransformer, ("attn", *["encoder.0"] * 2, *["encoder.1"] * 2)),
}


@pytest.mark.parametrize("shape", SHORTENABLE)
def test_without_a_branch_a_network_computes_what_it_computes_with_zeros_there(shape: str) -> None:
    kind, names = SHORTENABLE[shape]
    model = network_of(kind)
    before = copy.deepcopy(model.state_dict())
    branches = find_branches(model, INPUT_SHAPE)
    assert tuple(branch.name for branch in branches) == names
    inputs = torch.randn(6, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(inputs.clone())
        for branch in branches:
            shorter = remove_branch(model, branch, INPUT_SHAPE)
            silent = copy.deepcopy(model)
            last = silent.get_submodule(branch.layers[-1])
            last.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
            found = shorter(inputs.clone())
            assert torch.equal(found, silent(inputs.clone()))
            assert not torch.equal(found, whole)
            assert not shorter.training
            kept = dict(shorter.named_modules())
            assert not kept.keys() & set(branch.layers)
            gone = sum(p.numel() for name in branch.layers for p in model.get_submodule(name).parameters())
            assert _count(shorter) == _count(model) - gone
            assert len(find_branches(shorter, INPUT_SHAPE)) == len(branches) - 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("shape", ["bottleneck", "transformer"])
def test_what_left_is_in_the_onnx_file_no_more(shape: str) -> None:
    model = network_of(SHORTENABLE[shape][0])
    shorter = remove_branch(model, find_branches(model, INPUT_SHAPE)[-1], INPUT_SHAPE)
    files = [onnx.load_from_string(export_onnx(one, INPUT_SHAPE)) for one in (model, shorter)]
    weights = [sum(np.prod(tensor.dims) for tensor in file.graph.initializer) for file in files]
    assert weights[0] - weights[1] >= 0.9 * (_count(model) - _count(shorter)) > 0
    assert len(files[1].graph.node) <= len(files[0].graph.node) - 2
    if shape == "bottleneck":  # two inside, and the one after the sum, whose work the pooled ReLU has done
        relus = [sum(node.op_type == "Relu" for node in file.graph.node) for file in files]
        assert relus == [relus[1] + 3, relus[1]]
    inputs = np.random.default_rng(0).normal(size=(1, *INPUT_SHAPE)).astype(np.float32)
    found = evaluate.load(files[1].SerializeToString()).run(inputs)
    with torch.no_grad():
        assert np.allclose(found, shorter(torch.from_numpy(inputs)).numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", [ReadElsewhere, InPlace, SideBySide, TwoSources, Plain, Repeated])
def test_what_is_used_elsewhere_or_is_no_shortcut_stays(kind: type[nn.Module]) -> None:
    assert find_branches(make(kind), INPUT_SHAPE) == ()


def test_a_sum_that_is_changed_in_place_stays_where_others_read_the_shortcut() -> None:
    class Shared(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x))
            y = nn.functional.relu(x + self.outer(self.inner(x)), inplace=True)
            result: Tensor = self.head((x * y).mean((2, 3)))
            return result

    assert find_branches(make(Shared), INPUT_SHAPE) == ()


def test_a_shorter_network_can_be_narrowed_cut_and_quantised() -> None:
    model = network_of(VisionTransformer)
    shorter = remove_branch(model, find_branches(model, INPUT_SHAPE)[0], INPUT_SHAPE)
    graph = trace_channels(shorter, INPUT_SHAPE)
    elastic = ElasticNetwork(shorter, graph, magnitude()(shorter, graph), INPUT_SHAPE)
    student = elastic.cut(0.5)
    assert _count(student) < _count(shorter)
    inputs = np.random.default_rng(1).normal(size=(16, *INPUT_SHAPE)).astype(np.float32)
    data = quantise(export_onnx(student, INPUT_SHAPE), inputs, reduced_range=True)
    assert np.isfinite(evaluate.load(data).run(inputs[:1])).all()


def noise(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, *INPUT_SHAPE)).astype(np.float32)
    return Split(inputs=inputs, labels=np.arange(count) % 5)


NOISE = Dataset(train=noise(64, 0), validation=noise(10, 1), test=noise(10, 2), num_classes=5)


def test_the_branch_that_costs_least_goes_first_and_the_same_ones_every_time() -> None:
    model = network_of(residual_cnn)
    branches = find_branches(model, INPUT_SHAPE)
    losses = [
        measure_loss(remove_branch(model, branch, INPUT_SHAPE), NOISE, batch_size=16, device=CPU)
        for branch in branches
    ]
    # One of the four is beside a projection, and goes last.
    assert [branch.beside_identity for branch in branches] == [True, True, False, True]
    losses[2] = max(losses) + 1
    least = branches[losses.index(min(losses))].layers
    shorter = shorten(model, NOISE, depth_ratio=0.75, batch_size=16, device=CPU)
    assert not dict(shorter.named_modules()).keys() & set(least)
    assert len(find_branches(shorter, INPUT_SHAPE)) == 3
    half = [shorten(model, NOISE, depth_ratio=0.5, batch_size=16, device=CPU) for _ in range(2)]
    assert [*half[0].state_dict()] == [*half[1].state_dict()]
    assert len(find_branches(half[0], INPUT_SHAPE)) == 2
    one = shorten(model, NOISE, depth_ratio=0.01, batch_size=16, device=CPU)
    assert [branch.name for branch in find_branches(one, INPUT_SHAPE)] == ["blocks.2"]


def test_of_branches_that_cost_the_same_the_later_goes() -> None:
    model = network_of(Windows)
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.weight.zero_()  # type: ignore[union-attr, operator]  # a Conv1d
            layer.bias.zero_()  # type: ignore[union-attr, operator]
    shorter = shorten(model, NOISE, depth_ratio=0.5, batch_size=16, device=CPU)
    assert {"a", "stem"} <= dict(shorter.named_modules()).keys()
    assert "b" not in dict(shorter.named_modules())


def test_an_outer_branch_goes_only_where_enough_stays_without_it() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(64, 16), nn.Linear(16, 5)
            self.inner = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = y = self.stem(x.flatten(1))
            for layer in self.inner:
                y = y + torch.tanh(layer(y))
            result: Tensor = self.head(x + torch.tanh(y))
            return result

    model = make(Nested)
    assert len(find_branches(model, INPUT_SHAPE)) == 4
    shorter = shorten(model, NOISE, depth_ratio=0.5, batch_size=16, device=CPU)
    assert len(find_branches(shorter, INPUT_SHAPE)) == 2


@pytest.mark.parametrize(
    ("count", "ratio", "kept"),
    [(3, 0.67, 2), (3, 0.34, 1), (3, 0.5, 2), (2, 0.5, 1), (8, 0.01, 1), (4, 1, 4)],
)
def test_a_share_of_branches_is_the_nearest_number_and_at_least_one(
    count: int, ratio: float, kept: int
) -> None:
    assert count_branches_kept(count, ratio) == kept


@pytest.mark.parametrize(
    ("count", "ratio", "text"),
    [(0, 0.5, "depth_ratio is 0.5: Net has no branch beside a shortcut; leave depth_ratio out"),
     (1, 0.5, "Net has one branch beside a shortcut, which stays"),
     (3, 0.9, "3 branches beside a shortcut, and so much of them is all; give at most 0.667")],
)  # fmt: skip
def test_a_network_that_cannot_become_shorter_is_refused_by_name(count: int, ratio: float, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_depth(count, ratio, "Net")


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


# Through the whole build.


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


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_block_of_the_transformer_is_two_branches() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(16, 2), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.block(x.reshape(x.shape[0], 4, 16)).mean(1))
            return result

    attention, feed = find_branches(make(One), INPUT_SHAPE)
    assert attention.layers == ("block.norm1", "block.attn.qkv", "block.attn.proj")
    assert feed.layers == ("block.norm2", "block.mlp.0", "block.mlp.2")
