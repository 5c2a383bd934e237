"""Networks without their shortcuts: what goes, what stays, and that the rest computes what it computed."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from compression_networks import INPUT_SHAPE, Plain, Repeated, Residual, make
from compression_own_networks import ClosedTransformer, MobileNet, VisionTransformer
from memory_registry import Memory
from striped_images import striped
from torch import Tensor, nn
from weights_in_memory import Shelf

from cloud.compression import evaluate
from cloud.compression.attention import open_attention
from cloud.compression.branches import find_branches, remove_shortcuts
from cloud.compression.budget import check_epochs
from cloud.compression.build import build_student, finish_teacher
from cloud.compression.depth import without_shortcuts
from cloud.compression.export import export_onnx
from cloud.compression.pack import executable_of
from cloud.compression.quantise import quantise
from cloud.compression.shortcuts import Shortcuts, find_shortcuts
from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.specs import CompressionSpec, Precision, Road
from cloud.domain.tasks import StudentTask
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload
from cloud.training.networks import ResidualCnn
from cloud.training.teacher import TeacherTrainer
from edgeloop.errors import ConfigError

torch.set_num_threads(1)


def residual_cnn() -> ResidualCnn:
    """Four blocks: three beside an identity, one beside a projection."""
    model = ResidualCnn(in_channels=1, num_classes=5, base_width=16, num_stages=2, num_blocks=2)
    for number, norm in enumerate(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, generator=torch.Generator().manual_seed(number))  # type: ignore[arg-type]
        nn.init.normal_(norm.weight, 1.0, 0.2, generator=torch.Generator().manual_seed(number + 99))
    return model.eval()


def operators(data: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


def test_what_is_left_computes_what_the_network_computes_with_zeros_for_shortcuts() -> None:
    model = residual_cnn()
    before = copy.deepcopy(model.state_dict())
    plain, left_alone = remove_shortcuts(model, INPUT_SHAPE)
    silent = copy.deepcopy(model)
    for name, module in silent.named_modules():
        if name.endswith(".shortcut"):
            module.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    inputs = torch.randn(6, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(plain(inputs), silent(inputs))
        assert not torch.allclose(plain(inputs), model(inputs))
    assert left_alone == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    assert find_branches(plain, INPUT_SHAPE) == ()
    assert not any("shortcut" in name for name in plain.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_neither_sums_nor_projections_are_left_to_call_in_fp32_and_int8() -> None:
    model = residual_cnn()
    plain, _ = remove_shortcuts(model, INPUT_SHAPE)
    whole, data = (export_onnx(one, INPUT_SHAPE) for one in (model, plain))
    assert (operators(whole).count("Add"), operators(data).count("Add")) == (4, 0)
    assert operators(whole).count("Conv") - operators(data).count("Conv") == 1
    inputs = np.random.default_rng(1).normal(size=(16, *INPUT_SHAPE)).astype(np.float32)
    int8 = quantise(data, inputs, reduced_range=True)
    assert "Add" not in operators(int8)
    assert np.isfinite(evaluate.load(int8).run(inputs[:1])).all()


@pytest.mark.parametrize(("kind", "count"), [(Residual, 1), (MobileNet, 2), (VisionTransformer, 4)])
def test_other_shapes_lose_theirs_too(kind: type[nn.Module], count: int) -> None:
    model = make(kind)
    plain, left_alone = remove_shortcuts(model, INPUT_SHAPE)
    assert len(left_alone) == count == len(find_branches(model, INPUT_SHAPE))
    inputs = torch.randn(3, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert plain(inputs).shape == model(inputs).shape
        assert not torch.allclose(plain(inputs), model(inputs))


def test_a_shortcut_that_changes_what_its_branch_reads_stays() -> None:
    class Changing(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.beside = nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x))
            beside = self.beside(nn.functional.relu(x, inplace=True))
            result: Tensor = self.head((self.outer(self.inner(x)) + beside).mean((2, 3)))
            return result

    assert remove_shortcuts(make(Changing), INPUT_SHAPE)[1] == ()
    assert find_shortcuts(make(Changing), INPUT_SHAPE).num_dispensable == 0


def test_the_search_may_leave_them_out_of_shallow_networks_alone_and_is_told_why_of_others() -> None:
    found = find_shortcuts(residual_cnn(), INPUT_SHAPE)
    assert (found.num_dispensable, found.needed) == (4, "")
    assert find_shortcuts(make(MobileNet), INPUT_SHAPE).num_dispensable == 2
    deep = ResidualCnn(in_channels=1, num_classes=5, base_width=8, num_stages=2, num_blocks=5).eval()
    found = find_shortcuts(deep, INPUT_SHAPE)
    assert (len(found.beside), found.num_dispensable) == (10, 0)
    assert found.needed == "22 layers in a row would not learn without them, 20 might"
    for kind, count in ((VisionTransformer, 4), (ClosedTransformer, 2)):
        found = find_shortcuts(open_attention(make(kind)), INPUT_SHAPE)
        assert (len(found.beside) >= count, found.num_dispensable) == (True, 0)
        assert found.needed.startswith(("attention", "layers behind LayerNorm"))

    class Mixing(nn.Module):
        """Of LayerNorm without attention."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Linear(64, 32), nn.LayerNorm(32)
            self.inner, self.head = nn.Linear(32, 32), nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x.flatten(1))
            result: Tensor = self.head(x + self.inner(self.norm(x)).relu())
            return result

    found = find_shortcuts(make(Mixing), INPUT_SHAPE)
    assert (found.beside, found.num_dispensable) == (("inner",), 0) or len(found.beside) == 1
    assert "LayerNorm" in found.needed
    assert find_shortcuts(make(Plain), INPUT_SHAPE) == Shortcuts(beside=(), needed="")


@pytest.mark.parametrize("kind", [Plain, Repeated])
def test_a_network_without_shortcuts_is_refused_by_name(kind: type[nn.Module]) -> None:
    spec = CompressionSpec(shortcuts=False)
    with pytest.raises(ConfigError, match=f"shortcuts is false: {kind.__name__} has no shortcut beside"):
        without_shortcuts(spec, make(kind), INPUT_SHAPE)


def test_a_spec_says_so_and_one_that_keeps_them_is_what_it_was() -> None:
    assert "shortcuts" not in CompressionSpec().to_json()
    assert CompressionSpec(shortcuts=True) == CompressionSpec()
    spec = CompressionSpec.from_mapping({"road": "pruned", "shortcuts": False, "width_ratio": 0.5})
    assert json.loads(spec.to_json())["shortcuts"] is False
    assert spec.label == "pruned 0.5 plain"
    for value in (0, 1, "no"):
        with pytest.raises(ValueError, match=r"shortcuts is .*: it must be true or false"):
            CompressionSpec.from_mapping({"shortcuts": value})
    with pytest.raises(ValueError, match=r"shortcuts is False, but road is rules"):
        CompressionSpec.from_mapping({"road": "rules", "shortcuts": False})
    for road in (Road.PRUNED, Road.ELASTIC):
        with pytest.raises(ConfigError, match="shortcuts is false with num_epochs 0"):
            check_epochs(CompressionSpec(road=road, num_epochs=0, shortcuts=False))


DATASET = striped()
WORKLOAD = Workload(
    name="stripes",
    dataset="digits",
    teacher_options={"base_width": 16, "num_stages": 2},
    training=TrainingBudget(num_epochs=4, batch_size=16, learning_rate=5e-3),
    search=SearchBudget(num_calibration_samples=64),
)


def test_a_plain_student_is_built_measured_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "measure_peak_rss", lambda data: 60_000_000)
    registry, shelf = Memory(), Shelf()
    said: list[str] = []
    trainer = TeacherTrainer(WORKLOAD, DATASET, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    spec = CompressionSpec(num_epochs=2, width_ratio=0.5, shortcuts=False, precision=Precision.FP32)
    task = StudentTask(
        task_id="t", workload=WORKLOAD, spec=spec,
        teacher=finish_teacher(WORKLOAD, trainer, registry=registry),
        profile=DeviceProfile(name="gateway", workload="stripes", match=MatchRule()),
    )  # fmt: skip
    built = [
        build_student(
            task, registry=registry, report=lambda *step: said.append(step[1]), dataset=DATASET, device="cpu",
            shelf=shelf,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert said.count("trained for another profile already") == 1
    assert built[0].digest == built[1].digest
    found = operators(executable_of(registry.get(built[0].digest)))
    assert (found.count("Conv"), found.count("Add")) == (5, 0)  # of six, and of two
    assert built[0].metrics.accuracy > 0.4  # of four classes
