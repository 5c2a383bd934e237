"""Fewer layers as the search's answer to latency: when it asks for them, for how many, and what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from domain_values import NOW_S, candidate, digest_of, fleet_windows, profile

from cloud.domain.candidates import Candidate
from cloud.domain.families import FamilySettings, family_key
from cloud.domain.methods import Method, Proposal, reserved_trials, shorter, shorter_students
from cloud.domain.policy import Action, PolicySettings, decide, replay
from cloud.domain.profiles import Constraints
from cloud.domain.rungs import next_rung
from cloud.domain.search import Direction, propose
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.state import PolicyState
from cloud.domain.width_curve import width_for
from cloud.domain.workloads import SearchBudget, Workload
from cloud.family_plans import family_settings

BUDGET = SearchBudget(max_trials=8)
PROFILE = profile()


def student(width: float, accuracy: float, p95_ms: float, **spec: object) -> Candidate:
    made = candidate(width, accuracy=accuracy, latency_ms=p95_ms)
    metrics = replace(made.metrics, latency_p50_ms=p95_ms * 0.9, latency_p95_ms=p95_ms)
    found = replace(made.spec, **spec)  # type: ignore[arg-type]
    return replace(made, metrics=metrics, spec=found, digest=digest_of(f"{found.to_json()} {p95_ms}"))


WIDE, NARROW = student(0.75, 0.95, 8.0), student(0.25, 0.85, 3.0)


def asked(built: list[Candidate], limit: float | None, **options: object) -> tuple[Proposal, ...]:
    given = {"methods": None, "num_epochs": 3, "num_branches": 4, **options}
    return shorter_students(built, constraints=Constraints(latency_p95_ms=limit), **given)  # type: ignore[arg-type]


def test_latency_that_does_not_bind_and_a_teacher_without_branches_ask_for_nothing() -> None:
    for limit in (None, 9.0):
        assert asked([WIDE, NARROW], limit) == ()
    for count in (0, 1):
        assert asked([WIDE], 4.0, num_branches=count) == ()
    assert asked([WIDE], 4.0, methods=(Method.RULES,)) == ()
    assert asked([replace(WIDE, rejected_reason="slower")], 4.0) == ()


@pytest.mark.parametrize(("limit", "depth"), [(7.9, 0.75), (4.0, 0.5), (0.5, 0.25)])
def test_the_best_student_that_is_too_slow_keeps_its_width_and_as_many_layers_as_could_be_enough(
    limit: float, depth: float
) -> None:
    first = asked([WIDE, NARROW], limit)[0]
    assert first.spec == replace(WIDE.spec, depth_ratio=depth)
    assert f"latency binds: {WIDE.digest[:12]} takes 8 ms of at most {limit:g}" in first.reason
    assert f"{round(4 * depth)} of 4 branches" in first.reason


def test_a_faster_student_that_is_as_accurate_ends_it_and_what_breaks_another_constraint_is_no_base() -> None:
    assert asked([WIDE, student(0.5, 0.95, 3.9)], 4.0) == ()
    limits = Constraints(latency_p95_ms=4.0, min_accuracy=0.99)
    assert shorter_students([WIDE], constraints=limits, methods=None, num_epochs=3, num_branches=4) == ()


def test_what_is_short_becomes_shorter_until_one_branch_is_left_and_nothing_comes_twice() -> None:
    spec: CompressionSpec | None = WIDE.spec
    depths = []
    while spec is not None:
        depths.append(spec.depth_ratio)
        spec = shorter(spec, latency_ratio=0.9, num_branches=4, num_epochs=3)
    assert depths == [None, 0.75, 0.5, 0.25]
    (first,) = asked([WIDE], 4.0)
    assert asked([WIDE], 4.0, exclude=[first.spec.digest]) == ()


def test_a_cut_is_trained_when_it_becomes_shorter_and_without_epochs_nothing_does() -> None:
    cut = student(0.75, 0.95, 8.0, road=Road.ELASTIC, num_epochs=0)
    (found,) = asked([cut], 4.0)
    assert (found.spec.road, found.spec.num_epochs, found.spec.depth_ratio) == (Road.ELASTIC, 3, 0.5)
    assert asked([cut], 4.0, num_epochs=0) == ()


def test_shorter_students_compete_with_narrower_ones_on_the_rung_after_the_cuts() -> None:
    budget = replace(BUDGET, family_epochs=4)
    cuts = [student(w, a, t, road=Road.ELASTIC, num_epochs=0)
            for w, a, t in ((0.75, 0.95, 8.0), (0.5, 0.93, 6.0), (0.25, 0.85, 3.0))]  # fmt: skip
    more = next_rung(
        [c.spec for c in cuts], cuts, constraints=Constraints(latency_p95_ms=4.0), budget=budget,
        max_trials=8, num_branches=4,
    )  # fmt: skip
    depths = [proposal.spec.depth_ratio for proposal in more]
    assert depths[:2] == [0.5, 0.5]
    assert None in depths
    assert more[0].reason.startswith("latency binds")


def test_without_a_family_a_trial_is_left_for_it_and_taken_when_latency_binds() -> None:
    limits = Constraints(latency_p95_ms=4.0)
    assert reserved_trials(limits, None, 6, num_branches=3) == 1
    assert reserved_trials(limits, None, 6) == 0
    assert reserved_trials(Constraints(), None, 6, num_branches=3) == 0
    tried = [WIDE.spec, NARROW.spec]
    more = next_rung(tried, [WIDE, NARROW], constraints=limits, budget=BUDGET, max_trials=3, num_branches=3)
    assert [proposal.spec.depth_ratio for proposal in more] == [0.333]


def test_a_miss_on_the_fleet_is_answered_with_a_shorter_student_beside_narrower_ones() -> None:
    def answers(**options: object) -> tuple[CompressionSpec, ...]:
        return propose(
            PROFILE, [WIDE, NARROW], target_latency_ms=3.6, direction=Direction.SMALLER, current=WIDE,
            **{"budget": BUDGET, "num_branches": 4, **options},  # type: ignore[arg-type]
        )  # fmt: skip

    specs = answers()
    assert [spec.depth_ratio for spec in specs].count(0.5) == 1
    assert specs[0].depth_ratio is None
    assert next(spec for spec in specs if spec.depth_ratio).width_ratio == WIDE.spec.width_ratio
    for none in (answers(num_branches=0), answers(budget=replace(BUDGET, methods=()))):
        assert all(spec.depth_ratio is None for spec in none)


def test_a_shorter_student_says_nothing_about_widths() -> None:
    built = [WIDE, NARROW, student(0.75, 0.93, 1.0, depth_ratio=0.25)]
    specs = [
        propose(PROFILE, made, target_latency_ms=3.0, direction=Direction.SMALLER, budget=BUDGET)
        for made in (built, built[:2])
    ]
    assert specs[0] == specs[1]
    assert width_for(built[:2], 2.7) == pytest.approx(0.25)


def test_a_decision_names_the_depth_and_is_replayed_with_it() -> None:
    decision, _ = decide(
        profile=profile(5.0), windows=fleet_windows(8.0, digest=WIDE.digest), candidates=[WIDE],
        current_digest=WIDE.digest, state=PolicyState(), busy="", now_s=NOW_S, settings=PolicySettings(),
        search=BUDGET, num_branches=4,
    )  # fmt: skip
    assert decision.action is Action.BUILD
    assert "pruned 0.75 deep 0.5" in decision.reason
    assert replay(decision.inputs) == decision


def test_a_workload_may_name_depth_alone() -> None:
    workload = Workload(name="w", dataset="digits", search=SearchBudget(methods=(Method.DEPTH,)))
    assert Workload.from_json(workload.to_json()) == workload


def test_a_family_of_several_depths_is_cut_at_each_and_the_road_goes_on_at_that_depth() -> None:
    budget = replace(BUDGET, family_epochs=4, width_ratios=(0.5, 0.25), depth_ratios=(1.0, 0.5))
    specs = propose(PROFILE, [], target_latency_ms=None, direction=Direction.INITIAL, budget=budget)
    assert [(spec.width_ratio, spec.depth_ratio) for spec in specs] == [
        (0.5, None), (0.25, None), (0.5, 0.5), (0.25, 0.5),
    ]  # fmt: skip
    assert {(spec.road, spec.num_epochs) for spec in specs} == {(Road.ELASTIC, 0)}
    made = [
        student(spec.width_ratio, 0.95, 3.0, road=Road.ELASTIC, num_epochs=0, depth_ratio=spec.depth_ratio)
        for spec in specs[2:3]
    ]
    more = next_rung(specs, made, constraints=Constraints(), budget=budget, max_trials=8)
    assert more
    assert {proposal.spec.depth_ratio for proposal in more} == {0.5}
    assert more[0].spec.num_epochs == budget.num_epochs
    few = replace(budget, max_trials=3)
    assert len(propose(PROFILE, [], target_latency_ms=None, direction=Direction.INITIAL, budget=few)) == 3


def test_depths_of_a_family_are_part_of_what_it_is_and_none_leave_it_as_it_was() -> None:
    assert "depth_ratios" not in FamilySettings().identity()
    assert family_key("t", FamilySettings(depth_ratios=(0.5,))) != family_key("t", FamilySettings())
    for depths, text in (((1.0,), "holds 1.0"), ((0.25, 0.5), "deepest first"), ((0.5, 0.5), "each once")):
        with pytest.raises(ValueError, match=text):
            FamilySettings(depth_ratios=depths)
    plain = Workload(name="w", dataset="digits")
    assert "depth_ratios" not in plain.to_json()
    deep = replace(plain, search=SearchBudget(depth_ratios=(1.0, 0.25, 0.5)))
    assert Workload.from_json(deep.to_json()) == deep
    assert family_settings(deep).depth_ratios == (0.5, 0.25)
    assert deep.teacher_key == plain.teacher_key
