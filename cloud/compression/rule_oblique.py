"""A tree whose tests look at a few inputs each, improved as a whole from a tree of single inputs.

Tree alternating optimisation again (see ``rule_trees``), with *sparse oblique* tests: each node in turn, from
the leaves up, gets a test on a weighted sum of at most ``num_terms`` inputs, as Carreira-Perpinan and
Tavallali (NeurIPS 2018) do for oblique trees. What is best for one node is no longer found exactly, so a test
is replaced only by a better one, and no step makes the whole worse on the lesson's points.

Rules: the tree keeps the shape of the one that it began as, or shrinks; decisions on the lesson are those of
the runtime, to the bit (``rule_terms``); the same seed gives the same tree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud.compression.rule_bins import Binner
from cloud.compression.rule_lesson import RuleLesson
from cloud.compression.rule_terms import Scale, SumTest, improve_test
from cloud.compression.rule_trees import BinnedTree, best_of, grow, relabel, simplify
from cloud.domain.rules import RuleSpec

Report = Callable[[float, str], None]
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

#: Rounds that gain less than this, two in a row, are the last.
MIN_GAIN = 5e-4


@dataclass(kw_only=True, slots=True, eq=False)
class ObliqueTree:
    """``tests`` of the nodes, parents first; a reference below 0 is leaf ``-1 - reference``."""

    tests: list[SumTest]
    left: Integers
    right: Integers
    labels: Integers

    @classmethod
    def of(cls, tree: BinnedTree, binner: Binner) -> ObliqueTree:
        """The same decisions."""
        tests = [
            SumTest(
                features=np.array([feature]),
                weights=np.ones(1),
                threshold=float(binner.threshold(int(feature), int(cut))),
            )
            for feature, cut in zip(tree.feature, tree.cut, strict=True)
        ]
        return cls(tests=tests, left=tree.left.copy(), right=tree.right.copy(), labels=tree.labels.copy())

    @property
    def root(self) -> int:
        return 0 if self.tests else -1

    def leaves(self, inputs: Floats) -> Integers:
        """The leaf of each row."""
        return self.walk(inputs, np.arange(len(inputs)), self.root)

    def walk(self, inputs: Floats, rows: Integers, start: int) -> Integers:
        """The leaf that each of ``rows`` reaches from the reference ``start``."""
        found = np.empty(len(rows), np.int64)
        pending = [(start, np.arange(len(rows)))]
        while pending:
            reference, places = pending.pop()
            if reference < 0:
                found[places] = ~reference
            elif len(places):
                lower = self.tests[reference].lower(inputs, rows[places])
                pending.append((int(self.left[reference]), places[lower]))
                pending.append((int(self.right[reference]), places[~lower]))
        return found


def fit_oblique_tree(
    lesson: RuleLesson, spec: RuleSpec, *, binner: Binner, seed: int, report: Report
) -> ObliqueTree:
    """The best of ``spec.num_starts`` trees. ``report`` gets 0 to 1; what it raises stops the fit."""
    bins = binner.transform(lesson.inputs)
    real = np.concatenate([lesson.inputs[: lesson.num_real], lesson.held_out_inputs])
    real_classes = np.concatenate([lesson.classes[: lesson.num_real], lesson.held_out_classes])

    def improved(start: int, improving: Report) -> ObliqueTree:
        tree = ObliqueTree.of(grow(bins, lesson, spec, seed=seed, start=start), binner)
        improving(0.0, "grown")
        refine_oblique(
            tree,
            lesson.inputs,
            lesson.targets,
            num_terms=spec.num_terms,
            num_rounds=spec.num_refine_rounds,
            seed=seed,
            report=improving,
        )
        return tree

    def agreement(tree: ObliqueTree) -> float:
        return float((tree.labels[tree.leaves(real)] == real_classes).mean())

    best = best_of(spec.num_starts, improved, agreement, report)
    kept = simplify(best, np.bincount(best.leaves(lesson.inputs), minlength=len(best.labels)))
    return ObliqueTree(
        tests=[best.tests[node] for node in kept.nodes], left=kept.left, right=kept.right, labels=kept.labels
    )


def refine_oblique(
    tree: ObliqueTree,
    inputs: Floats,
    targets: Floats,
    *,
    num_terms: int,
    num_rounds: int,
    seed: int,
    report: Report = lambda fraction, message: None,
) -> list[float]:
    """Improve ``tree`` in place; the share of ``targets`` that it gets right, before and after each round."""
    every = np.arange(len(inputs))
    scale, rng = Scale.of(inputs), np.random.default_rng(seed)
    leaves = tree.leaves(inputs)
    history = [float(targets[every, tree.labels[leaves]].mean())]
    for number in range(num_rounds):
        leaves = np.empty(len(inputs), np.int64)
        _improve_below(tree, tree.root, every, leaves, inputs, targets, num_terms, scale, rng)
        relabel(tree, leaves, targets)
        history.append(float(targets[every, tree.labels[leaves]].mean()))
        report((number + 1) / num_rounds, f"round {number + 1}, {history[-1]:.4f} of the points right")
        if number >= 1 and history[-1] - history[-3] < MIN_GAIN:
            break
    return history


def _improve_below(
    tree: ObliqueTree,
    node: int,
    rows: Integers,
    leaves: Integers,
    inputs: Floats,
    targets: Floats,
    num_terms: int,
    scale: Scale,
    rng: np.random.Generator,
) -> None:
    """Improves everything under ``node``, then its own test; ``leaves`` gets where ``rows`` end."""
    if node < 0:
        leaves[rows] = ~node
        return
    if not len(rows):
        return
    sides = (int(tree.left[node]), int(tree.right[node]))
    lower = tree.tests[node].lower(inputs, rows)
    for side, part in zip(sides, (rows[lower], rows[~lower]), strict=True):
        _improve_below(tree, side, part, leaves, inputs, targets, num_terms, scale, rng)
    ends = [np.empty(len(rows), np.int64) for _ in sides]
    for end, own, other in ((0, lower, ~lower), (1, ~lower, lower)):
        ends[end][own] = leaves[rows[own]]
        ends[end][other] = tree.walk(inputs, rows[other], sides[end])
    wrong = [1.0 - targets[rows, tree.labels[end]].astype(np.float64) for end in ends]
    regret = wrong[0] - wrong[1]
    cares = np.abs(regret) > 1e-9
    if not cares.any():
        return
    test, swapped = improve_test(
        tree.tests[node], inputs, rows[cares], regret[cares], num_terms=num_terms, scale=scale, rng=rng
    )
    tree.tests[node] = test
    if swapped:
        tree.left[node], tree.right[node] = sides[1], sides[0]
        ends.reverse()
    leaves[rows] = np.where(test.lower(inputs, rows), *ends)
