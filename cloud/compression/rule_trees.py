"""One decision tree that says what the teacher says: grown greedily, then improved as a whole.

Growing is CART (Breiman et al., 1984, through scikit-learn). A greedy tree never looks back; *tree
alternating optimisation* does (Carreira-Perpinan and Tavallali, NeurIPS 2018): with all other nodes fixed,
the loss is a sum over the samples that reach a node, each of which only asks "left or right?", so the best
test of one node is found exactly, level by level from the leaves up, and no step makes the loss worse.
Several first trees, grown on random shares of the inputs, compete by what they get right of the real
samples, training and validation together: among them agreement on mixup points said less about new samples.

Rules: a tree never grows by being improved; branches that no point reaches, and pairs of leaves that decide
alike, are cut away; the same seed gives the same tree.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from cloud.compression.rule_bins import Binner
from cloud.compression.rule_lesson import RuleLesson
from cloud.domain.rules import RuleLabels, RuleSpec

logger = logging.getLogger(__name__)

Report = Callable[[float, str], None]
Integers = NDArray[np.int64]
T = TypeVar("T")

#: Share of the inputs that each split of a competing first tree may choose from.
START_FEATURES = 0.3
#: Rounds that gain less than this, three in a row, are the last.
MIN_GAIN = 1e-4
_MAX_CELLS = 1 << 22


@dataclass(kw_only=True, slots=True, eq=False)
class BinnedTree:
    """Nodes test ``bin[feature] <= cut``, parents first; a reference below 0 is leaf ``-1 - reference``."""

    feature: Integers
    cut: Integers
    left: Integers
    right: Integers
    labels: Integers

    @property
    def root(self) -> int:
        return 0 if len(self.feature) else -1

    def levels(self) -> Integers:
        """Tests above each node."""
        depth = np.zeros(len(self.feature), np.int64)
        for node in range(len(self.feature)):
            for child in (self.left[node], self.right[node]):
                if child >= 0:
                    depth[child] = depth[node] + 1
        return depth

    def walk(self, bins: NDArray[np.uint8], start: Integers) -> Integers:
        """The leaf that each row reaches from its ``start``."""
        at, rows = start.copy(), np.flatnonzero(start >= 0)
        while len(rows):
            nodes = at[rows]
            lower = bins[rows, self.feature[nodes]] <= self.cut[nodes]
            at[rows] = np.where(lower, self.left[nodes], self.right[nodes])
            rows = rows[at[rows] >= 0]
        return ~at

    def leaves(self, bins: NDArray[np.uint8]) -> Integers:
        """The leaf of each row."""
        return self.walk(bins, np.full(len(bins), self.root, np.int64))


def fit_tree(lesson: RuleLesson, spec: RuleSpec, *, binner: Binner, seed: int, report: Report) -> BinnedTree:
    """The best of ``spec.num_starts`` trees. ``report`` gets 0 to 1; what it raises stops the fit."""
    bins = binner.transform(lesson.inputs)
    real = np.concatenate([bins[: lesson.num_real], binner.transform(lesson.held_out_inputs)])
    real_classes = np.concatenate([lesson.classes[: lesson.num_real], lesson.held_out_classes])

    def improved(start: int, improving: Report) -> BinnedTree:
        tree = grow(bins, lesson, spec, seed=seed, start=start)
        improving(0.0, "grown")
        refine(tree, bins, lesson.targets, num_rounds=spec.num_refine_rounds, report=improving)
        return tree

    def agreement(tree: BinnedTree) -> float:
        return float((tree.labels[tree.leaves(real)] == real_classes).mean())

    best = best_of(spec.num_starts, improved, agreement, report)
    kept = simplify(best, np.bincount(best.leaves(bins), minlength=len(best.labels)))
    return BinnedTree(
        feature=best.feature[kept.nodes],
        cut=best.cut[kept.nodes],
        left=kept.left,
        right=kept.right,
        labels=kept.labels,
    )


def best_of(
    num_starts: int,
    improved: Callable[[int, Report], T],
    agreement: Callable[[T], float],
    report: Report,
) -> T:
    """The tree that agrees with the teacher most, of one for each start; the first of equals."""
    best: tuple[float, T] | None = None
    for start in range(num_starts):

        def improving(fraction: float, message: str, start: int = start) -> None:
            report((start + fraction) / num_starts, f"tree {start + 1}/{num_starts}: {message}")

        tree = improved(start, improving)
        fidelity = agreement(tree)
        logger.debug("tree %d agrees with the teacher on %.4f of the real samples", start, fidelity)
        if best is None or fidelity > best[0]:
            best = fidelity, tree
    assert best is not None
    return best[1]


def grow(
    bins: NDArray[np.uint8],
    lesson: RuleLesson,
    spec: RuleSpec,
    *,
    seed: int,
    start: int = 0,
) -> BinnedTree:
    """A greedy tree; those after the first ``start`` choose among some of the inputs at each split."""
    soft = spec.labels is RuleLabels.SOFT
    # On one-hot targets the summed squared error of a regression tree is the Gini impurity.
    kind = DecisionTreeRegressor if soft else DecisionTreeClassifier
    grown = kind(
        max_depth=spec.max_depth,
        max_leaf_nodes=spec.max_leaves,
        max_features=START_FEATURES if start else None,
        random_state=(seed + 1000 * start) % 2**32,
    ).fit(bins.astype(np.float32), lesson.targets if soft else lesson.classes)
    found = grown.tree_
    values = found.value.reshape(found.node_count, -1)
    known = np.arange(lesson.targets.shape[1]) if soft else grown.classes_
    inner = found.children_left >= 0
    # Breadth first, so that parents come before their children; leaves are counted apart.
    order, queue = [], [0]
    for node in queue:
        order.append(node)
        if inner[node]:
            queue += [int(found.children_left[node]), int(found.children_right[node])]
    nodes = [node for node in order if inner[node]]
    leaves = [node for node in order if not inner[node]]
    reference = {node: number for number, node in enumerate(nodes)}
    reference |= {node: -1 - number for number, node in enumerate(leaves)}
    return BinnedTree(
        feature=found.feature[nodes].astype(np.int64),
        cut=np.floor(found.threshold[nodes]).astype(np.int64),
        left=np.array([reference[int(found.children_left[node])] for node in nodes], np.int64),
        right=np.array([reference[int(found.children_right[node])] for node in nodes], np.int64),
        labels=known[values[leaves].argmax(axis=1)].astype(np.int64),
    )


def refine(
    tree: BinnedTree,
    bins: NDArray[np.uint8],
    targets: NDArray[np.float32],
    *,
    num_rounds: int,
    report: Report = lambda fraction, message: None,
) -> list[float]:
    """Improve ``tree`` in place; the share of ``targets`` that it gets right, before and after each round."""
    every = np.arange(len(bins))
    leaves = tree.leaves(bins)
    history = [float(targets[every, tree.labels[leaves]].mean())]
    levels = tree.levels()
    for number in range(num_rounds):
        for level in range(int(levels.max(initial=-1)), -1, -1):
            _improve_level(tree, bins, targets, np.flatnonzero(levels == level))
        leaves = tree.leaves(bins)
        relabel(tree, leaves, targets)
        history.append(float(targets[every, tree.labels[leaves]].mean()))
        report((number + 1) / num_rounds, f"round {number + 1}, {history[-1]:.4f} of the points right")
        if number >= 2 and history[-1] - history[-4] < MIN_GAIN:
            break
    return history


def _improve_level(
    tree: BinnedTree, bins: NDArray[np.uint8], targets: NDArray[np.float32], nodes: Integers
) -> None:
    """The best test for each of ``nodes``, none of which lies under another."""
    num_features, num_bins = bins.shape[1], int(bins.max()) + 1
    at = _nodes_reached(tree, bins, nodes)
    rows = np.flatnonzero(at >= 0)
    owner = nodes[at[rows]]
    below = [tree.walk(bins[rows], side[owner]) for side in (tree.left, tree.right)]
    wrong_left, wrong_right = (1.0 - targets[rows, tree.labels[leaf]].astype(np.float64) for leaf in below)
    regret = wrong_left - wrong_right  # what going left costs
    cares = np.abs(regret) > 1e-9
    rows, local, regret = rows[cares], at[rows][cares], regret[cares]
    offsets = np.arange(num_features) * num_bins
    group = max(1, _MAX_CELLS // (num_features * num_bins))
    step = max(1, _MAX_CELLS // num_features)
    for first in range(0, len(nodes), group):
        chosen = nodes[first : first + group]
        mine = np.flatnonzero((local >= first) & (local < first + len(chosen)))
        costs = np.zeros(len(chosen) * num_features * num_bins)
        for begin in range(0, len(mine), step):
            part = mine[begin : begin + step]
            cells = (local[part] - first)[:, None] * (num_features * num_bins) + offsets + bins[rows[part]]
            costs += np.bincount(cells.ravel(), np.repeat(regret[part], num_features), len(costs))
        # What it costs to send all bins up to each one left.
        costs = costs.reshape(len(chosen), num_features, num_bins).cumsum(axis=2)
        every = np.arange(len(chosen))
        now = costs[every, tree.feature[chosen], np.minimum(tree.cut[chosen], num_bins - 1)]
        flat = costs[:, :, :-1].reshape(len(chosen), -1)
        if not flat.shape[1]:
            return
        best = flat.argmin(axis=1)
        better = flat[every, best] < now - 1e-9
        tree.feature[chosen[better]] = best[better] // (num_bins - 1)
        tree.cut[chosen[better]] = best[better] % (num_bins - 1)


def _nodes_reached(tree: BinnedTree, bins: NDArray[np.uint8], nodes: Integers) -> Integers:
    """For each row the position in ``nodes`` of the one that it passes, or -1."""
    position = np.full(len(tree.feature), -1)
    position[nodes] = np.arange(len(nodes))
    found = np.full(len(bins), -1)
    at = np.full(len(bins), tree.root, np.int64)
    rows = np.flatnonzero(at >= 0)
    while len(rows):
        here = at[rows]
        found[rows] = position[here]
        rows = rows[found[rows] < 0]
        here = at[rows]
        lower = bins[rows, tree.feature[here]] <= tree.cut[here]
        at[rows] = np.where(lower, tree.left[here], tree.right[here])
        rows = rows[at[rows] >= 0]
    return found


class Shape(Protocol):
    """What any tree has: references as in ``BinnedTree``, and the class of each leaf."""

    left: Integers
    right: Integers
    labels: Integers

    @property
    def root(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Kept:
    """What is left of a tree: ``nodes`` are numbers in the whole one, and the rest refers to these."""

    nodes: list[int]
    left: Integers
    right: Integers
    labels: Integers


def relabel(tree: Shape, leaves: Integers, targets: NDArray[np.float32]) -> None:
    """Each leaf that a point reaches says what most of its points do; ``leaves`` says where each ends."""
    sums = np.zeros((len(tree.labels), targets.shape[1]))
    np.add.at(sums, leaves, targets)
    reached = sums.sum(axis=1) > 0
    tree.labels[reached] = sums[reached].argmax(axis=1)


def simplify(tree: Shape, counts: Integers) -> Kept:
    """The same decisions for whatever was counted, with fewer nodes.

    ``counts`` says how many points reach each leaf.
    """
    # Children come after their parents, so that going backwards sees them finished. An entry is either a
    # leaf's (label, count), or a node that stays, or None for a branch that nothing reaches.
    done: dict[int, tuple[str, int]] = {}

    def resolve(reference: int) -> tuple[str, int] | None:
        if reference < 0:
            leaf = -1 - reference
            return ("leaf", int(tree.labels[leaf])) if counts[leaf] else None
        return done.get(reference)

    kept: dict[int, tuple[tuple[str, int], tuple[str, int]]] = {}
    for node in range(len(tree.left) - 1, -1, -1):
        one, other = resolve(int(tree.left[node])), resolve(int(tree.right[node]))
        if one is None or other is None or (one == other and one[0] == "leaf"):
            survivor = one if one is not None else other
            if survivor is not None:
                done[node] = survivor
        else:
            kept[node] = (one, other)
            done[node] = ("node", node)
    top = resolve(tree.root)
    if top is None or top[0] == "leaf":
        label = top[1] if top is not None else int(tree.labels[0])
        none = np.zeros(0, np.int64)
        return Kept(nodes=[], left=none, right=none, labels=np.array([label]))
    order = [top[1]]
    for node in order:
        order += [number for what, number in kept[node] if what == "node"]
    number_of = {node: number for number, node in enumerate(order)}
    labels: list[int] = []

    def refer(entry: tuple[str, int]) -> int:
        if entry[0] == "node":
            return number_of[entry[1]]
        labels.append(entry[1])
        return -len(labels)

    left, right = [], []
    for node in order:
        left.append(refer(kept[node][0]))
        right.append(refer(kept[node][1]))
    return Kept(
        nodes=order,
        left=np.array(left, np.int64),
        right=np.array(right, np.int64),
        labels=np.array(labels, np.int64),
    )
