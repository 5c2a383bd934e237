"""``edgeloop check`` and the other words that are said before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import compression_networks as nets
import numpy as np
import pytest
import torch
from compression_networks import INPUT_SHAPE, make
from torch import nn

from cloud.cli import app as cli
from cloud.compression.budget import check_artifact_bytes, check_calibration, check_epochs, narrowest
from cloud.compression.dependency import trace_channels
from cloud.compression.export import export_onnx
from cloud.domain.profiles import Constraints
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.workloads import SearchBudget, Workload
from cloud.training.datasets import Dataset, Split
from edgeloop.errors import ConfigError

torch.set_num_threads(1)

CODE = """
import numpy as np
from torch import nn
from compression_own_networks import ClosedTransformer

def load():
    answer = {}
    for split in ("train", "validation", "test"):
        answer[split + "_inputs"] = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)
        answer[split + "_labels"] = np.arange(40) % 5
    return answer

def build(small=False):
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))
    return dense if small else ClosedTransformer()
"""


def write(folder: Path, *, artifact_bytes: int = 100_000, small: str = "false") -> list[str]:
    (folder / "my_preview.py").write_text(CODE)
    (folder / "both.yaml").write_text(
        "kind: Workload\nname: mine\ndataset: my_preview:load\nteacher: my_preview:build\n"
        f"teacher_options: {{small: {small}}}\n"
        "search: {width_ratios: [1.0, 0.25]}\n---\n"
        "kind: Fleet\nworkload: mine\nprofiles:\n"
        f"- {{name: small, match: {{}}, constraints: {{artifact_bytes: {artifact_bytes}}}}}\n"
    )
    return ["check", "-f", str(folder / "both.yaml")]


def test_check_shows_groups_frozen_layers_and_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.app([*write(tmp_path), "-o", "json"], standalone_mode=False)
    (found,) = json.loads(capsys.readouterr().out)
    assert found["num_samples"] == [40, 40, 40]
    heads = next(group for group in found["groups"] if group["layers"][0] == "attn.query")
    assert heads == {
        "layers": ["attn.query", "attn.key", "attn.value"], "num_units": 4, "unit_size": 8, "kept": [4, 1],
    }  # fmt: skip
    assert found["frozen"][0]["operation"] == "encoder.0.norm1"
    assert found["rewritten"] == ["attn", "encoder"]
    teacher, student = found["sizes"]
    assert student["cost"]["num_parameters"] < teacher["cost"]["num_parameters"]
    assert student["int8_bytes"] > 0


def test_check_refuses_a_profile_that_no_student_can_meet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["edgeloop", *write(tmp_path, artifact_bytes=9, small="true")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.EXIT_USAGE
    assert "profile small: constraints.artifact_bytes is 9: the narrowest student" in capsys.readouterr().err


def test_a_layer_that_cannot_be_traced_is_named_with_its_line() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Sequential(nn.ReLU(), Branching()))
    said = r"cannot be traced in layer 1.1: .* at test_compression_preview.py:\d+; forward must not branch"
    with pytest.raises(ConfigError, match=said):
        trace_channels(model, INPUT_SHAPE)


def test_a_layer_that_cannot_be_exported_is_named() -> None:
    class Orthogonal(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.qr(x.flatten(2))[0].flatten(1)

    model = nn.Sequential(nn.Conv2d(1, 8, 3), Orthogonal(), nn.Linear(64, 5)).eval()
    with pytest.raises(ConfigError, match="ONNX in layer 1: it has no counterpart for linalg_qr"):
        export_onnx(model, INPUT_SHAPE)


def test_budgets_that_leave_room_for_nothing_are_named() -> None:
    model = make(nets.Residual)
    least = narrowest(model, trace_channels(model, INPUT_SHAPE), INPUT_SHAPE).num_parameters
    assert least < sum(p.numel() for p in model.parameters())
    check_artifact_bytes(Constraints(artifact_bytes=least), least, "small")
    with pytest.raises(ConfigError, match=r"profile small: constraints\.artifact_bytes is 50"):
        check_artifact_bytes(Constraints(artifact_bytes=50), least, "small")
    check_epochs(CompressionSpec(num_epochs=0))
    with pytest.raises(ConfigError, match="num_epochs is 0 on road scratch"):
        check_epochs(CompressionSpec(num_epochs=0, road=Road.SCRATCH))


@pytest.mark.parametrize(
    ("there", "wanted", "said"),
    [(40, 0, r"search\.num_calibration_samples: 0 samples are too few"), (5, 64, "train_inputs: 5 samples")],
)
def test_an_empty_calibration_set_is_named(there: int, wanted: int, said: str) -> None:
    split = Split(inputs=np.zeros((there, 1, 8, 8), np.float32), labels=np.arange(there) % 5)
    dataset = Dataset(train=split, validation=split, test=split, num_classes=5)
    workload = Workload(name="w", dataset="digits", search=SearchBudget(num_calibration_samples=wanted))
    with pytest.raises(ConfigError, match=said):
        check_calibration(workload, dataset)
