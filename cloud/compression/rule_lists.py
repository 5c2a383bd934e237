"""An ordered list of rules that says what the teacher says: the first that fits decides.

The conditions come from a random forest fitted on the teacher's labels, each path from a root being one
candidate; the list is put together by sequential covering. That is the way of inTrees (Deng, "Interpreting
Tree Ensembles with inTrees", 2019) and, before it, of CN2 (Clark and Niblett, 1989) and RuleFit (Friedman
and Popescu, 2008). At each step the rule is taken that parts the points not yet covered best, by the Gini
impurity of what it covers and of what it leaves; so early rules are neither tiny nor vague.

Rules: a rule has at most ``max_depth`` conditions, bounds on one input counted as one each way; one that is
not worth ``MIN_COVERED`` points is never taken; the same seed gives the same list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from cloud.compression.rule_bins import Binner
from cloud.compression.rule_lesson import RuleLesson
from cloud.domain.rules import RuleSpec

Report = Callable[[float, str], None]

MIN_COVERED = 5
MAX_CANDIDATES = 4000
#: Points that candidates are compared on; real ones first.
MAX_COMPARED = 12_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """``bin[feature] <= cut``, or over it."""

    feature: int
    cut: int
    below: bool


Rule = tuple[Condition, ...]


def fit_rule_list(
    lesson: RuleLesson, spec: RuleSpec, *, binner: Binner, seed: int, report: Report
) -> list[Rule]:
    """Rules in their order; what none of them covers is the caller's default."""
    bins = binner.transform(lesson.inputs)
    report(0.05, "growing the forest")
    forest = RandomForestClassifier(
        n_estimators=spec.num_trees, max_depth=spec.max_depth, max_samples=0.5, random_state=seed, n_jobs=1
    ).fit(bins.astype(np.float32), lesson.classes)
    candidates = _candidates([tree.tree_ for tree in forest.estimators_], seed)
    report(0.4, f"choosing among {len(candidates)} rules")
    bins, targets = bins[:MAX_COMPARED], lesson.targets[:MAX_COMPARED].astype(np.float64)
    covered = np.stack([covers(rule, bins) for rule in candidates])
    sums = np.stack([targets[row].sum(axis=0) for row in covered])
    left = np.ones(len(bins), bool)
    chosen: list[Rule] = []
    while len(chosen) < spec.max_leaves:
        rest = targets[left].sum(axis=0)
        best, gain = _best(sums, rest)
        if gain <= 0.0:
            break
        chosen.append(candidates[best])
        taken = covered[best] & left
        left &= ~taken
        sums -= covered[:, taken].astype(np.float64) @ targets[taken]
        report(0.4 + 0.6 * len(chosen) / spec.max_leaves, f"rule {len(chosen)}")
    return chosen


def covers(rule: Rule, bins: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which rows fulfil every condition."""
    fits = np.ones(len(bins), bool)
    for condition in rule:
        lower = bins[:, condition.feature] <= condition.cut
        fits &= lower if condition.below else ~lower
    return fits


def _best(sums: NDArray[np.float64], rest: NDArray[np.float64]) -> tuple[int, float]:
    """The candidate that parts ``rest`` best, and what it gains; sums are of what each covers of the rest."""

    def purity(parts: NDArray[np.float64]) -> NDArray[np.float64]:
        counts = parts.sum(axis=-1)
        squares = np.square(parts).sum(axis=-1)
        shares: NDArray[np.float64] = np.divide(
            squares, counts, out=np.zeros_like(counts), where=counts > 1e-9
        )
        return shares

    gains = purity(sums) + purity(rest - sums) - purity(rest)
    counts = sums.sum(axis=1)
    gains[(counts < MIN_COVERED) | (rest.sum() - counts < MIN_COVERED)] = -1.0
    best = int(gains.argmax())
    return best, float(gains[best])


def _candidates(trees: list[Any], seed: int) -> list[Rule]:
    """The way to each node of each tree, each once, in an order of its own."""
    found: dict[Rule, None] = {}
    for tree in trees:
        ways: dict[int, Rule] = {0: ()}
        for node in range(tree.node_count):
            way = ways[node]
            if way:
                found[_tidy(way)] = None
            left, right = int(tree.children_left[node]), int(tree.children_right[node])
            if left >= 0:
                feature, cut = int(tree.feature[node]), int(np.floor(tree.threshold[node]))
                ways[left] = (*way, Condition(feature=feature, cut=cut, below=True))
                ways[right] = (*way, Condition(feature=feature, cut=cut, below=False))
    rules = list(found)
    if len(rules) > MAX_CANDIDATES:
        rows = np.sort(np.random.default_rng(seed).permutation(len(rules))[:MAX_CANDIDATES])
        rules = [rules[row] for row in rows]
    return rules


def _tidy(way: Rule) -> Rule:
    """Of several bounds on one side of one input the tightest, in the order of the inputs."""
    tightest: dict[tuple[int, bool], int] = {}
    for condition in way:
        key = (condition.feature, condition.below)
        cut = tightest.get(key, condition.cut)
        tightest[key] = min(cut, condition.cut) if condition.below else max(cut, condition.cut)
    return tuple(
        Condition(feature=feature, cut=cut, below=below) for (feature, below), cut in sorted(tightest.items())
    )
