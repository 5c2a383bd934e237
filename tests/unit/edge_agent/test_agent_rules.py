"""Rules where devices run them: what scikit-learn decides, through the child process and the engine."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.tree import DecisionTreeClassifier

from edge_agent.inference import InferenceEngine, ServedModel
from edge_agent.meter import LatencyMeter
from edge_agent.runtime import load_artifact, load_rules
from edge_agent.runtime import rules as runtime_rules
from edge_agent.selftest import SelfTestJob, SelfTestResult, run_self_test
from edgeloop import artifact
from edgeloop.errors import RejectedError
from edgeloop.rules import RuleModel, RulesKind, decode, encode, floor32
from edgeloop.v1 import artifact_pb2

Floats = NDArray[np.float32]
FLOOR = 1e-4


def digits() -> tuple[Floats, NDArray[np.int64]]:
    pixels, labels = load_digits(return_X_y=True)
    return (pixels / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8), labels


INPUTS, LABELS = digits()
FITTED = DecisionTreeClassifier(max_depth=7, random_state=0).fit(
    INPUTS[:1200].reshape(1200, -1), LABELS[:1200]
)
WANTED = np.log(np.maximum(FITTED.predict_proba(INPUTS.reshape(len(INPUTS), -1)), FLOOR)).astype(np.float32)


def model_of(fitted: DecisionTreeClassifier) -> RuleModel:
    found = fitted.tree_
    inner = np.flatnonzero(found.children_left >= 0)
    outer = np.flatnonzero(found.children_left < 0)
    reference = np.zeros(found.node_count, np.int32)
    reference[inner], reference[outer] = np.arange(len(inner)), -1 - np.arange(len(outer))
    return RuleModel(
        kind=RulesKind.TREE,
        input_shape=(1, 8, 8),
        num_classes=10,
        base=np.zeros(10, np.float32),
        roots=np.array([0], np.int32),
        feature=found.feature[inner].astype(np.int32),
        threshold=floor32(found.threshold[inner]),
        left=reference[found.children_left[inner]],
        right=reference[found.children_right[inner]],
        leaves=np.log(np.maximum(found.value[outer, 0], FLOOR)).astype(np.float32),
    )


DATA = encode(model_of(FITTED))


def many_trees(num_trees: int, *, seed: int = 0) -> bytes:
    """Random trees of depth 3 over 6 inputs, 3 classes."""
    rng = np.random.default_rng(seed)
    starts = np.arange(num_trees, dtype=np.int32)[:, None]
    inner = np.array([[1, 3, 5, -1, -3, -5, -7]]), np.array([[2, 4, 6, -2, -4, -6, -8]])
    left, right = (np.where(side >= 0, side + 7 * starts, side - 8 * starts) for side in inner)
    return encode(
        RuleModel(
            kind=RulesKind.BOOSTED,
            input_shape=(6,),
            num_classes=3,
            base=rng.normal(size=3).astype(np.float32),
            roots=7 * starts[:, 0],
            tree_class=rng.integers(0, 3, num_trees).astype(np.int32),
            feature=rng.integers(0, 6, 7 * num_trees).astype(np.int32),
            threshold=rng.normal(size=7 * num_trees).astype(np.float32),
            left=left.ravel().astype(np.int32),
            right=right.ravel().astype(np.int32),
            leaves=rng.normal(size=(8 * num_trees, 1)).astype(np.float32),
        )
    )


def sums(num_nodes: int, *, seed: int = 0) -> bytes:
    """A chain of tests on sums of 1 to 5 of 6 inputs, with a leaf at each node's left."""
    rng = np.random.default_rng(seed)
    num_terms = rng.integers(1, 6, num_nodes).astype(np.int32)
    return encode(
        RuleModel(
            kind=RulesKind.TREE,
            input_shape=(6,),
            num_classes=num_nodes + 1,
            base=np.zeros(num_nodes + 1, np.float32),
            roots=np.zeros(1, np.int32),
            num_terms=num_terms,
            feature=np.concatenate([rng.permutation(6)[:count] for count in num_terms]).astype(np.int32),
            weight=rng.normal(size=num_terms.sum()).astype(np.float32),
            threshold=(rng.normal(size=num_nodes) - 2).astype(np.float32),
            left=-1 - np.arange(num_nodes, dtype=np.int32),
            right=np.append(np.arange(1, num_nodes), -1 - num_nodes).astype(np.int32),
            leaves=np.eye(num_nodes + 1, dtype=np.float32),
        )
    )


def first_that_holds(data: bytes, sample: Floats) -> int:
    """The leaf of one sample by exact arithmetic."""
    model = decode(data)
    begin = 0
    for node, count in enumerate(model.num_terms.tolist()):
        terms = slice(begin, begin + count)
        products = [
            Fraction(float(weight)) * Fraction(float(sample[feature]))
            for feature, weight in zip(model.feature[terms], model.weight[terms], strict=True)
        ]
        if sum(products) <= Fraction(float(model.threshold[node])):
            return node
        begin += count
    return len(model.threshold)


def test_sums_part_samples_as_exact_arithmetic_does() -> None:
    data = sums(12)
    inputs = np.random.default_rng(3).normal(size=(200, 6)).astype(np.float32)
    found = load_rules(data).run(inputs).argmax(axis=1)
    assert found.tolist() == [first_that_holds(data, row) for row in inputs]
    assert len(set(found.tolist())) > 4


@pytest.mark.filterwarnings("error")
def test_infinities_in_sums_go_one_way_alone_and_together() -> None:
    runtime = load_rules(sums(12))
    rng = np.random.default_rng(4)
    inputs = rng.normal(size=(300, 6)).astype(np.float32)
    strange = rng.choice([np.inf, -np.inf, np.nan, 3e38, -3e38], inputs.shape).astype(np.float32)
    inputs = np.where(rng.random(inputs.shape) < 0.4, strange, inputs)
    together = runtime.run(inputs)
    assert np.array_equal(np.concatenate([runtime.run(row[None]) for row in inputs]), together)
    assert runtime.run(np.full((1, 6), np.nan, np.float32)).argmax() == 12  # to the right of every test


def test_a_tree_gives_exactly_what_scikit_learn_gives() -> None:
    runtime = load_rules(DATA)
    assert np.array_equal(runtime.run(INPUTS), WANTED)
    flat = INPUTS.reshape(len(INPUTS), -1)
    assert np.array_equal(runtime.run(INPUTS).argmax(axis=1), FITTED.predict(flat))


@pytest.mark.parametrize("data", [DATA, many_trees(1), many_trees(5), many_trees(300), sums(30)])
def test_one_sample_gives_what_it_gives_in_a_batch(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = load_rules(data)
    inputs = np.random.default_rng(1).normal(size=(40, *runtime.sample_shape)).astype(np.float32)
    together = runtime.run(inputs)
    assert np.array_equal(np.concatenate([runtime.run(row[None]) for row in inputs]), together)
    for steps in (0, 10**9):  # all through numpy, all through Python
        monkeypatch.setattr(runtime_rules, "MAX_PYTHON_STEPS", steps)
        other = load_rules(data)
        assert np.array_equal(np.concatenate([other.run(row[None]) for row in inputs]), together)
    monkeypatch.setattr(runtime_rules, "_MAX_WALKS", 600)
    assert np.array_equal(load_rules(data).run(inputs), together)


def test_boosted_trees_add_what_their_leaves_say() -> None:
    model = decode(many_trees(40))
    sample = np.random.default_rng(2).normal(size=6).astype(np.float32)
    scores = model.base.astype(np.float64)
    for root, number in zip(model.roots, model.tree_class, strict=True):
        at = int(root)
        while at >= 0:
            side = model.left if sample[model.feature[at]] <= model.threshold[at] else model.right
            at = int(side[at])
        scores[number] += model.leaves[-1 - at, 0]
    assert load_rules(many_trees(40)).run(sample[None])[0] == pytest.approx(scores, rel=1e-6)


def test_an_input_that_is_no_number_goes_right_and_never_astray() -> None:
    runtime = load_rules(DATA)
    strange = np.full((3, 1, 8, 8), np.nan, np.float32)
    strange[1], strange[2] = np.inf, -np.inf
    outputs = runtime.run(strange)
    assert np.isfinite(outputs).all()
    assert np.array_equal(outputs[0], outputs[1])  # infinity goes right as well
    assert np.array_equal(runtime.run(strange[:1]), outputs[:1])


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        (np.zeros((1, 1, 8, 8)), "input-type"),
        (np.zeros((1, 64), np.float32), "input-shape"),
        (np.zeros((0, 1, 8, 8), np.float32), "input-shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: Any, code: str) -> None:
    with pytest.raises(RejectedError) as caught:
        load_rules(DATA).run(inputs)
    assert caught.value.code == code


def test_what_a_caller_got_is_not_written_over() -> None:
    runtime = load_rules(DATA)
    first = runtime.run(INPUTS[:1])
    first[:] = 7
    assert np.array_equal(runtime.run(INPUTS[:1]), WANTED[:1])


def manifest(
    data: bytes, *, outputs: Floats = WANTED, artifact_format: str = "rules"
) -> artifact_pb2.Manifest:
    return artifact.build_manifest(
        data,
        artifact_format=artifact_format,
        workload="digits",
        profile="small",
        precision=artifact_pb2.PRECISION_FP32,
        inputs=[artifact_pb2.TensorSpec(name="input", datatype="FP32", shape=[0, 1, 8, 8])],
        outputs=[artifact_pb2.TensorSpec(name="logits", datatype="FP32", shape=[0, 10])],
        golden=artifact.golden_set(INPUTS[:20], outputs[:20], absolute_tolerance=1e-7),
        accuracy=0.8,
    )


def self_test(folder: Path, data: bytes, found: artifact_pb2.Manifest) -> SelfTestResult:
    raw = artifact.encode_manifest(found)
    (folder / "artifact").write_bytes(data)
    (folder / "manifest").write_bytes(raw)
    return run_self_test(
        SelfTestJob(
            artifact_path=folder / "artifact",
            manifest_path=folder / "manifest",
            manifest_digest=artifact.sha256_hex(raw),
        )
    )


def test_rules_pass_the_self_test_in_its_own_process(tmp_path: Path) -> None:
    result = self_test(tmp_path, DATA, manifest(DATA))
    assert result.passed, result
    assert result.max_error == 0.0
    assert 0 < result.p50_ms < float("inf")


def test_rules_that_decide_otherwise_fail_the_self_test(tmp_path: Path) -> None:
    result = self_test(tmp_path, DATA, manifest(DATA, outputs=WANTED + np.float32(0.01)))
    assert result.code == "self-test-output"


@pytest.mark.parametrize("damage", ["cut", "looping", "network"])
def test_bytes_that_are_no_rules_fail_the_self_test(tmp_path: Path, damage: str) -> None:
    data = bytearray(DATA)
    if damage == "cut":
        del data[-4:]
    elif damage == "network":
        data = bytearray(b"\x08\x08" + b"not rules" * 50)
    else:
        model = model_of(FITTED)
        at = bytes(data).index(model.left.tobytes())
        data[at : at + 4] = (0).to_bytes(4, "little")  # the root's left is the root
    result = self_test(tmp_path, bytes(data), manifest(bytes(data)))
    assert result.code == "self-test-load"
    assert "rules-malformed" in result.message


def test_rules_under_the_name_of_another_format_do_not_load(tmp_path: Path) -> None:
    result = self_test(tmp_path, DATA, manifest(DATA, artifact_format="onnx"))
    assert result.code == "self-test-load"
    assert "model-load" in result.message


def test_the_engine_serves_rules_as_it_serves_networks() -> None:
    runtime = load_artifact(DATA, manifest(DATA))
    engine = InferenceEngine(meter=LatencyMeter(window_s=1e6))
    engine.swap(ServedModel(runtime=runtime, digest="a" * 64, generation=1, workload="digits"))
    engine.start()
    try:
        answers = [engine.submit(INPUTS[row : row + 1]).result(60).outputs for row in range(50)]
        assert np.array_equal(np.concatenate(answers), WANTED[:50])
        assert np.array_equal(engine.submit(INPUTS[:16]).result(60).outputs, WANTED[:16])
    finally:
        engine.close()
