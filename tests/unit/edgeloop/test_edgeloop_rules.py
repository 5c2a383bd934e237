"""The format of rules: what goes in comes out, and what is not rules goes nowhere."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.runtime import load_rules
from edgeloop import rules
from edgeloop.errors import RejectedError
from edgeloop.rules import RuleModel, RulesKind

GOLDEN = Path(__file__).parents[2] / "golden"
PARTS = (
    "base", "roots", "tree_class", "num_terms", "feature", "weight", "threshold", "left", "right", "leaves",
)  # fmt: skip


def tree(**changes: Any) -> RuleModel:
    """x[0,1] <= 0.5 then (x[1,0] <= -0.25 then leaf 0 else leaf 1) else leaf 2."""
    parts: dict[str, Any] = {
        "kind": RulesKind.TREE,
        "input_shape": (1, 2, 3),
        "num_classes": 2,
        "base": np.array([0.0, 0.5], np.float32),
        "roots": np.array([0], np.int32),
        "feature": np.array([1, 3], np.int32),
        "threshold": np.array([0.5, -0.25], np.float32),
        "left": np.array([1, -1], np.int32),
        "right": np.array([-3, -2], np.int32),
        "leaves": np.array([[1, 2], [3, 4], [5, 6]], np.float32),
        "names": ("height", "breadth in cm"),
    }
    return RuleModel(**{**parts, **changes})


def boosted(**changes: Any) -> RuleModel:
    """Two trees that share a leaf; the first adds to class 1, the second to class 0."""
    parts: dict[str, Any] = {
        "kind": RulesKind.BOOSTED,
        "roots": np.array([0, 1], np.int32),
        "tree_class": np.array([1, 0], np.int32),
        "left": np.array([-1, -2], np.int32),
        "right": np.array([-2, -3], np.int32),
        "leaves": np.array([[1], [-2], [4]], np.float32),
        "names": (),
    }
    return tree(**{**parts, **changes})


def sums(**changes: Any) -> RuleModel:
    """x[0,1] - 0.5 x[1,2] <= 0.5 then (x[1,0] <= -0.25 then leaf 0 else leaf 1) else leaf 2."""
    parts: dict[str, Any] = {
        "num_terms": np.array([2, 1], np.int32),
        "feature": np.array([1, 5, 3], np.int32),
        "weight": np.array([1, -0.5, 1], np.float32),
        "names": ("height", "breadth in cm", "depth"),
    }
    return tree(**{**parts, **changes})


def code_of(data: bytes) -> str:
    with pytest.raises(RejectedError) as caught:
        rules.decode(data)
    return caught.value.code


@pytest.mark.parametrize(
    "model", [tree(), boosted(), tree(names=()), sums()], ids=["tree", "boosted", "nameless", "sums"]
)
def test_what_goes_in_comes_out(model: RuleModel) -> None:
    found = rules.decode(rules.encode(model))
    assert (found.kind, found.input_shape, found.num_classes) == (model.kind, (1, 2, 3), 2)
    assert found.names == model.names
    for part in PARTS:
        assert np.array_equal(getattr(found, part), getattr(model, part)), part
        assert getattr(found, part).dtype == getattr(model, part).dtype


def test_version_1_stays_readable() -> None:
    data = (GOLDEN / "rules_v1.bin").read_bytes()
    inputs = np.array(
        [[[[9, 0.5, 9], [-0.25, 9, 9]]], [[[9, 0.5, 9], [-0.2, 9, 9]]], [[[9, 0.6, 9], [0, 9, 9]]]]
    )
    outputs = load_rules(data).run(inputs.astype(np.float32))
    assert outputs.tolist() == [[1.0, 2.5], [3.0, 4.5], [5.0, 6.5]]
    assert rules.encode(tree()) == data


def test_version_2_stays_readable() -> None:
    data = (GOLDEN / "rules_v2.bin").read_bytes()
    inputs = np.array(
        [[[[9, 0, 9], [-0.25, 9, -1]]], [[[9, 1, 9], [-0.2, 9, 1]]], [[[9, 0.5, 9], [0, 9, -0.1]]]]
    )
    outputs = load_rules(data).run(inputs.astype(np.float32))
    assert outputs.tolist() == [[1.0, 2.5], [3.0, 4.5], [5.0, 6.5]]
    assert rules.encode(sums()) == data


def test_only_sums_need_the_later_version() -> None:
    versions = [struct.unpack_from("<H", rules.encode(model), 8)[0] for model in (tree(), boosted(), sums())]
    assert versions == [1, 1, 2]


def put(model: RuleModel, part: str, value: Any) -> RuleModel:
    array = getattr(model, part).copy()
    array.flat[0] = value
    make = boosted if model.kind is RulesKind.BOOSTED else sums if model.has_sums else tree
    return make(**{part: array})


BAD_MODELS = {
    "a node refers to itself": put(tree(), "left", 0),
    "a node refers back": tree(left=np.array([1, 0], np.int32)),
    "a node beyond the last": put(tree(), "left", 2),
    "a leaf beyond the last": put(tree(), "right", -4),
    "a root beyond the last": put(tree(), "roots", 2),
    "a root below the last leaf": put(tree(), "roots", -(2**31)),
    "an input that is none": put(tree(), "feature", 6),
    "an input below 0": put(tree(), "feature", -1),
    "a threshold that is no number": put(tree(), "threshold", np.nan),
    "an infinite threshold": put(tree(), "threshold", np.inf),
    "a score that is no number": put(tree(), "leaves", np.nan),
    "a score beyond all": put(tree(), "leaves", 1e30),
    "a base beyond all": put(tree(), "base", -1e30),
    "a class that is none": put(boosted(), "tree_class", 2),
    "a class below 0": put(boosted(), "tree_class", -1),
    "a name too many": tree(names=("a", "b", "c")),
    "an empty name": tree(names=("a", "")),
    "a name that steers a terminal": tree(names=("a", "\x1b[2J")),
    "no class to choose": tree(
        num_classes=1, base=np.zeros(1, np.float32), leaves=np.zeros((3, 1), np.float32)
    ),
    "a weight that is no number": put(sums(), "weight", np.nan),
    "an infinite weight": put(sums(), "weight", -np.inf),
    "a weight of nothing": put(sums(), "weight", 0),
    "an input of a sum that is none": put(sums(), "feature", 6),
    "an input of a sum below 0": put(sums(), "feature", -1),
    "an input twice in one sum": put(sums(), "feature", 5),
    "a sum of no terms": sums(num_terms=np.array([3, 0], np.int32)),
    "a sum of too many terms": sums(
        input_shape=(4, 3),
        num_terms=np.array([9, 1], np.int32),
        feature=np.arange(10, dtype=np.int32),
        weight=np.ones(10, np.float32),
        names=(),
    ),
    "terms that are not there": put(sums(), "num_terms", 3),
    "terms of no node": put(sums(), "num_terms", 1),
    "an input of no size": tree(input_shape=(1, 0, 3)),
    "inputs beyond all": tree(input_shape=(65_536, 65_536)),
}


@pytest.mark.parametrize("model", BAD_MODELS.values(), ids=BAD_MODELS)
def test_a_bad_model_is_neither_written_nor_read(model: RuleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RejectedError) as caught:
        rules.encode(model)
    assert caught.value.code == "rules-malformed"
    with monkeypatch.context() as careless:
        careless.setattr(rules, "longest_walk", lambda model: [])
        data = rules.encode(model)
    assert code_of(data) == "rules-malformed"


@pytest.mark.parametrize("model", [tree(), sums()], ids=["tree", "sums"])
def test_every_cut_and_every_addition_is_refused(model: RuleModel) -> None:
    data = rules.encode(model)
    for size in range(len(data)):
        assert code_of(data[:size]) == "rules-malformed"
    assert code_of(data + b"\0") == "rules-malformed"


def test_a_later_version_asks_for_an_update() -> None:
    data = bytearray(rules.encode(tree()))
    struct.pack_into("<H", data, 8, 3)
    assert code_of(bytes(data)) == "rules-version"


@pytest.mark.parametrize("field", range(5), ids=["classes", "trees", "nodes", "leaves", "names"])
def test_counts_that_the_bytes_do_not_bear_out_cost_no_memory(field: int) -> None:
    for count in (0, 2**31, 2**32 - 1):
        data = bytearray(rules.encode(boosted()))
        struct.pack_into("<I", data, 12 + 4 * field, count)
        if (field, count) != (4, 0):  # what has no names says so
            assert code_of(bytes(data)) == "rules-malformed"


def test_a_number_of_terms_that_the_bytes_do_not_bear_out_costs_no_memory() -> None:
    for count in (0, 1, 16, 17, 2**31, 2**32 - 1):
        data = bytearray(rules.encode(sums()))
        struct.pack_into("<I", data, 32, count)
        assert code_of(bytes(data)) == "rules-malformed"


def test_terms_count_as_steps_of_a_walk() -> None:
    assert rules.longest_walk(tree()) == [2]
    assert rules.longest_walk(sums()) == [3]
    assert sums().num_numbers == tree().num_numbers + 3


def test_a_walk_without_end_in_sight_is_refused() -> None:
    """One chain, begun anew by each of many trees."""
    length, num_trees = 2000, 1000
    chain = boosted(
        roots=np.zeros(num_trees, np.int32),
        tree_class=np.zeros(num_trees, np.int32),
        feature=np.zeros(length, np.int32),
        threshold=np.zeros(length, np.float32),
        left=np.append(np.arange(1, length), -1).astype(np.int32),
        right=np.append(np.arange(1, length), -1).astype(np.int32),
        leaves=np.zeros((1, 1), np.float32),
    )
    with pytest.raises(RejectedError, match="a walk of 2000000 steps"):
        rules.encode(chain)


@given(
    st.sampled_from([rules.encode(tree()), rules.encode(boosted()), rules.encode(sums())]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_altered_bytes_are_refused_or_run(data: bytes, changes: list[tuple[int, int]]) -> None:
    altered = bytearray(data)
    for place, value in changes:
        altered[place % len(altered)] = value
    code, runtime = "", None
    try:
        runtime = load_rules(bytes(altered))
    except RejectedError as error:
        code = error.code
    if runtime is None:
        assert code in ("rules-malformed", "rules-version")
        return
    if np.prod(runtime.sample_shape) <= 4096:
        for count in (1, 3):
            outputs = runtime.run(np.zeros((count, *runtime.sample_shape), np.float32))
            assert outputs.shape == (count, *runtime.output_shape[1:])
            assert np.isfinite(outputs).all()


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused(tail: bytes) -> None:
    assert code_of(tail) == "rules-malformed"
    assert code_of(rules.MAGIC + tail) in ("rules-malformed", "rules-version")


@given(st.floats(width=32, allow_nan=False), st.floats(allow_nan=False, min_value=-1e38, max_value=1e38))
def test_a_threshold_made_float32_parts_the_same_inputs(value: float, threshold: float) -> None:
    narrow = rules.floor32(threshold)
    assert (np.float32(value) <= narrow) == (value <= threshold)
