"""Rules from a teacher: what mixup and refining buy, what is reported, and that the text says what is run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rules_reading import interpret
from rules_scene import (
    CPU,
    SMALL,
    SUMS,
    WORKLOAD,
    Trained,
    accuracy,
    fit,
    quiet,
    train_teacher,
    unseen,
)
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import nn

from cloud.compression import evaluate, rule_lesson
from cloud.compression.build import build_student
from cloud.compression.rule_bins import Binner
from cloud.compression.rule_lesson import prepare_lesson
from cloud.compression.rule_lists import covers, fit_rule_list
from cloud.compression.rule_trees import grow, refine
from cloud.compression.rules import booster_model, fit_rules
from cloud.domain.candidates import Candidate
from cloud.domain.profiles import Constraints, DeviceProfile, MatchRule
from cloud.domain.rules import RuleKind, RuleLabels, RuleSpec
from cloud.domain.specs import CompressionSpec, Precision, Road
from cloud.domain.tasks import StudentTask
from cloud.rules_text import describe_rules, feature_name
from cloud.training.datasets import check_dataset
from cloud.training.teacher import predict
from edgeloop import rules
from edgeloop.artifact import check_artifact, golden_arrays, parse_manifest
from edgeloop.errors import ConfigError

torch.set_num_threads(1)


PROFILE = DeviceProfile(name="gateway", workload="digits", match=MatchRule())
PLAIN = RuleSpec(num_mixup_samples=0, num_starts=1, num_refine_rounds=0, labels=RuleLabels.DATA)
LIST = replace(SMALL, kind=RuleKind.RULE_LIST, max_leaves=30)
BOOSTED = replace(SMALL, kind=RuleKind.BOOSTED, max_depth=3, max_leaves=8, num_trees=5)
KINDS = pytest.mark.parametrize(
    "spec", [SMALL, SUMS, LIST, BOOSTED], ids=["tree", "tree-of-sums", "rule-list", "boosted"]
)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train_teacher()


def test_mixup_points_that_the_teacher_labels_make_a_tree_of_one_size_better(trained: Trained) -> None:
    dataset = trained[0].dataset
    more = replace(PLAIN, num_mixup_samples=12_000, labels=RuleLabels.TEACHER)
    hard, taught = fit(trained, PLAIN), fit(trained, more)
    assert max(len(hard.leaves), len(taught.leaves)) <= PLAIN.max_leaves
    assert max(rules.longest_walk(hard) + rules.longest_walk(taught)) <= PLAIN.max_depth
    assert accuracy(taught, dataset) > accuracy(hard, dataset) + 0.015


def test_refining_improves_a_tree_without_growing_it(trained: Trained) -> None:
    trainer = trained[0]
    lesson = prepare_lesson(trainer.model, trainer.dataset, SMALL, seed=0, device=CPU)
    binner = Binner.fit(lesson.inputs)
    bins = binner.transform(lesson.inputs)
    tree = grow(bins, lesson, SMALL, seed=0)
    num_nodes = len(tree.feature)
    history = refine(tree, bins, lesson.targets, num_rounds=10)
    assert history == sorted(history)
    assert history[-1] > history[0]
    assert len(tree.feature) == num_nodes
    assert history[-1] == pytest.approx((tree.labels[tree.leaves(bins)] == lesson.classes).mean())


def test_bins_part_inputs_where_thresholds_do(trained: Trained) -> None:
    inputs = trained[0].dataset.train.inputs.reshape(len(trained[0].dataset.train), -1)
    binner = Binner.fit(inputs)
    bins = binner.transform(inputs)
    for feature in (3, 20, 43):
        for cut in range(len(binner.cuts[feature])):
            lower = inputs[:, feature] <= binner.threshold(feature, cut)
            assert np.array_equal(bins[:, feature] <= cut, lower)
    assert len(binner.cuts[0]) == 0  # the first pixel is never anything but white


@KINDS
def test_the_same_seed_gives_the_same_rules(trained: Trained, spec: RuleSpec) -> None:
    assert rules.encode(fit(trained, spec)) == rules.encode(fit(trained, spec))
    assert rules.encode(fit(trained, spec)) != rules.encode(fit(trained, spec, seed=1))


@pytest.mark.parametrize("kind", [RuleKind.TREE, RuleKind.BOOSTED])
def test_soft_labels_are_a_lesson_of_their_own(trained: Trained, kind: RuleKind) -> None:
    hard = replace(SMALL if kind is RuleKind.TREE else BOOSTED, num_mixup_samples=1000)
    soft = fit(trained, replace(hard, labels=RuleLabels.SOFT))
    assert rules.encode(soft) != rules.encode(fit(trained, hard))
    assert accuracy(soft, trained[0].dataset) > 0.7


def test_a_rule_list_keeps_to_its_bounds_and_decides_in_order(trained: Trained) -> None:
    trainer = trained[0]
    spec = replace(LIST, max_leaves=12, max_depth=3)
    lesson = prepare_lesson(trainer.model, trainer.dataset, spec, seed=0, device=CPU)
    binner = Binner.fit(lesson.inputs)
    found = fit_rule_list(lesson, spec, binner=binner, seed=0, report=quiet)
    assert 5 <= len(found) <= 12
    assert max(map(len, found)) <= 3
    model = fit(trained, spec)
    inputs, _ = unseen(trainer.dataset)
    bins = binner.transform(inputs.reshape(len(inputs), -1))
    decided = np.full(len(inputs), len(found))
    for number in range(len(found) - 1, -1, -1):
        decided[covers(found[number], bins)] = number
    outputs = evaluate.load(rules.encode(model)).run(inputs)
    assert np.array_equal(outputs, model.leaves[decided])
    assert len(np.unique(decided)) > 5


@pytest.mark.parametrize("num_classes", [2, 4])
def test_boosted_trees_give_what_scikit_learn_gives(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(400, 5)).astype(np.float32)
    labels = (np.abs(inputs[:, 0] + inputs[:, 1] ** 2) * 2).astype(int) % num_classes
    booster = HistGradientBoostingClassifier(max_iter=8, max_depth=3, early_stopping=False).fit(
        inputs, labels
    )
    found = evaluate.load(rules.encode(booster_model(booster, (5,), num_classes))).run(inputs)
    wanted = booster.decision_function(inputs)
    if num_classes == 2:
        wanted = np.stack([np.zeros(len(inputs)), wanted], axis=1)
    assert found == pytest.approx(wanted, abs=1e-5)
    assert np.array_equal(found.argmax(axis=1), booster.predict(inputs))


def build(trained: Trained, spec: RuleSpec, parent: str = "") -> Candidate:
    trainer, teacher, registry = trained
    task = StudentTask(
        task_id="t",
        workload=WORKLOAD,
        teacher=teacher,
        profile=PROFILE,
        spec=CompressionSpec(road=Road.RULES, rules=spec),
        parent_digest=parent,
    )
    return build_student(task, registry=registry, report=quiet, dataset=trainer.dataset, device="cpu")


@KINDS
def test_rules_become_a_measured_candidate_that_a_device_accepts(trained: Trained, spec: RuleSpec) -> None:
    trainer, teacher, registry = trained
    candidate = build(trained, spec)
    data, metrics, dataset = registry.get(candidate.digest), candidate.metrics, trainer.dataset
    manifest = parse_manifest(
        registry.get(candidate.manifest_digest), expected_digest=candidate.manifest_digest
    )
    check_artifact(manifest, data)
    assert (manifest.format, manifest.workload, manifest.profile) == ("rules", "digits", "gateway")
    assert CompressionSpec.from_mapping(json.loads(manifest.spec_json)) == candidate.spec
    runtime = evaluate.load(data)
    inputs, wanted = golden_arrays(manifest)
    assert np.array_equal(runtime.run(inputs), wanted)
    assert candidate.precision is Precision.FP32
    assert (
        metrics.accuracy
        == (runtime.run(dataset.validation.inputs).argmax(1) == dataset.validation.labels).mean()
    )
    assert metrics.accuracy > 0.7
    assert metrics.artifact_bytes == len(data) < teacher.artifact_bytes
    assert 0 < metrics.latency_p50_ms <= metrics.latency_p95_ms
    assert 20e6 < metrics.peak_rss_bytes < 500e6
    assert metrics.macs == 0
    assert metrics.num_parameters == rules.decode(data).num_numbers
    # Fidelity is agreement with the teacher, right or wrong.
    says = predict(trainer.model, dataset.validation.inputs, CPU).argmax(dim=1).numpy()
    assert metrics.fidelity == (runtime.run(dataset.validation.inputs).argmax(1) == says).mean()
    assert (says != dataset.validation.labels).any()


@pytest.mark.parametrize(("slowdown", "rejected"), [(1.3, True), (0.9, False)])
def test_rules_slower_than_their_parent_are_rejected(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, slowdown: float, rejected: bool
) -> None:
    monkeypatch.setattr(evaluate, "measure_peak_rss", lambda data: 60_000_000)
    monkeypatch.setattr(evaluate.Timing, "slowdown_ratio", lambda *_: slowdown)
    large, small = (replace(SMALL, num_mixup_samples=500, max_leaves=leaves) for leaves in (64, 8))
    parent = build(trained, large)
    candidate = build(trained, small, parent=parent.digest)
    assert ("30.0% slower" in candidate.rejected_reason) == rejected
    assert (
        build(trained, large, parent=candidate.digest).rejected_reason == ""
    )  # larger is meant to be slower
    after_network = build(trained, small, parent=trained[1].artifact_digest)
    assert bool(after_network.rejected_reason) == rejected


def test_a_network_may_follow_rules(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "measure_peak_rss", lambda data: 60_000_000)
    trainer, teacher, registry = trained
    parent = build(trained, replace(SMALL, num_mixup_samples=0, max_leaves=8))
    spec = CompressionSpec(width_ratio=0.5, num_epochs=0, precision=Precision.FP32)
    task = StudentTask(
        task_id="n",
        workload=WORKLOAD,
        teacher=teacher,
        profile=PROFILE,
        spec=spec,
        parent_digest=parent.digest,
    )
    candidate = build_student(task, registry=registry, report=quiet, dataset=trainer.dataset, device="cpu")
    assert candidate.parent_digest == parent.digest
    assert candidate.rejected_reason == ""
    assert candidate.metrics.fidelity is None


@pytest.mark.parametrize("kind", list(RuleKind))
def test_cancelling_stops_a_fit(trained: Trained, kind: RuleKind) -> None:
    class CancelledError(Exception):
        pass

    def report(fraction: float, message: str) -> None:
        if fraction > 0.1:
            raise CancelledError

    spec = replace(SMALL, kind=kind, num_mixup_samples=500)
    with pytest.raises(CancelledError):
        fit_rules(trained[0].model, trained[0].dataset, spec, seed=0, device=CPU, report=report)


def test_inputs_too_large_for_rules_are_refused_before_any_work(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trained[0]
    room = 64 * (len(trainer.dataset.train) + 3000)
    monkeypatch.setattr(rule_lesson, "MAX_VALUES", room)
    with pytest.raises(ConfigError, match=r"num_mixup_samples is 4000: .* at most 3000"):
        fit(trained, SMALL)
    fit(trained, replace(SMALL, num_mixup_samples=3000, max_depth=2, num_refine_rounds=0))


def test_a_teacher_of_no_classes_is_refused(trained: Trained) -> None:
    one_number = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(ConfigError, match="one for each of 10 classes"):
        fit_rules(one_number, trained[0].dataset, SMALL, seed=0, device=CPU, report=quiet)


def test_a_teacher_that_gives_no_numbers_is_refused(trained: Trained) -> None:
    broken = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(broken[1].bias, float("nan"))  # type: ignore[arg-type]  # a Linear's bias is a tensor
    with pytest.raises(ConfigError, match="NaN or infinity, first for point 0"):
        fit_rules(broken, trained[0].dataset, SMALL, seed=0, device=CPU, report=quiet)


@KINDS
def test_the_text_says_what_the_runtime_does(trained: Trained, spec: RuleSpec) -> None:
    model = fit(trained, spec)
    lines = describe_rules(model)
    inputs = trained[0].dataset.test.inputs[:120].copy()
    # Half of them are put right on thresholds, where <= and < differ.
    flat = inputs.reshape(len(inputs), -1)
    for row in range(60):
        node = row % len(model.threshold)
        first, last = model.first_term[node : node + 2]
        flat[row, model.feature[first:last]] = 0
        flat[row, model.feature[first]] = model.threshold[node]
    found = evaluate.load(rules.encode(model)).run(inputs).argmax(axis=1)
    names = [feature_name(replace_names(model), feature) for feature in range(64)]
    said = [interpret(lines, dict(zip(names, row, strict=True))) for row in flat]
    assert said == found.tolist()
    assert len(set(said)) > 5


def replace_names(model: rules.RuleModel, names: tuple[str, ...] = ()) -> rules.RuleModel:
    return rules.RuleModel(
        **{**{f: getattr(model, f) for f in rules.RuleModel.__dataclass_fields__}, "names": names}
    )


def test_names_of_the_dataset_stand_in_the_text(trained: Trained) -> None:
    dataset = trained[0].dataset
    names = tuple(f"pixel {number}" for number in range(64))
    named = fit(
        trained,
        replace(SMALL, num_mixup_samples=0, max_depth=2),
        dataset=replace(dataset, feature_names=names),
    )
    again = rules.decode(rules.encode(named))
    lines = describe_rules(again)
    assert re.fullmatch(r"if pixel \d+ <= \S+ and pixel \d+ <= \S+ then class \d, \d+ %", lines[0]), lines[0]
    plain = describe_rules(replace_names(again))
    assert re.fullmatch(r"if x\[\d,\d\] <= \S+ and x\[\d,\d\] <= \S+ then class \d, \d+ %", plain[0]), plain[
        0
    ]


def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    answer: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        answer[f"{split}_inputs"] = rng.normal(size=(8, 3)).astype(np.float32)
        answer[f"{split}_labels"] = np.arange(8) % 2
    return {**answer, **changes}


def test_a_dataset_may_name_its_inputs() -> None:
    assert check_dataset(arrays(), name="d").feature_names == ()
    found = check_dataset(arrays(feature_names=["mean", "peak", "rate"]), name="d")
    assert found.feature_names == ("mean", "peak", "rate")


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", ""], ["a", "b", "\x1b["], ["a", "b", "c" * 65]])
def test_names_that_cannot_be_are_refused(names: list[str]) -> None:
    with pytest.raises(ConfigError, match="feature_names"):
        check_dataset(arrays(feature_names=names), name="d")


def test_bytes_that_no_rules_can_have_are_said_before_anything_is_fitted(trained: Trained) -> None:
    trainer, teacher, registry = trained
    profile = replace(PROFILE, constraints=Constraints(artifact_bytes=60))
    task = StudentTask(
        task_id="t",
        workload=WORKLOAD,
        teacher=teacher,
        profile=profile,
        spec=CompressionSpec(road=Road.RULES),
    )
    told: list[str] = []
    with pytest.raises(
        ConfigError, match=r"profile gateway: constraints\.artifact_bytes is 60: rules for 10"
    ):
        build_student(
            task, registry=registry, report=lambda _, text: told.append(text), dataset=trainer.dataset,
            device="cpu",
        )  # fmt: skip
    assert told == ["loading data and teacher"]
