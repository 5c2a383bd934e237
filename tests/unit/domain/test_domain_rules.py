"""Rules as a point in compression space."""

from __future__ import annotations

import json
from typing import Any

import pytest
from domain_values import candidate, profile

from cloud.domain import codec
from cloud.domain.rules import RuleKind, RuleLabels, RuleSpec
from cloud.domain.search import Direction, propose
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.workloads import SearchBudget


def spec(**values: Any) -> CompressionSpec:
    return CompressionSpec.from_mapping({"road": "rules", "rules": values})


def test_rules_are_read_from_a_mapping() -> None:
    found = spec(kind="rule-list", max_depth=4, labels="soft")
    assert found.rules == RuleSpec(kind=RuleKind.RULE_LIST, max_depth=4, labels=RuleLabels.SOFT)
    assert CompressionSpec.from_mapping(json.loads(found.to_json())) == found
    assert codec.from_json(CompressionSpec, codec.to_json(found)) == found


def test_the_road_alone_stands_for_the_default_rules() -> None:
    bare = CompressionSpec(road=Road.RULES)
    assert CompressionSpec.from_mapping(json.loads(bare.to_json())) == bare, "as shown, it can be asked for"
    assert bare.rules == RuleSpec()
    assert bare.digest == spec().digest
    assert bare.digest != spec(max_depth=5).digest


def test_specs_without_rules_keep_their_identity() -> None:
    assert "rules" not in CompressionSpec().to_json()


def test_rules_of_single_inputs_keep_their_identity() -> None:
    assert spec().digest == spec(num_terms=1).digest == "f76f4fda4d09"
    assert spec(max_depth=5).digest == "e79744c9a75c"
    assert "num_terms" not in spec().to_json()
    sums = spec(num_terms=3)
    assert sums.digest != spec().digest
    assert CompressionSpec.from_mapping(json.loads(sums.to_json())) == sums
    assert codec.from_json(CompressionSpec, codec.to_json(sums)) == sums
    stored = json.loads(codec.to_json(spec()))
    del stored["rules"]["num_terms"]  # as it was stored before there were sums
    assert codec.from_json(CompressionSpec, json.dumps(stored)) == spec()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "forest"}, "rules.kind is 'forest': it must be one of tree, boosted, rule-list"),
        ({"labels": "mine"}, "rules.labels is 'mine'"),
        ({"max_depth": 0}, "rules.max_depth is 0: it must be a whole number from 1 to 16"),
        ({"max_depth": 4.5}, "rules.max_depth is 4.5"),
        ({"max_leaves": 1}, "rules.max_leaves is 1"),
        ({"num_trees": True}, "rules.num_trees is True"),
        ({"num_mixup_samples": -1}, "rules.num_mixup_samples is -1"),
        ({"num_starts": 0}, "rules.num_starts is 0"),
        ({"num_refine_rounds": "many"}, "rules.num_refine_rounds is 'many'"),
        ({"mixup_alpha": 0}, "rules.mixup_alpha is 0: it must be a number from 0.01"),
        ({"mixup_alpha": "x"}, "rules.mixup_alpha is 'x': it must be a number"),
        ({"learning_rate": 2}, "rules.learning_rate is 2"),
        ({"labels": "data"}, "rules.num_mixup_samples is 20000: with labels data it must be 0"),
        ({"num_terms": 0}, "rules.num_terms is 0: it must be a whole number from 1 to 8"),
        ({"num_terms": 9}, "rules.num_terms is 9"),
        ({"num_terms": 2.0}, "rules.num_terms is 2.0"),
        ({"num_terms": 2, "kind": "boosted"}, "rules.num_terms is 2: with kind boosted it must be 1"),
        ({"num_terms": 2, "kind": "rule-list"}, "rules.num_terms is 2: with kind rule-list it must be 1"),
        ({"num_terms": 2, "num_refine_rounds": 0}, "rules.num_refine_rounds is 0: with num_terms 2"),
        ({"depth": 3}, "unknown key rules.depth: known are kind"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="rules") as caught:
        spec(**values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"road": "pruned", "rules": {}}, "rules is given, but road is pruned"),
        ({"road": "rules", "rules": "tree"}, "rules is 'tree': it must be a mapping such as kind: tree"),
        ({"road": "rules", "precision": "int8"}, "precision is int8"),
        ({"road": "rules", "num_epochs": 9}, "num_epochs is 9, but road is rules"),
        ({"road": "rules", "width_ratio": 0.25}, "width_ratio is 0.25, but road is rules"),
        ({"road": "rules", "hint_weight": 1.0}, "hint_weight is 1.0, but road is rules"),
        ({"road": "rules", "quantisation": {"bits": 4}}, "quantisation is given, but road is rules"),
    ],
)
def test_rules_and_what_does_not_go_with_them(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="rules") as caught:
        CompressionSpec.from_mapping(values)
    assert message in str(caught.value)


def test_rules_do_not_bend_the_curve_that_widths_are_read_from() -> None:
    made = [candidate(0.75), candidate(0.5), candidate(0.25)]
    ruled = candidate(0.5, latency_ms=0.003, road=Road.RULES)
    asked: dict[str, Any] = {"direction": Direction.SMALLER, "budget": SearchBudget()}
    for target_ms in (0.2, 0.35):
        without = propose(profile(), made, target_latency_ms=target_ms, **asked)
        assert propose(profile(), [*made, ruled], target_latency_ms=target_ms, **asked) == without
        # What serves has no width either: larger and smaller than it means nothing.
        assert (
            propose(profile(), [*made, ruled], target_latency_ms=target_ms, current=ruled, **asked) == without
        )
