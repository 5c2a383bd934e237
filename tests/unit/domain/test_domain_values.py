"""Profiles, specs, candidates, workloads and their JSON."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from domain_values import candidate, profile
from hypothesis import given
from hypothesis import strategies as st

from cloud.domain import codec
from cloud.domain.candidates import Candidate, fastest, most_accurate, pareto_front
from cloud.domain.profiles import Constraints, DeviceProfile, Hardware, MatchRule, match_profile
from cloud.domain.specs import CompressionSpec, Precision, Road
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload

HARDWARE = Hardware(
    architecture="x86_64", num_cores=4, memory_bytes=2**32, instruction_sets=frozenset({"avx2", "fma"})
)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (MatchRule(architecture="aarch64"), "architecture is x86_64, not aarch64"),
        (MatchRule(instruction_sets=frozenset({"avx2", "avx512_vnni"})), "avx512_vnni are missing"),
        (MatchRule(min_cores=8), "cores is 4, under 8"),
        (MatchRule(max_cores=2), "cores is 4, over 2"),
        (MatchRule(min_memory_bytes=2**33), "memory_bytes is 4294967296, under"),
        (MatchRule(max_memory_bytes=2**30), "memory_bytes is 4294967296, over"),
        (MatchRule(labels={"site": "b"}), "label site is a, not b"),
        (MatchRule(labels={"rack": "1"}), "label rack is (not set), not 1"),
    ],
)
def test_a_rule_says_each_condition_that_does_not_hold(rule, said):
    assert not rule.matches(HARDWARE, {"site": "a"})
    assert said in " ".join(rule.mismatches(HARDWARE, {"site": "a"}))


def test_bounds_are_inclusive():
    rule = MatchRule(
        architecture="x86_64", min_cores=4, max_cores=4, min_memory_bytes=2**32, max_memory_bytes=2**32
    )
    assert rule.matches(HARDWARE, {})


def named(name: str, **rule) -> DeviceProfile:
    return replace(profile(name=name), match=MatchRule(**rule))


def test_the_most_specific_profile_wins_whatever_the_order():
    profiles = [named("any"), named("b", min_cores=2, labels={"site": "a"}), named("a", min_cores=2)]
    for _ in range(5):
        random.shuffle(profiles)
        found, reason = match_profile(profiles, HARDWARE, {"site": "a"})
        assert found is not None
        assert (found.name, reason) == ("b", "")


def test_of_equally_specific_profiles_the_first_by_name_wins():
    found, _ = match_profile([named("z", min_cores=1), named("c", max_cores=8)], HARDWARE, {})
    assert found is not None
    assert found.name == "c"


def test_no_match_names_each_profile_and_why():
    found, reason = match_profile(
        [named("big", min_cores=64), named("arm", architecture="aarch64")], HARDWARE, {}
    )
    assert found is None
    assert "big: cores is 4, under 64" in reason
    assert "arm: architecture is x86_64" in reason
    assert "apply a fleet file" in match_profile([], HARDWARE, {})[1]


@pytest.mark.parametrize(
    ("instruction_sets", "reduced"),
    [({"avx2"}, True), (set(), True), ({"avx2", "avx512_vnni"}, False), ({"asimddp"}, False)],
)
def test_weights_stay_within_seven_bits_where_accumulation_is_narrow(instruction_sets, reduced):
    made = replace(profile(), instruction_sets=frozenset(instruction_sets))
    assert made.needs_reduced_range is reduced


# Specs.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width_ratio", 0.0),
        ("width_ratio", 1.1),
        ("width_ratio", float("nan")),
        ("width_ratio", True),
        ("num_epochs", -1),
        ("learning_rate", 0.0),
        ("temperature", 0.0),
        ("alpha", 1.5),
        ("seed", -1),
        ("version", 2),
        ("alpha", "0.5"),
    ],
)
def test_a_spec_out_of_range_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        CompressionSpec(**{field: value})


def test_a_spec_is_itself_again_after_json():
    spec = CompressionSpec(road=Road.SCRATCH, width_ratio=0.3, precision=Precision.FP32)
    again = CompressionSpec.from_mapping(json.loads(spec.to_json()))
    assert again == spec
    assert again.digest == spec.digest
    assert len(spec.digest) == 12


@pytest.mark.parametrize(
    ("values", "said"),
    [({"raod": "pruned"}, "unknown key 'raod'"), ({"road": "walked"}, "one of pruned, distilled, scratch")],
)
def test_a_spec_from_a_file_says_what_is_wrong(values, said):
    with pytest.raises(ValueError, match=said):
        CompressionSpec.from_mapping(values)


@given(st.data())
def test_different_specs_have_different_digests(data):
    made = [
        CompressionSpec(
            road=data.draw(st.sampled_from(Road)),
            width_ratio=data.draw(st.floats(0.01, 1.0)),
            seed=data.draw(st.integers(0, 3)),
        )
        for _ in range(2)
    ]
    assert (made[0] == made[1]) == (made[0].digest == made[1].digest)


# Candidates.


@given(
    st.lists(
        st.tuples(st.integers(1, 16), st.floats(0.5, 0.99), st.floats(0.1, 2.0), st.booleans()),
        max_size=12,
    )
)
def test_nothing_on_the_front_is_beaten_and_all_else_is(figures):
    made = [
        candidate(
            n / 16,
            accuracy=accuracy,
            latency_ms=latency,
            rejected_reason="no" if rejected else "",
            seed=i,
        )
        for i, (n, accuracy, latency, rejected) in enumerate(figures)
    ]
    front = pareto_front(made)
    assert front == pareto_front(made[::-1])
    latencies = [c.metrics.latency_p50_ms for c in front]
    assert latencies == sorted(latencies)

    def beats(a: Candidate, b: Candidate) -> bool:
        x, y = a.metrics, b.metrics
        at_least = (
            x.accuracy >= y.accuracy
            and x.latency_p50_ms <= y.latency_p50_ms
            and x.artifact_bytes <= y.artifact_bytes
        )
        return at_least and x != y

    kept = {c.digest for c in front}
    for one in made:
        if one.rejected_reason:
            assert one.digest not in kept
        elif one.digest in kept:
            assert not any(beats(other, one) for other in made if not other.rejected_reason)
        else:
            assert any(not beats(one, other) for other in front)


def test_ties_go_to_what_costs_less():
    slow, fast = candidate(0.5, accuracy=0.9, latency_ms=2.0), candidate(0.25, accuracy=0.9, latency_ms=1.0)
    assert most_accurate([slow, fast]) == fast
    dull = candidate(0.3, accuracy=0.8, latency_ms=1.0)
    assert fastest([dull, fast]) == fast


# Workloads.


def test_a_workload_is_itself_again_after_json():
    made = Workload(
        name="digits",
        dataset="digits",
        dataset_options={"a": [1, 2]},
        training=TrainingBudget(num_epochs=3),
        search=SearchBudget(width_ratios=(0.5, 0.25)),
    )
    assert Workload.from_json(made.to_json()) == made


def test_only_what_trains_the_teacher_changes_its_key():
    made = Workload(name="digits", dataset="digits")
    assert replace(made, search=SearchBudget(max_trials=99)).teacher_key == made.teacher_key
    assert replace(made, student="other").teacher_key == made.teacher_key
    assert replace(made, training=TrainingBudget(num_epochs=1)).teacher_key != made.teacher_key
    assert replace(made, dataset="fashion-mnist").teacher_key != made.teacher_key


# JSON of values.


def test_values_come_back_as_they_were():
    made = replace(
        profile(5.5, min_accuracy=0.9),
        match=MatchRule(labels={"site": "a"}, instruction_sets=frozenset({"avx2"})),
        instruction_sets=frozenset({"fma", "avx2"}),
    )
    text = codec.to_json(made)
    assert codec.from_json(DeviceProfile, text) == made
    assert codec.to_json(codec.from_json(DeviceProfile, text)) == text
    other = candidate(0.3)
    assert codec.from_json(Candidate, codec.to_json(other)) == other


def test_values_may_grow():
    assert codec.from_json(Constraints, '{"min_accuracy":0.5,"added_later":1}') == Constraints(
        min_accuracy=0.5
    )
    assert codec.from_json(Constraints, "{}") == Constraints()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Candidate, "{}"),
        (Constraints, "[]"),
        (Constraints, '{"min_accuracy":"high"}'),
        (Workload, '{"name":3,"dataset":"d"}'),
        (CompressionSpec, '{"road":"walked"}'),
    ],
)
def test_text_that_does_not_fit_is_refused(kind, text):
    with pytest.raises(ValueError, match=r".+"):
        codec.from_json(kind, text)


@pytest.mark.parametrize("value", [object(), b"bytes", {"a": object()}])
def test_only_plain_values_are_written(value):
    with pytest.raises(TypeError):
        codec.to_json(value)


def test_numbers_that_json_has_not_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        codec.to_json(Constraints(min_accuracy=float("nan")))
