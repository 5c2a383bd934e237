"""Turns a teacher into rules: a tree, boosted trees or a rule list, as the model that a device runs.

Boosted trees are scikit-learn's histogram gradient boosting (after Ke et al., "LightGBM", NeurIPS 2017) on
the teacher's labels; with soft labels each point stands once for every class that the teacher deems
possible, weighted by its probability. For trees and lists see ``rule_trees``, ``rule_oblique`` and
``rule_lists``.

Rules: the scores of a leaf are logarithms of probabilities, floored at ``FLOOR``: the shares of the classes
among the real samples that reach it, and for ``PRIOR_SAMPLES`` more those among all points, so that a leaf
that few real samples reach says so. What is fitted in float64 decides alike as float32, but for a sum's
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits
from torch import nn

from cloud.compression.rule_bins import Binner
from cloud.compression.rule_lesson import RuleLesson, prepare_lesson
from cloud.compression.rule_lists import Rule, covers, fit_rule_list
from cloud.compression.rule_oblique import ObliqueTree, fit_oblique_tree
from cloud.compression.rule_trees import BinnedTree, fit_tree
from cloud.domain.rules import RuleKind, RuleLabels, RuleSpec
from cloud.training.datasets import Dataset
from edgeloop.rules import RuleModel, RulesKind, floor32, longest_walk

Report = Callable[[float, str], None]

PRIOR_SAMPLES = 2.0
FLOOR = 1e-4
#: A class that the teacher deems less likely is left out of boosting on soft labels.
MIN_SOFT_WEIGHT = 0.02
LESSON_SHARE = 0.15
_MAX_BOOSTED_LEAVES = 31


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FittedRules:
    """The model, and what it was fitted on."""

    model: RuleModel
    lesson: RuleLesson


def fit_rules(
    teacher: nn.Module, dataset: Dataset, spec: RuleSpec, *, seed: int, device: torch.device, report: Report
) -> FittedRules:
    """Ask the teacher, and fit. ``report`` gets 0 to 1; what it raises stops the fit."""
    report(0.0, "asking the teacher")
    lesson = prepare_lesson(teacher, dataset, spec, seed=seed, device=device)

    def fitting(fraction: float, message: str) -> None:
        report(LESSON_SHARE + (1.0 - LESSON_SHARE) * fraction, message)

    names = dataset.feature_names
    shape, num_classes = dataset.input_shape, dataset.num_classes
    if spec.kind is RuleKind.BOOSTED:
        with threadpool_limits(limits=1):
            model = _boosted(lesson, spec, shape, num_classes, seed=seed, report=fitting)
    else:
        binner = Binner.fit(lesson.inputs)
        bins = binner.transform(lesson.inputs)
        if spec.num_terms > 1:
            with threadpool_limits(limits=1):  # small matrices
                sums = fit_oblique_tree(lesson, spec, binner=binner, seed=seed, report=fitting)
            model = _oblique_model(sums, lesson, shape)
        elif spec.kind is RuleKind.TREE:
            tree = fit_tree(lesson, spec, binner=binner, seed=seed, report=fitting)
            model = _tree_model(tree, lesson, binner, bins, shape)
        else:
            rules = fit_rule_list(lesson, spec, binner=binner, seed=seed, report=fitting)
            model = _list_model(rules, lesson, binner, bins, shape)
    if names:
        model = with_names(model, names)
    longest_walk(model)
    return FittedRules(model=model, lesson=lesson)


def with_names(model: RuleModel, names: Sequence[str]) -> RuleModel:
    """The model with the names of the inputs that it tests; ``names`` has one for each input."""
    values = {field: getattr(model, field) for field in RuleModel.__dataclass_fields__}
    values["names"] = tuple(names[feature] for feature in model.used_features)
    return RuleModel(**values)


def leaf_scores(leaves: NDArray[np.int64], lesson: RuleLesson, num_leaves: int) -> NDArray[np.float32]:
    """Scores ``[leaves, classes]`` from the leaf of each point of the lesson."""
    num_classes = lesson.targets.shape[1]
    every, real = np.zeros((num_leaves, num_classes)), np.zeros((num_leaves, num_classes))
    np.add.at(every, leaves, lesson.targets)
    np.add.at(real, leaves[: lesson.num_real], lesson.targets[: lesson.num_real])
    counts = every.sum(axis=1, keepdims=True)
    overall = every.sum(axis=0) / every.sum()
    prior = np.where(counts > 0, every / np.maximum(counts, 1e-12), overall)
    return log_probabilities(real + PRIOR_SAMPLES * prior)


def log_probabilities(weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Logarithms of the shares in each row, floored."""
    shares = weights / weights.sum(axis=1, keepdims=True)
    scores: NDArray[np.float32] = np.log(np.maximum(shares, FLOOR)).astype(np.float32)
    return scores


def _model(kind: RulesKind, shape: tuple[int, ...], num_classes: int, **parts: Any) -> RuleModel:
    return RuleModel(
        kind=kind,
        input_shape=shape,
        num_classes=num_classes,
        **{"base": np.zeros(num_classes, np.float32), "roots": np.zeros(1, np.int32), **parts},
    )


def _tree_model(
    tree: BinnedTree,
    lesson: RuleLesson,
    binner: Binner,
    bins: NDArray[np.uint8],
    shape: tuple[int, ...],
) -> RuleModel:
    thresholds = [binner.threshold(int(f), int(c)) for f, c in zip(tree.feature, tree.cut, strict=True)]
    return _model(
        RulesKind.TREE,
        shape,
        lesson.targets.shape[1],
        roots=np.array([tree.root], np.int32),
        feature=tree.feature.astype(np.int32),
        threshold=np.array(thresholds, np.float32),
        left=tree.left.astype(np.int32),
        right=tree.right.astype(np.int32),
        leaves=leaf_scores(tree.leaves(bins), lesson, len(tree.labels)),
    )


def _oblique_model(tree: ObliqueTree, lesson: RuleLesson, shape: tuple[int, ...]) -> RuleModel:
    none = np.zeros(0)
    return _model(
        RulesKind.TREE,
        shape,
        lesson.targets.shape[1],
        roots=np.array([tree.root], np.int32),
        num_terms=np.array([len(test.features) for test in tree.tests], np.int32),
        feature=np.concatenate([none, *(test.features for test in tree.tests)]).astype(np.int32),
        weight=np.concatenate([none, *(test.weights for test in tree.tests)]).astype(np.float32),
        threshold=np.array([test.threshold for test in tree.tests], np.float32),
        left=tree.left.astype(np.int32),
        right=tree.right.astype(np.int32),
        leaves=leaf_scores(tree.leaves(lesson.inputs), lesson, len(tree.labels)),
    )


def _list_model(
    rules: list[Rule],
    lesson: RuleLesson,
    binner: Binner,
    bins: NDArray[np.uint8],
    shape: tuple[int, ...],
) -> RuleModel:
    """Each rule is a chain of nodes that ends in its leaf; whatever fails goes on to the next rule."""
    default = -1 - len(rules)
    feature: list[int] = []
    threshold: list[np.float32] = []
    left: list[int] = []
    right: list[int] = []
    leaves = np.full(len(bins), len(rules))
    undecided = np.ones(len(bins), bool)
    for number, rule in enumerate(rules):
        after = len(feature) + len(rule)
        fails = after if number + 1 < len(rules) else default
        for position, condition in enumerate(rule):
            holds = len(feature) + 1 if position + 1 < len(rule) else -1 - number
            feature.append(condition.feature)
            threshold.append(binner.threshold(condition.feature, condition.cut))
            left.append(holds if condition.below else fails)
            right.append(fails if condition.below else holds)
        taken = undecided & covers(rule, bins)
        leaves[taken] = number
        undecided &= ~taken
    return _model(
        RulesKind.RULE_LIST,
        shape,
        lesson.targets.shape[1],
        roots=np.array([0 if rules else -1], np.int32),
        feature=np.array(feature, np.int32),
        threshold=np.array(threshold, np.float32),
        left=np.array(left, np.int32),
        right=np.array(right, np.int32),
        leaves=leaf_scores(leaves, lesson, len(rules) + 1),
    )


def _boosted(
    lesson: RuleLesson,
    spec: RuleSpec,
    shape: tuple[int, ...],
    num_classes: int,
    *,
    seed: int,
    report: Report,
) -> RuleModel:
    rows, classes, weights = np.arange(len(lesson.inputs)), lesson.classes, None
    if spec.labels is RuleLabels.SOFT:
        rows, classes = np.nonzero(lesson.targets >= MIN_SOFT_WEIGHT)
        weights = lesson.targets[rows, classes]
    report(0.0, f"boosting {spec.num_trees} trees a class")
    booster = HistGradientBoostingClassifier(
        max_iter=spec.num_trees,
        learning_rate=spec.learning_rate,
        max_depth=spec.max_depth,
        max_leaf_nodes=min(spec.max_leaves, _MAX_BOOSTED_LEAVES),
        max_bins=63,
        early_stopping=False,
        random_state=seed,
    ).fit(lesson.inputs[rows], classes, sample_weight=weights)
    return booster_model(booster, shape, num_classes)


def booster_model(
    booster: HistGradientBoostingClassifier, shape: tuple[int, ...], num_classes: int
) -> RuleModel:
    """What scikit-learn fitted, tree by tree. Its ``decision_function`` and the model's scores agree."""
    seen = booster.classes_.astype(int).tolist()
    # Of two classes, one number decides: it is the second's, against 0.
    targets = seen if len(seen) > 2 else seen[1:]
    base = np.full(num_classes, np.log(FLOOR), np.float32)  # a class that the teacher never gives
    base[seen] = 0.0
    base[targets] = np.ravel(booster._baseline_prediction)
    parts: dict[str, list[Any]] = {name: [] for name in ("feature", "threshold", "left", "right", "leaves")}
    roots, tree_class = [], []
    for round_of_trees in booster._predictors:
        for target, predictor in zip(targets, round_of_trees, strict=True):
            tree_class.append(target)
            roots.append(_append_tree(predictor.nodes, parts))
    return _model(
        RulesKind.BOOSTED,
        shape,
        num_classes,
        base=base,
        roots=np.array(roots, np.int32),
        tree_class=np.array(tree_class, np.int32),
        feature=np.array(parts["feature"], np.int32),
        threshold=floor32(parts["threshold"]),
        left=np.array(parts["left"], np.int32),
        right=np.array(parts["right"], np.int32),
        leaves=np.array(parts["leaves"], np.float32)[:, None],
    )


def _append_tree(nodes: Any, parts: dict[str, list[Any]]) -> int:
    """Append one tree of the booster, parents first; its root's reference."""
    inner = [number for number in range(len(nodes)) if not nodes[number]["is_leaf"]]
    first, number_of = len(parts["feature"]), {node: place for place, node in enumerate(inner)}

    def refer(node: int) -> int:
        if not nodes[node]["is_leaf"]:
            return first + number_of[node]
        parts["leaves"].append(float(nodes[node]["value"]))
        return -len(parts["leaves"])

    for node in inner:
        parts["feature"].append(int(nodes[node]["feature_idx"]))
        parts["threshold"].append(float(nodes[node]["num_threshold"]))
        parts["left"].append(refer(int(nodes[node]["left"])))
        parts["right"].append(refer(int(nodes[node]["right"])))
    return refer(0)
