"""People's own networks and losses, through the same build as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloud.compression import evaluate
from cloud.compression.build import build_student, finish_teacher
from cloud.compression.rule_candidate import build_rules
from cloud.domain.candidates import Candidate
from cloud.domain.losses import Loss
from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.rules import RuleSpec
from cloud.domain.specs import CompressionSpec, Importance, Precision, Road
from cloud.domain.tasks import StudentTask, TeacherResult
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload
from cloud.registry import Registry
from cloud.training.datasets import Dataset, check_dataset
from cloud.training.teacher import TeacherTrainer
from edgeloop.artifact import parse_manifest
from edgeloop.errors import ConfigError

torch.set_num_threads(1)
PROFILE = DeviceProfile(name="gateway", workload="own", match=MatchRule())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process of its own measures is tested with the built-in network."""
    monkeypatch.setattr(evaluate, "measure_peak_rss", lambda data: 60_000_000)


def bright_side(loss: Loss) -> Dataset:
    """Which of five rows is bright; whether the upper half is; by how much."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 160), ("validation", 60), ("test", 60)):
        rows = np.arange(count) % 5
        inputs = rng.normal(0, 0.3, size=(count, 1, 8, 8)).astype(np.float32)
        inputs[np.arange(count), 0, rows] += 1.5
        # No part of the noise: how much of that 8 epochs teach is another on each processor.
        level = np.where(rows < 4, 1, -1).astype(np.float32)
        labels = {Loss.CROSS_ENTROPY: rows, Loss.BINARY: (rows < 4).astype(int), Loss.REGRESSION: level}[loss]
        arrays |= {f"{split}_inputs": inputs, f"{split}_labels": labels}
    return check_dataset(arrays, name="bright:side", loss=loss)


def compress(
    tmp_path: Path, network: str, loss: Loss, epochs: int, **spec: Any
) -> tuple[TeacherResult, Candidate, Registry]:
    """Train the network as its teacher and build one student, as the cluster's tasks do."""
    dataset = bright_side(loss)
    workload = Workload(
        name="own",
        dataset="bright:side",
        teacher=f"compression_own_networks:{network}",
        source_dir=str(Path(__file__).parent),
        training=TrainingBudget(num_epochs=epochs, batch_size=32, learning_rate=5e-3),
        search=SearchBudget(num_calibration_samples=32),
        loss=loss,
    )
    registry = Registry(str(tmp_path / "registry"))
    trainer = TeacherTrainer(workload, dataset, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    teacher = finish_teacher(workload, trainer, registry=registry)
    task = StudentTask(
        task_id="t", workload=workload, teacher=teacher, profile=PROFILE, spec=CompressionSpec(**spec)
    )
    candidate = build_student(task, registry=registry, report=lambda *_: None, dataset=dataset, device="cpu")
    return teacher, candidate, registry


@pytest.mark.parametrize("loss", [Loss.BINARY, Loss.REGRESSION])
def test_rules_for_another_loss_are_refused_by_name(tmp_path: Path, loss: Loss) -> None:
    task = StudentTask(
        task_id="t",
        workload=Workload(name="own", dataset="bright:side", loss=loss),
        teacher=None,  # type: ignore[arg-type]  # nothing of it is asked
        profile=PROFILE,
        spec=CompressionSpec(road=Road.RULES, rules=RuleSpec()),
    )
    with pytest.raises(ConfigError, match=f"road=rules needs a workload of loss cross-entropy, .* {loss}"):
        build_rules(
            task,
            torch.nn.Identity(),
            bright_side(loss),
            registry=Registry(str(tmp_path)),
            device=torch.device("cpu"),
            report=lambda *_: None,
        )


@pytest.mark.timeout(420)  # some 8 s each on an idle core; a busy machine shall not fail them
@pytest.mark.parametrize(
    ("network", "loss", "spec"),
    [
        ("MobileNet", Loss.CROSS_ENTROPY, {"importance": Importance.NORM_SCALE, "pruning_steps": 2}),
        ("VisionTransformer", Loss.REGRESSION, {}),
        ("MobileNet", Loss.BINARY, {"road": Road.DISTILLED}),
    ],
    ids=["mobilenet-classes-in-steps", "transformer-regression", "mobilenet-binary-from-random"],
)
def test_an_own_network_ships_in_int8_at_half_its_width(
    tmp_path: Path, network: str, loss: Loss, spec: dict[str, Any]
) -> None:
    teacher, candidate, registry = compress(
        tmp_path, network, loss, 8, width_ratio=0.5, num_epochs=6, precision=Precision.INT8, **spec
    )
    assert teacher.metric == candidate.metrics.metric == loss.metric
    # Whoever guesses the mean has 0 of regression's.
    assert teacher.accuracy > (0.3 if loss is Loss.REGRESSION else 0.75)
    assert candidate.metrics.accuracy > teacher.accuracy - 0.2
    assert candidate.metrics.num_parameters < 0.6 * teacher.num_parameters
    manifest = parse_manifest(
        registry.get(candidate.manifest_digest), expected_digest=candidate.manifest_digest
    )
    assert manifest.metric == loss.metric
    assert manifest.accuracy == candidate.metrics.accuracy
    assert list(manifest.outputs[0].shape)[1:] == [5 if loss is Loss.CROSS_ENTROPY else 1]
    outputs = evaluate.load(registry.get(candidate.digest)).run(bright_side(loss).test.inputs)
    assert np.isfinite(outputs).all()
