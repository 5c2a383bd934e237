"""Fields that do nothing on a road: refused where people ask, kept where they are stored, never proposed."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from domain_values import candidate, digest_of, profile

from cloud.cli.jobs import parse_spec
from cloud.domain import codec
from cloud.domain.candidates import Candidate
from cloud.domain.idle_fields import as_asked, without_idle
from cloud.domain.networks import StudentNetwork
from cloud.domain.profiles import Constraints
from cloud.domain.rungs import next_rung
from cloud.domain.search import Direction, propose
from cloud.domain.specs import CompressionSpec, Importance, Road
from cloud.domain.workloads import SearchBudget
from cloud.services.asked_specs import asked_specs
from edgeloop.errors import ConfigError

TINY = StudentNetwork(name="tiny", network="my_module:tiny_cnn")
#: A value of each field other than its default, for those that any road of networks could have.
OTHER: dict[str, Any] = {
    "width_ratio": 0.25, "precision": "int8", "num_epochs": 7, "learning_rate": 0.01, "temperature": 2.0,
    "alpha": 0.5, "seed": 3, "quantisation": {"bits": 4}, "importance": "magnitude", "pruning_steps": 2,
    "hint_weight": 0.5, "sparsity": {"ratio": 0.5}, "depth_ratio": 0.5, "shortcuts": False,
}  # fmt: skip
RANKING = ("importance", "pruning_steps")
TEACHING = ("hint_weight", "temperature", "alpha")
#: What does nothing, by what a spec is made of beside the field. Whatever is not here does something.
IDLE: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"road": "pruned"}, ()),
    ({"road": "distilled"}, RANKING),
    ({"road": "scratch"}, (*RANKING, *TEACHING)),
    ({"road": "elastic"}, RANKING),
    ({"road": "elastic", "num_epochs": 0}, (*RANKING, *TEACHING, "learning_rate")),
    ({"road": "pruned", "num_epochs": 0}, (*TEACHING, "learning_rate")),
    ({"road": "scratch", "quantisation": {"bits": 4}}, (*RANKING, "hint_weight")),
    ({"road": "pruned", "num_epochs": 0, "quantisation": {"bits": 4}}, ("learning_rate", "hint_weight")),
    ({"road": "scratch", "quantisation": {"bits": 4, "tuning_epochs": 0, "qat_epochs": 0}},
     (*RANKING, *TEACHING)),
    ({"network": "tiny"}, ("shortcuts", *RANKING, "depth_ratio")),
]  # fmt: skip


@pytest.mark.parametrize(("given", "idle"), IDLE)
def test_each_field_on_each_road_is_taken_or_refused_by_its_name(
    given: dict[str, Any], idle: tuple[str, ...]
) -> None:
    for name, value in OTHER.items():
        if name in given:
            continue
        text = json.dumps({**given, name: value})
        if name not in idle:
            (spec,) = asked_specs([text], [TINY])
            assert name in json.loads(spec.to_json()), "it is part of what was asked for"
            continue
        with pytest.raises(ConfigError, match=rf"spec 1: {name} is .*leave {name} out") as caught:
            asked_specs([text], [TINY])
        assert len(str(caught.value)) < 300
    assert OTHER.keys() == {field.name for field in fields(CompressionSpec)} - {
        "road", "version", "rules", "network",
    }  # fmt: skip


#: Values of ``quantisation`` that differ from the usual ones, each of which does something beside the first.
ROUNDING = {
    "estimator": "mse", "activation_estimator": "entropy", "percentile": 99.0, "tuning_learning_rate": 1e-4,
    "qat_epochs": 5, "tolerance": 0.02,
}  # fmt: skip
IDLE_IN_ROUNDING: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("int8", {}, ("percentile",)),
    ("auto", {"activation_estimator": "percentile"}, ()),
    ("auto", {"estimator": "percentile"}, ()),
    ("int8", {"scheme": "codebook", "bits": 3}, ("estimator", "percentile")),
    ("int8", {"scheme": "logarithmic", "bits": 4, "activation_estimator": "percentile"}, ("estimator",)),
    ("int8", {"tuning_epochs": 0}, ("percentile",)),
    ("int8", {"qat_epochs": 0}, ("percentile", "tolerance")),
    ("int8", {"qat_epochs": 0, "tuning_epochs": 0}, ("percentile", "tolerance", "tuning_learning_rate")),
    ("fp32", {}, ("percentile", "activation_estimator", "qat_epochs", "tolerance")),
    ("fp32", {"estimator": "percentile", "qat_epochs": 0}, ("activation_estimator", "tolerance")),
    ("fp32", {"tuning_epochs": 0},
     ("percentile", "activation_estimator", "qat_epochs", "tolerance", "tuning_learning_rate")),
]  # fmt: skip


@pytest.mark.parametrize(("precision", "given", "idle"), IDLE_IN_ROUNDING)
def test_each_field_of_quantisation_is_taken_or_refused_by_its_name(
    precision: str, given: dict[str, Any], idle: tuple[str, ...]
) -> None:
    for name, value in ROUNDING.items():
        if name in given:
            continue
        text = json.dumps({"precision": precision, "quantisation": {**given, name: value}})
        if name not in idle:
            (spec,) = asked_specs([text], [])
            assert json.loads(spec.to_json())["quantisation"][name] == value
            continue
        with pytest.raises(
            ConfigError, match=rf"spec 1: quantisation.{name} is .*leave {name} out"
        ) as caught:
            asked_specs([text], [])
        assert len(str(caught.value)) < 300


def test_the_command_line_says_field_road_and_what_to_do() -> None:
    for text, said in (
        ("road=distilled,importance=magnitude",
         "importance is magnitude, but road is distilled: its network begins with fresh weights, none of "
         "which matters more than the rest; set road to pruned, or leave importance out"),
        ("road=scratch,hint_weight=0.5",
         "hint_weight is 0.5, but road is scratch: it learns from the labels alone; set road to distilled"),
        ("road=elastic,num_epochs=0,alpha=0.9", "alpha is 0.9, but num_epochs is 0: nothing is trained;"),
        ("network=tiny,shortcuts=false", "shortcuts is False, but network is tiny: a network of your own"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            parse_spec(text)
        assert f"--spec {text}: {said}" in str(caught.value)


def test_what_is_done_anyway_is_left_out_so_that_the_same_wish_is_the_same_student() -> None:
    for given in ("road=distilled", "road=scratch", "road=elastic"):
        assert parse_spec(f"{given},pruning_steps=1,importance=taylor") == parse_spec(given)
    assert parse_spec("road=scratch,hint_weight=0,alpha=0.7,temperature=4") == parse_spec("road=scratch")
    cut = "road=elastic,num_epochs=0"
    assert parse_spec(f"{cut},hint_weight=0") == parse_spec(cut)
    pruned = parse_spec("importance=taylor,pruning_steps=1,hint_weight=0")
    assert (pruned.importance, pruned.pruning_steps, pruned.hint_weight) == (Importance.TAYLOR, 1, 0)


def test_one_that_was_stored_before_is_read_as_it_was() -> None:
    old = CompressionSpec(road=Road.DISTILLED, importance=Importance.MAGNITUDE, pruning_steps=2)
    assert codec.from_json(CompressionSpec, codec.to_json(old)) == old
    assert CompressionSpec.from_mapping(json.loads(old.to_json())) == old
    assert without_idle(old) == CompressionSpec(road=Road.DISTILLED)
    with pytest.raises(ValueError, match="importance is magnitude"):
        as_asked(old)


def built(spec: CompressionSpec, *, p95_ms: float = 8.0, accuracy: float = 0.95) -> Candidate:
    made = candidate(spec.width_ratio, accuracy=accuracy, latency_ms=p95_ms * 0.9, artifact_bytes=90_000)
    metrics = replace(made.metrics, latency_p95_ms=p95_ms, int8_loss=0.05)
    return replace(made, metrics=metrics, spec=spec, digest=digest_of(spec.to_json()))


@pytest.mark.parametrize("road", [road for road in Road if road is not Road.RULES])
@pytest.mark.parametrize(
    "constraints",
    [
        Constraints(latency_p95_ms=5.0),
        Constraints(artifact_bytes=70_000),
        Constraints(latency_p95_ms=5.0, artifact_bytes=20_000),
    ],
)
def test_no_proposal_names_a_field_that_does_nothing_whatever_it_starts_from(
    road: Road, constraints: Constraints
) -> None:
    budget = SearchBudget(max_trials=20, family_epochs=2, students=(TINY,))
    for num_epochs in (0, 4):
        old = [
            CompressionSpec(
                road=road, num_epochs=num_epochs, importance=Importance.MAGNITUDE, pruning_steps=2,
                hint_weight=0.5, alpha=0.5, temperature=2.0, learning_rate=0.01, width_ratio=width,
            )
            for width in (0.5, 0.25)
        ]  # fmt: skip
        if road in (Road.DISTILLED, Road.SCRATCH):
            old.append(CompressionSpec(road=road, network=TINY.reference, width_ratio=1.0, shortcuts=False))
        tried = [built(spec, p95_ms=8 - i) for i, spec in enumerate(old)]
        found = [
            proposal.spec
            for proposal in next_rung(
                old, tried, constraints=constraints, budget=budget, max_trials=20, num_inputs=64,
                num_branches=4, num_shortcuts=4,
            )
        ]  # fmt: skip
        asked = replace(profile(None), constraints=constraints)
        for direction in Direction:
            for target in (None, 4.0):
                found += propose(
                    asked, tried, target_latency_ms=target, direction=direction, budget=budget,
                    current=tried[0], num_branches=4, num_shortcuts=4,
                )  # fmt: skip
        assert len(found) > 4
        for spec in found:
            assert as_asked(spec) == spec, spec.to_json()
            assert asked_specs([spec.to_json()], [TINY]) == (spec,)
