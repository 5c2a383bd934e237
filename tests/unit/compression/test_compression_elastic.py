"""Elastic families: nested widths are the cut networks, training lifts all, a kill costs one epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from compression_networks import INPUT_SHAPE, NETWORKS, make
from memory_registry import Memory
from striped_images import striped
from weights_in_memory import Shelf

from cloud.compression import evaluate
from cloud.compression.build import build_student, finish_teacher
from cloud.compression.cost import measure_cost
from cloud.compression.dependency import trace_channels
from cloud.compression.elastic import scores_from_plain, scores_to_plain
from cloud.compression.family import FamilyTrainer, cut_student, finish_family
from cloud.compression.importance import magnitude
from cloud.compression.shelf import training_key
from cloud.compression.teacher_weights import load_teacher
from cloud.domain.candidates import Candidate
from cloud.domain.families import FamilyResult, FamilySettings, family_key
from cloud.domain.losses import Loss
from cloud.domain.profiles import Constraints, DeviceProfile, MatchRule
from cloud.domain.specs import CompressionSpec, Precision, Road
from cloud.domain.tasks import StudentTask, TeacherResult
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.training import checkpoints
from cloud.training.datasets import Dataset, Split
from cloud.training.teacher import TeacherTrainer, measure_accuracy
from edgeloop.errors import ConfigError, RejectedError

torch.set_num_threads(1)


CPU = torch.device("cpu")
DATASET = striped(noise=0.9)
WORKLOAD = Workload(
    name="stripes",
    dataset="digits",
    teacher_options={"base_width": 32, "num_stages": 2},
    training=TrainingBudget(num_epochs=4, batch_size=16, learning_rate=5e-3),
)
PROFILE = DeviceProfile(name="gateway", workload="stripes", match=MatchRule())
SETTINGS = FamilySettings(num_epochs=3, narrowest=0.125, learning_rate=5e-3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "measure_peak_rss", lambda data: 60_000_000)


@pytest.fixture(scope="module")
def registry() -> Memory:
    return Memory()


@pytest.fixture(scope="module")
def teacher(registry: Memory) -> TeacherResult:
    trainer = TeacherTrainer(WORKLOAD, DATASET, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    return finish_teacher(WORKLOAD, trainer, registry=registry)


def trainer_of(
    teacher: TeacherResult, registry: Memory, settings: FamilySettings = SETTINGS
) -> FamilyTrainer:
    model = load_teacher(WORKLOAD, DATASET, teacher, registry=registry)
    key = family_key(teacher.checkpoint_digest, settings)
    return FamilyTrainer(WORKLOAD, model, DATASET, settings, key=key, device="cpu")


def accuracies(trainer: FamilyTrainer) -> dict[float, float]:
    widths = trainer.elastic.widths(trainer.settings.narrowest)
    return {width: measure_accuracy(trainer.cut(width), DATASET.validation, CPU) for width in widths}


@pytest.fixture(scope="module")
def trained(
    teacher: TeacherResult, registry: Memory
) -> tuple[dict[float, float], FamilyTrainer, FamilyResult]:
    trainer = trainer_of(teacher, registry)
    before = accuracies(trainer)
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    return before, trainer, finish_family(trainer, teacher, registry=registry)


def test_training_lifts_every_narrow_width_and_keeps_the_widest(
    trained: tuple[dict[float, float], FamilyTrainer, FamilyResult],
) -> None:
    before, trainer, family = trained
    after = accuracies(trainer)
    narrowest = min(before)
    assert before[narrowest] < 0.7
    assert after[narrowest] > before[narrowest] + 0.15
    assert after[1.0] >= before[1.0] - 0.03
    assert min(accuracy for width, accuracy in after.items() if width > narrowest) > 0.95
    assert [found.width_ratio for found in family.widths] == sorted(before)
    assert {found.width_ratio: found.accuracy for found in family.widths} == after
    assert family.widths[0].macs < family.widths[-1].macs / 8


def test_a_killed_training_goes_on_as_if_it_had_never_stopped(
    teacher: TeacherResult, registry: Memory
) -> None:
    settings = replace(SETTINGS, num_epochs=2)
    straight, first = trainer_of(teacher, registry, settings), trainer_of(teacher, registry, settings)
    straight.run_epoch()
    straight.run_epoch()
    first.run_epoch()
    state = checkpoints.from_bytes(checkpoints.to_bytes(first.state_dict()))
    resumed = trainer_of(teacher, registry, settings)
    resumed.load_state_dict(state)
    assert resumed.epoch == 1
    resumed.run_epoch()
    wanted, found = straight.elastic.model.state_dict(), resumed.elastic.model.state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted if "running" not in name)
    other = trainer_of(teacher, registry, replace(settings, seed=5))
    with pytest.raises(RejectedError, match="family"):
        other.load_state_dict(state)


def _task(teacher: TeacherResult, profile: DeviceProfile) -> StudentTask:
    spec = CompressionSpec(road=Road.PRUNED, width_ratio=0.5, num_epochs=1)
    return StudentTask(task_id="x", workload=WORKLOAD, teacher=teacher, profile=profile, spec=spec)


def build(
    teacher: TeacherResult, registry: Memory, family: FamilyResult | None, *, shelf: Shelf | None = None,
    profile: DeviceProfile = PROFILE, workload: Workload = WORKLOAD, **spec: object,
) -> tuple[Candidate, list[str]]:  # fmt: skip
    task = StudentTask(
        task_id="t",
        workload=workload,
        teacher=teacher,
        profile=profile,
        spec=CompressionSpec(**{"road": Road.ELASTIC, "num_epochs": 0, "width_ratio": 0.5, **spec}),  # type: ignore[arg-type]
        family=family,
    )
    words: list[str] = []
    candidate = build_student(
        task, registry=registry, report=lambda _, text: words.append(text), dataset=DATASET,
        device="cpu", shelf=shelf,
    )  # fmt: skip
    return candidate, words


def test_a_student_is_cut_without_training_and_is_what_the_family_promised(
    trained: tuple[dict[float, float], FamilyTrainer, FamilyResult], teacher: TeacherResult, registry: Memory
) -> None:
    _, _, family = trained
    candidate, words = build(teacher, registry, family, precision=Precision.FP32)
    assert not any("epoch" in word for word in words)
    promised = family.of_width(0.5)
    assert promised is not None
    assert candidate.metrics.macs == promised.macs
    assert candidate.metrics.accuracy == pytest.approx(promised.accuracy, abs=0.02)
    int8, _ = build(teacher, registry, family, precision=Precision.INT8)
    assert int8.metrics.accuracy > 0.9


def test_a_cut_student_may_be_distilled_further(
    trained: tuple[dict[float, float], FamilyTrainer, FamilyResult], teacher: TeacherResult, registry: Memory
) -> None:
    _, words = build(teacher, registry, trained[2], num_epochs=1, precision=Precision.FP32)
    assert any("epoch 1/1" in word for word in words)


def test_a_cut_becomes_shorter_where_it_is_trained_and_is_refused_where_it_is_not(
    trained: tuple[dict[float, float], FamilyTrainer, FamilyResult], teacher: TeacherResult, registry: Memory
) -> None:
    whole, _ = build(teacher, registry, trained[2], precision=Precision.FP32)
    short, words = build(
        teacher, registry, trained[2], num_epochs=1, depth_ratio=0.5, precision=Precision.FP32
    )
    assert any("epoch 1/1" in word for word in words)
    assert short.metrics.num_parameters < whole.metrics.num_parameters
    with pytest.raises(ConfigError, match=r"depth_ratio is 0.5 with num_epochs 0 on road elastic"):
        build(teacher, registry, trained[2], depth_ratio=0.5)


def test_a_family_of_two_depths_is_cut_at_either_without_training(
    teacher: TeacherResult, registry: Memory
) -> None:
    trainer = trainer_of(teacher, registry, replace(SETTINGS, num_epochs=2, depth_ratios=(0.5,)))
    before = measure_accuracy(trainer.cut(0.25, 0.5), DATASET.validation, CPU)
    trainer.run_epoch()
    kept = checkpoints.to_bytes(trainer.state_dict())
    trainer.run_epoch()
    again = trainer_of(teacher, registry, trainer.settings)
    again.load_state_dict(checkpoints.from_bytes(kept))
    again.run_epoch()
    assert torch.equal(
        again.elastic.model.state_dict()["head.weight"], trainer.elastic.model.state_dict()["head.weight"]
    )
    after = measure_accuracy(trainer.cut(0.25, 0.5), DATASET.validation, CPU)
    assert after > max(before, 0.6)
    family = finish_family(trainer, teacher, registry=registry)
    assert family.depth_ratios == (0.5,)
    short, words = build(
        teacher, registry, family, width_ratio=0.25, depth_ratio=0.5, precision=Precision.FP32
    )
    assert not any("epoch" in word for word in words)
    assert short.metrics.accuracy == pytest.approx(after, abs=0.02)
    cost = measure_cost(trainer.cut(0.25, 0.5), DATASET.input_shape)
    assert short.metrics.num_parameters == cost.num_parameters
    with pytest.raises(ConfigError, match=r"depth_ratio is 0.25 with num_epochs 0"):
        build(teacher, registry, family, depth_ratio=0.25)


def test_a_width_outside_of_the_family_is_refused_by_name(
    trained: tuple[dict[float, float], FamilyTrainer, FamilyResult], teacher: TeacherResult, registry: Memory
) -> None:
    family = trained[2]
    assert family.of_width(0.1) is None
    with pytest.raises(RejectedError, match=r"width_ratio is 0.1: .* down to 0.125"):
        build(teacher, registry, family, width_ratio=0.1)
    with pytest.raises(RejectedError, match="not trained yet"):
        build(teacher, registry, None)


def test_bytes_that_no_student_can_have_are_said_before_anything_is_cut(
    trained: tuple[dict[float, float], FamilyTrainer, FamilyResult], teacher: TeacherResult, registry: Memory
) -> None:
    profile = replace(PROFILE, constraints=Constraints(artifact_bytes=40))
    with pytest.raises(ConfigError, match=r"profile gateway: constraints\.artifact_bytes is 40"):
        build(teacher, registry, trained[2], profile=profile)


def test_a_family_of_another_network_is_refused(
    trained: tuple[dict[float, float], FamilyTrainer, FamilyResult], registry: Memory
) -> None:
    other = make(NETWORKS[0])
    with pytest.raises(ConfigError, match="changed"):
        cut_student(trained[2], other, replace(DATASET, train=_shrunk(DATASET.train)), WORKLOAD, 0.5,
                    registry=registry, device=CPU)  # fmt: skip


def _shrunk(split: Split) -> Split:
    return Split(inputs=split.inputs[:, :, :8, :8].copy(), labels=split.labels)


def test_scores_travel_by_group_and_position() -> None:
    model = make(NETWORKS[2])
    graph = trace_channels(model, INPUT_SHAPE)
    scores = magnitude()(model, graph)
    assert scores_from_plain(graph, scores_to_plain(graph, scores)) == pytest.approx(scores)
    with pytest.raises(ConfigError, match="does not fit"):
        scores_from_plain(graph, {"stem": [1.0]})


def test_a_second_profile_measures_again_and_trains_nothing(teacher: TeacherResult, registry: Memory) -> None:
    shelf = Shelf()
    first, words = build(teacher, registry, None, shelf=shelf, road=Road.PRUNED, num_epochs=1)
    assert any("epoch 1/1" in word for word in words)
    other = replace(PROFILE, name="other", instruction_sets=frozenset({"avx512_vnni"}))
    second, words = build(teacher, registry, None, shelf=shelf, road=Road.PRUNED, num_epochs=1, profile=other)
    assert not any("epoch" in word for word in words)
    assert second.profile == "other"
    assert second.metrics.num_parameters == first.metrics.num_parameters
    assert len(shelf.kept) == 2, "the weights, and what the teacher says of the one view"
    assert shelf.get(training_key(_task(teacher, other))) is not None


def test_weights_on_the_shelf_that_do_not_fit_are_made_again(
    teacher: TeacherResult, registry: Memory
) -> None:
    shelf = Shelf()
    build(teacher, registry, None, shelf=shelf, road=Road.SCRATCH, num_epochs=1)
    (key,) = shelf.kept
    shelf.kept[key] = b"torn"
    _, words = build(teacher, registry, None, shelf=shelf, road=Road.SCRATCH, num_epochs=1)
    assert any("epoch 1/1" in word for word in words)
    assert len(shelf.kept[key]) > 100


def test_the_name_of_a_training_holds_what_it_depends_on_and_no_more(teacher: TeacherResult) -> None:
    task = StudentTask(
        task_id="t", workload=WORKLOAD, teacher=teacher, profile=PROFILE, spec=CompressionSpec()
    )
    same = (
        replace(task, task_id="u"),
        replace(
            task, profile=replace(PROFILE, name="b", num_threads=4, instruction_sets=frozenset({"i8mm"}))
        ),
        replace(task, spec=CompressionSpec(precision=Precision.INT8)),
        replace(task, spec=CompressionSpec(learning_rate=WORKLOAD.training.student_learning_rate)),
        replace(task, workload=replace(WORKLOAD, search=replace(WORKLOAD.search, max_trials=1))),
    )
    assert {training_key(other) for other in same} == {training_key(task)}
    for other in (
        replace(task, spec=CompressionSpec(width_ratio=0.75)),
        replace(task, spec=CompressionSpec(seed=1)),
        replace(task, spec=CompressionSpec(learning_rate=1e-4)),
        replace(task, spec=CompressionSpec(num_epochs=1)),
        replace(task, workload=replace(WORKLOAD, training=replace(WORKLOAD.training, batch_size=8))),
        replace(task, teacher=replace(teacher, checkpoint_digest="0" * 64)),
    ):
        assert training_key(other) != training_key(task)


def test_a_regression_has_a_family_too() -> None:
    def numbers(split: Split) -> Split:
        return Split(inputs=split.inputs, labels=split.labels[:, None].astype(np.float32))

    dataset = Dataset(
        train=numbers(DATASET.train),
        validation=numbers(DATASET.validation),
        test=numbers(DATASET.test),
        num_classes=1,
        loss=Loss.REGRESSION,
    )
    workload = replace(WORKLOAD, loss=Loss.REGRESSION)
    trainer = TeacherTrainer(workload, dataset, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    family = FamilyTrainer(workload, trainer.model.eval(), dataset, SETTINGS, key="k", device="cpu")

    def score() -> float:
        return measure_accuracy(family.cut(0.25), dataset.validation, CPU, dataset.loss)

    before = score()
    while family.epoch < family.num_epochs:
        family.run_epoch()
    assert score() > before + 0.05
