from __future__ import annotations

import pytest

from cloud.domain import codec
from cloud.domain.sparsity import Scope, SparsitySpec, WeightImportance
from cloud.domain.specs import CompressionSpec


def test_a_spec_without_sparsity_keeps_the_identity_that_it_had() -> None:
    assert "sparsity" not in CompressionSpec().to_json()


def test_a_spec_is_read_from_plain_values_and_comes_back_from_its_json() -> None:
    spec = CompressionSpec.from_mapping(
        {"sparsity": {"ratio": 0.75, "importance": "taylor", "scope": "layer", "num_steps": 4}}
    )
    assert spec.sparsity == SparsitySpec(
        ratio=0.75, importance=WeightImportance.TAYLOR, scope=Scope.LAYER, num_steps=4
    )
    assert codec.from_json(CompressionSpec, codec.to_json(spec)) == spec
    assert spec.digest not in (
        CompressionSpec().digest,
        CompressionSpec(sparsity=SparsitySpec(ratio=0.5)).digest,
    )


def test_a_pattern_says_its_ratio() -> None:
    spec = SparsitySpec.from_mapping({"pattern": "1:4"})
    assert (spec.ratio, spec.group) == (0.75, (1, 4))
    assert SparsitySpec(ratio=0.5).group is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ratio": 0.99}, r"sparsity\.ratio is 0\.99: it must be a number from 0\.0 to 0\.98"),
        ({"ratio": "much"}, r"sparsity\.ratio is 'much'"),
        ({}, r"sparsity\.ratio is missing"),
        ({"ratio": 0.5, "pattern": "4:2"}, r"sparsity\.pattern is '4:2': it must be unstructured, or N:M"),
        ({"pattern": 24}, r"sparsity\.pattern is 24"),
        ({"ratio": 0.75, "pattern": "2:4"}, r"sparsity\.ratio is 0\.75: with pattern 2:4 it must be 0\.5"),
        ({"ratio": 0.5, "num_steps": 0}, r"sparsity\.num_steps is 0"),
        ({"ratio": 0.5, "num_steps": 2.5}, r"sparsity\.num_steps is 2\.5: it must be a whole number"),
        (
            {"ratio": 0.5, "begin_ratio": 0.6},
            r"sparsity\.end_ratio is 0\.5: it must not be under begin_ratio",
        ),
        (
            {"ratio": 0.5, "importance": "luck"},
            r"sparsity\.importance is 'luck': it must be one of magnitude",
        ),
        ({"ratio": 0.5, "scope": "all"}, r"sparsity\.scope is 'all': it must be one of global, layer"),
        ({"rate": 0.5}, r"sparsity\.rate is an unknown key"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_possible(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CompressionSpec.from_mapping({"sparsity": values})


def test_something_else_than_a_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sparsity is 0\.5: it must be a mapping"):
        CompressionSpec.from_mapping({"sparsity": 0.5})


def test_the_schedule_rises_as_a_cubic_between_its_bounds() -> None:
    spec = SparsitySpec(ratio=0.8, num_steps=4, begin_ratio=0.2, end_ratio=0.8)
    dues = [spec.cuts_due(step, 100) for step in range(101)]
    assert dues[:20] == [0] * 20
    assert (dues[20], dues[40], dues[60], dues[80], dues[100]) == (1, 2, 3, 4, 4)
    assert dues == sorted(dues)
    assert [round(spec.share_after(n), 4) for n in range(5)] == [0.0, 0.5781, 0.875, 0.9844, 1.0]


@pytest.mark.parametrize("num_training_steps", [0, 1, 3, 50])
@pytest.mark.parametrize("end_ratio", [0.0, 0.5, 1.0])
def test_however_short_the_training_all_cuts_are_made(num_training_steps: int, end_ratio: float) -> None:
    spec = SparsitySpec(ratio=0.5, num_steps=8, end_ratio=end_ratio)
    assert spec.cuts_due(num_training_steps, num_training_steps) == 8
