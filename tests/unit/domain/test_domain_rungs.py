"""The search with a family: cuts first, the better half goes on, nothing twice, the budget held."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from domain_values import candidate, profile
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.domain.candidates import Candidate
from cloud.domain.profiles import Constraints
from cloud.domain.rungs import is_cut, next_rung
from cloud.domain.search import Direction, propose
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.workloads import SearchBudget

PROFILE = profile()
BUDGET = SearchBudget(family_epochs=4, max_trials=8, width_ratios=(0.75, 0.5, 0.25, 0.125))


def rung(*given: Any, **named: Any) -> tuple[CompressionSpec, ...]:
    """The specs alone."""
    return tuple(proposal.spec for proposal in next_rung(*given, **named))


def cut(width: float) -> CompressionSpec:
    return CompressionSpec(road=Road.ELASTIC, width_ratio=width, num_epochs=0)


def built(width: float, *, accuracy: float | None = None, **changes: object) -> Candidate:
    made = candidate(width, accuracy=accuracy, road=Road.ELASTIC, **changes)  # type: ignore[arg-type]
    return replace(made, spec=cut(width))


def test_a_search_with_a_family_begins_with_its_cuts_alone() -> None:
    specs = propose(PROFILE, [], target_latency_ms=None, direction=Direction.INITIAL, budget=BUDGET)
    assert specs == tuple(cut(width) for width in BUDGET.width_ratios)
    without = replace(BUDGET, family_epochs=0)
    specs = propose(PROFILE, [], target_latency_ms=None, direction=Direction.INITIAL, budget=without)
    assert Road.ELASTIC not in {spec.road for spec in specs}


def test_a_width_that_the_family_does_not_hold_is_not_cut() -> None:
    budget = replace(BUDGET, width_ratios=(0.5, 0.0625))
    specs = propose(PROFILE, [], target_latency_ms=None, direction=Direction.INITIAL, budget=budget)
    assert specs == (cut(0.5),)


def test_a_miss_is_answered_with_cuts_and_then_with_trained_students() -> None:
    current = built(0.75)
    made = [current, built(0.5)]
    answered = propose(
        PROFILE, made, target_latency_ms=0.3, direction=Direction.SMALLER, budget=BUDGET, current=current
    )
    assert answered
    assert all(is_cut(spec) for spec in answered)
    then = propose(
        PROFILE, made, target_latency_ms=0.3, direction=Direction.SMALLER, budget=BUDGET, current=current,
        exclude=[spec.digest for spec in answered],
    )  # fmt: skip
    assert then
    assert all(spec.num_epochs == BUDGET.num_epochs for spec in then)


def test_the_better_half_is_continued_and_challenged_by_other_roads() -> None:
    widths = (0.75, 0.5, 0.25, 0.125)
    more = rung(
        [cut(width) for width in widths], [built(width) for width in widths],
        constraints=Constraints(), budget=BUDGET, max_trials=8,
    )  # fmt: skip
    assert [(spec.road, spec.width_ratio) for spec in more] == [
        (Road.ELASTIC, 0.75),
        (Road.ELASTIC, 0.5),
        (Road.PRUNED, 0.75),
        (Road.PRUNED, 0.5),
    ]
    assert {spec.num_epochs for spec in more} == {BUDGET.num_epochs}


def test_what_breaks_a_constraint_is_not_trained_further() -> None:
    widths = (0.75, 0.5, 0.25, 0.125)
    more = rung(
        [cut(width) for width in widths], [built(width) for width in widths],
        constraints=Constraints(artifact_bytes=60_000), budget=BUDGET, max_trials=8,
    )  # fmt: skip
    plain = [spec for spec in more if spec.quantisation is None and spec.sparsity is None]
    assert {spec.width_ratio for spec in plain} == {0.5, 0.25}
    # What is too large is not trained as it is, but made smaller, and that comes first.
    assert more[0].width_ratio == 0.75
    assert more[0] not in plain


def test_a_floor_that_training_may_reach_ends_no_width_and_of_one_out_of_reach_the_nearest_is_trained() -> (
    None
):
    made = [built(0.5, accuracy=0.92), built(0.25, accuracy=0.85)]
    tried = [cut(0.5), cut(0.25)]
    near = rung(tried, made, constraints=Constraints(min_accuracy=0.93), budget=BUDGET, max_trials=8)
    assert {spec.width_ratio for spec in near} == {0.5}
    far = rung(tried, made, constraints=Constraints(min_accuracy=0.99), budget=BUDGET, max_trials=8)
    assert [(spec.road, spec.width_ratio, spec.num_epochs > 0) for spec in far] == [
        (Road.ELASTIC, 0.5, True), (Road.PRUNED, 0.5, True), (Road.DISTILLED, 0.5, True),
    ]  # fmt: skip
    for floor, why in ((0.93, "on the front of the cuts"), (0.99, "the nearest to the accuracy floor")):
        constraints = Constraints(min_accuracy=floor)
        (first, *_) = next_rung(tried, made, constraints=constraints, budget=BUDGET, max_trials=8)
        assert why in first.reason
    unfit = Constraints(min_accuracy=0.99, peak_rss_bytes=1)
    assert rung(tried, made, constraints=unfit, budget=BUDGET, max_trials=8) == ()
    one = rung(tried[:1], made[:1], constraints=Constraints(min_accuracy=0.99), budget=BUDGET, max_trials=1)
    assert one == (), "no trial is left"


def test_without_epochs_nothing_is_proposed_that_would_have_to_learn() -> None:
    untrained = (Road.DISTILLED, Road.SCRATCH)
    for family_epochs in (0, 4):
        budget = replace(BUDGET, num_epochs=0, family_epochs=family_epochs, max_trials=12)
        made = [built(width) for width in budget.width_ratios]
        found = list(
            rung([c.spec for c in made], made, constraints=Constraints(), budget=budget, max_trials=12)
        )
        for direction in Direction:
            for target in (None, 0.2):
                found += propose(
                    PROFILE, made, target_latency_ms=target, direction=direction, budget=budget,
                    current=made[0], num_branches=4, num_shortcuts=4,
                )  # fmt: skip
        assert found
        assert not [spec.label for spec in found if spec.road in untrained]


def test_a_rejected_or_failed_cut_is_not_continued() -> None:
    made = [built(0.5, rejected_reason="slower than its parent")]
    more = rung([cut(0.5), cut(0.25)], made, constraints=Constraints(), budget=BUDGET, max_trials=8)
    assert more == ()


@settings(deadline=None)
@given(
    st.lists(st.integers(2, 16), min_size=1, max_size=10, unique=True),
    st.lists(st.floats(0.5, 1.0), min_size=10, max_size=10),
    st.integers(1, 24),
    st.integers(0, 3),
)
def test_no_spec_twice_the_budget_is_held_and_there_are_two_rungs(
    steps: list[int], accuracies: list[float], max_trials: int, num_epochs: int
) -> None:
    tried = [cut(step / 16) for step in steps][:max_trials]
    made = [
        built(spec.width_ratio, accuracy=accuracy) for spec, accuracy in zip(tried, accuracies, strict=False)
    ]
    budget = replace(BUDGET, num_epochs=num_epochs)

    def go_on(found: list[Candidate]) -> tuple[CompressionSpec, ...]:
        return rung(tried, found, constraints=Constraints(), budget=budget, max_trials=max_trials)

    more = go_on(made)
    assert more == go_on(made[::-1])
    everything = [*tried, *more]
    assert len({spec.digest for spec in everything}) == len(everything) <= max(max_trials, len(tried))
    assert len({spec.width_ratio for spec in more}) <= math.ceil(len(tried) / 2)
    if more:
        assert next_rung(everything, made, constraints=Constraints(), budget=budget, max_trials=99) == ()


@pytest.mark.parametrize("road", list(Road))
def test_specs_of_people_have_no_second_rung_unless_all_are_cuts(road: Road) -> None:
    tried = [CompressionSpec(road=road, num_epochs=2)]
    assert rung(tried, [], constraints=Constraints(), budget=BUDGET, max_trials=8) == ()
