"""Trees whose tests look at sums of a few inputs: what that buys, and that what ships is what was fitted."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rules_scene import CPU, SUMS, Trained, accuracy, fit, quiet, train_teacher

from cloud.compression import evaluate
from cloud.compression.rule_bins import Binner
from cloud.compression.rule_lesson import prepare_lesson
from cloud.compression.rule_oblique import ObliqueTree, refine_oblique
from cloud.compression.rule_terms import best_cut, shortest_between
from cloud.compression.rule_trees import grow
from cloud.compression.rules import fit_rules, leaf_scores
from edgeloop import rules

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train_teacher()


def test_sums_of_three_inputs_improve_a_tree_without_growing_it(trained: Trained) -> None:
    trainer = trained[0]
    lesson = prepare_lesson(trainer.model, trainer.dataset, SUMS, seed=0, device=CPU)
    binner = Binner.fit(lesson.inputs)
    plain = grow(binner.transform(lesson.inputs), lesson, SUMS, seed=0)
    tree = ObliqueTree.of(plain, binner)
    assert np.array_equal(tree.leaves(lesson.inputs), plain.leaves(binner.transform(lesson.inputs)))
    history = refine_oblique(tree, lesson.inputs, lesson.targets, num_terms=3, num_rounds=3, seed=0)
    assert history == sorted(history)
    assert history[-1] > history[0] + 0.04
    assert len(tree.tests) == len(plain.feature)
    sizes = [len(test.features) for test in tree.tests]
    assert 2 in sizes or 3 in sizes
    assert max(sizes) <= 3
    assert all(test.weights[0] == 1 for test in tree.tests)
    assert history[-1] == pytest.approx((tree.labels[tree.leaves(lesson.inputs)] == lesson.classes).mean())


def test_sums_say_more_than_single_inputs_in_as_many_leaves(trained: Trained) -> None:
    dataset = trained[0].dataset
    single, sums = fit(trained, replace(SUMS, num_terms=1)), fit(trained, SUMS)
    assert len(sums.leaves) <= SUMS.max_leaves
    assert accuracy(sums, dataset) > accuracy(single, dataset) + 0.02


def test_what_a_tree_of_sums_was_fitted_on_it_decides_to_the_bit(trained: Trained) -> None:
    trainer = trained[0]
    found = fit_rules(trainer.model, trainer.dataset, SUMS, seed=0, device=CPU, report=quiet)
    inputs = found.lesson.inputs.reshape(-1, *trainer.dataset.input_shape)
    outputs = evaluate.load(rules.encode(found.model)).run(inputs)
    leaves = np.array([np.flatnonzero((found.model.leaves == row).all(axis=1))[0] for row in outputs])
    assert np.array_equal(leaf_scores(leaves, found.lesson, len(found.model.leaves))[leaves], outputs)


def test_inputs_of_very_different_scales_make_sums_all_the_same(trained: Trained) -> None:
    trainer = trained[0]
    lesson = prepare_lesson(trainer.model, trainer.dataset, SUMS, seed=0, device=CPU)
    scales = np.float32(10.0) ** np.random.default_rng(0).integers(-12, 13, 64).astype(np.float32)
    for offset in (0.0, 1e6):
        moved = replace(lesson, inputs=lesson.inputs * scales + np.float32(offset))
        binner = Binner.fit(moved.inputs)
        tree = ObliqueTree.of(grow(binner.transform(moved.inputs), moved, SUMS, seed=0), binner)
        history = refine_oblique(tree, moved.inputs, moved.targets, num_terms=3, num_rounds=1, seed=0)
        assert history[1] > history[0] + 0.005
        numbers = np.concatenate([[*test.weights, test.threshold] for test in tree.tests])
        assert np.isfinite(numbers).all()
        assert np.array_equal(numbers, numbers.astype(np.float32))


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=20, unique=True),
    st.randoms(use_true_random=False),
)
def test_a_cut_is_the_best_there_is_and_says_so(values: list[float], random: Random) -> None:
    sums, regret = np.array(values), np.array([random.choice([-1.0, 0.5, 2.0]) for _ in values])
    cost, threshold = best_cut(sums, regret)
    assert cost == pytest.approx(regret[sums <= threshold].sum())
    assert cost == pytest.approx(min(regret[sums <= value].sum() for value in values if value < max(values)))
    low, high = max(sums[sums <= threshold]), min(sums[sums > threshold])
    assert low <= shortest_between(low, high) < high
    assert shortest_between(0.34217, 0.35921) == np.float32(0.35)
