"""Students without shortcuts as the search's answer to latency: when it asks for one, and how wide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from domain_values import NOW_S, candidate, digest_of, fleet_windows, profile

from cloud.domain.candidates import Candidate
from cloud.domain.chains import ASSUMED_SHARE, chain_students, chain_width
from cloud.domain.methods import Method, reserved_trials, shorter
from cloud.domain.networks import StudentNetwork
from cloud.domain.policy import Action, PolicySettings, decide, replay
from cloud.domain.profiles import Constraints
from cloud.domain.rungs import next_rung
from cloud.domain.search import Direction, propose
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.state import PolicyState
from cloud.domain.width_curve import latency_at, width_for
from cloud.domain.workloads import SearchBudget, Workload

BUDGET = SearchBudget(max_trials=8)


def student(width: float, accuracy: float, p95_ms: float, **spec: Any) -> Candidate:
    made = candidate(width, accuracy=accuracy, latency_ms=p95_ms)
    metrics = replace(made.metrics, latency_p50_ms=p95_ms * 0.9, latency_p95_ms=p95_ms)
    found = replace(made.spec, **spec)
    return replace(made, metrics=metrics, spec=found, digest=digest_of(f"{found.to_json()} {p95_ms}"))


#: Latency in proportion to width: 16 ms at the teacher's own.
WIDE, HALF, NARROW = student(0.75, 0.95, 12.0), student(0.5, 0.93, 8.0), student(0.25, 0.85, 4.0)
WHOLE = [WIDE, HALF, NARROW]


def chain(width: float, accuracy: float, p95_ms: float, **spec: Any) -> Candidate:
    return student(width, accuracy, p95_ms, shortcuts=False, **spec)


def asked(built: list[Candidate], limit: float | None, **options: Any) -> list[CompressionSpec]:
    given = {"methods": None, "num_epochs": 3, "num_shortcuts": 3, **options}
    constraints = options.pop("constraints", Constraints(latency_p95_ms=limit))
    given.pop("constraints", None)
    return [proposal.spec for proposal in chain_students(built, constraints=constraints, **given)]


def test_the_curve_is_read_both_ways() -> None:
    for width in (0.1, 0.25, 0.3, 0.6, 1.0):
        assert width_for(WHOLE, latency_at(WHOLE, width)) == pytest.approx(width)
    assert latency_at([HALF], 0.25) == pytest.approx(HALF.metrics.latency_p50_ms / 2)
    with pytest.raises(ValueError, match="no student was built yet"):
        latency_at([], 0.5)


def test_nothing_is_asked_where_latency_does_not_bind_or_shortcuts_must_stay() -> None:
    for limit in (None, 13.0):
        assert asked(WHOLE, limit) == []
    assert asked(WHOLE, 6.0, num_shortcuts=0) == []
    assert asked(WHOLE, 6.0, num_epochs=0) == []
    assert asked(WHOLE, 6.0, methods=(Method.DEPTH,)) == []
    assert asked([replace(one, rejected_reason="slower") for one in WHOLE], 6.0) == []
    assert asked([WIDE, student(0.5, 0.95, 5.0)], 6.0) == [], "one that fits is as accurate"
    assert asked(WHOLE, 6.0, constraints=Constraints(latency_p95_ms=6.0, min_accuracy=0.99)) == []
    assert asked([student(0.5, 0.95, 8.0, depth_ratio=0.5)], 6.0) == [], "nothing has all layers"


def test_it_is_wider_than_what_would_fit_with_shortcuts_and_as_fast_by_assumption() -> None:
    (spec,) = asked(WHOLE, 6.0)
    # 6 ms are 6/16 of the width with shortcuts; without, so much more as it is assumed to be faster.
    assert (spec.road, spec.shortcuts, spec.num_epochs) == (Road.PRUNED, False, 3)
    assert spec.width_ratio == int(16 * 0.375 / ASSUMED_SHARE) / 16 == 7 / 16
    (proposal,) = chain_students(
        WHOLE, constraints=Constraints(latency_p95_ms=6.0), methods=None, num_epochs=3, num_shortcuts=3
    )
    assert proposal.reason == (
        f"latency binds: {WIDE.digest[:12]} takes 12 ms of at most 6 where it was built, and without its 3 "
        "shortcuts a network can be wider at the same latency: 0.4375 wide"
    )
    assert asked(WHOLE, 6.0, exclude=[spec.digest]) == []
    assert asked(list(reversed(WHOLE)), 6.0) == [spec]


def test_a_step_wider_at_least_never_narrower_than_what_was_built_and_never_wider_than_the_teacher() -> None:
    (spec,) = asked(WHOLE, 1e-6)
    assert spec.width_ratio == NARROW.spec.width_ratio
    (spec,) = asked([student(0.15, 0.9, 8.0)], 7.9)
    assert spec.width_ratio == 3 / 16, "two sixteenths with shortcuts would fit"
    (spec,) = asked([student(1.0, 0.99, 16.0), *WHOLE], 15.9)
    assert spec.width_ratio == 1.0


def test_once_one_was_measured_its_own_share_of_the_latency_holds() -> None:
    slow = chain(7 / 16, 0.94, 6.3)  # 0.9 of what the width takes with shortcuts
    assert chain_width(WHOLE, [slow], 5.4) is None, "no step wider than 6/16 with shortcuts"
    assert chain_width(WHOLE, [slow], 9.0) == 11 / 16
    quick = chain(7 / 16, 0.94, 3.5)
    assert chain_width(WHOLE, [quick], 5.4) == 12 / 16
    assert asked([*WHOLE, quick], 6.0)[0].width_ratio == 12 / 16
    even = chain(7 / 16, 0.94, 7.0)
    assert chain_width(WHOLE, [even], 5.4) is None, "as slow as with shortcuts"
    # Rounds end: each chain that is built is one more that is not proposed again.
    built, widths = [*WHOLE], []
    while found := asked(built, 6.0):
        widths.append(found[0].width_ratio)
        built.append(chain(widths[-1], 0.94, 16 * widths[-1] * 0.7, num_epochs=3))
    assert widths == [7 / 16, 8 / 16]


def test_one_that_lost_to_a_narrower_student_that_is_no_slower_was_the_last() -> None:
    lost = chain(7 / 16, 0.80, 4.1)
    assert asked([*WHOLE, lost], 6.0) == []
    ahead = chain(7 / 16, 0.86, 4.1)
    assert asked([*WHOLE, ahead], 6.0) != []
    elsewhere = chain(7 / 16, 0.80, 4.1, depth_ratio=0.5)
    assert asked([*WHOLE, elsewhere], 6.0) == asked(WHOLE, 6.0), "a shorter one says nothing about it"


def test_it_comes_before_shorter_students_and_after_own_networks_on_the_rung_that_follows() -> None:
    own = StudentNetwork(name="tiny", network="my_module:tiny")
    budget = replace(BUDGET, family_epochs=4, students=(own,))
    cuts = [replace(one, spec=replace(one.spec, road=Road.ELASTIC, num_epochs=0)) for one in WHOLE]
    more = next_rung(
        [c.spec for c in cuts], cuts, constraints=Constraints(latency_p95_ms=6.0), budget=budget,
        max_trials=8, num_branches=4, num_shortcuts=4,
    )  # fmt: skip
    labels = [proposal.spec.label for proposal in more]
    assert labels[:3] == ["distilled tiny 1", "pruned 0.4375 plain", "elastic 0.75 deep 0.5"]
    assert len(more) == 8 - len(cuts)
    assert more[1].spec.num_epochs == budget.num_epochs
    one = next_rung(
        [c.spec for c in cuts], cuts, constraints=Constraints(latency_p95_ms=6.0),
        budget=replace(budget, students=()), max_trials=4, num_branches=4, num_shortcuts=4,
    )  # fmt: skip
    assert [proposal.spec.label for proposal in one] == ["pruned 0.4375 plain"]


def test_a_trial_is_left_for_it_and_of_many_one_for_a_shorter_student_too() -> None:
    limits = Constraints(latency_p95_ms=4.0)
    assert reserved_trials(limits, None, 6, num_shortcuts=3) == 1
    assert reserved_trials(limits, None, 6, num_branches=3, num_shortcuts=3) == 2
    assert reserved_trials(limits, None, 5, num_branches=3, num_shortcuts=3) == 1
    assert reserved_trials(limits, None, 1, num_branches=3, num_shortcuts=3) == 0
    assert reserved_trials(limits, (Method.QAT,), 6, num_branches=3, num_shortcuts=3) == 0
    assert reserved_trials(Constraints(), None, 6, num_shortcuts=3) == 0


def test_a_miss_on_the_fleet_is_answered_with_one_beside_narrower_and_shorter_students() -> None:
    def answers(current: Candidate = WIDE, **options: Any) -> tuple[CompressionSpec, ...]:
        given = {"budget": BUDGET, "num_branches": 4, "num_shortcuts": 4, "built": WHOLE, **options}
        return propose(
            profile(), given.pop("built"), target_latency_ms=5.4, direction=Direction.SMALLER,
            current=current, **given,
        )  # fmt: skip

    labels = [spec.label for spec in answers()]
    assert labels == ["pruned 0.375", "distilled 0.375", "pruned 0.4375 plain", "pruned 0.75 deep 0.5"]
    two = [spec.label for spec in answers(budget=replace(BUDGET, max_trials=3))]
    assert two == ["pruned 0.375", "pruned 0.4375 plain"]
    assert [spec.label for spec in answers(budget=replace(BUDGET, max_trials=1))] == two[:1]
    for none in (answers(num_shortcuts=0), answers(budget=replace(BUDGET, methods=(Method.DEPTH,)))):
        assert all(spec.shortcuts is None for spec in none)
    current = chain(7 / 16, 0.94, 6.3)
    specs = answers(current, built=[*WHOLE, current])
    assert [spec.label for spec in specs if spec.depth_ratio] == [], "its branches stay"
    assert shorter(current.spec, latency_ratio=0.5, num_branches=4, num_epochs=3) is None


def test_where_one_serves_with_room_to_spare_a_wider_one_comes_first() -> None:
    current = chain(7 / 16, 0.94, 4.2, num_epochs=4)  # 0.6 of what the width takes with shortcuts
    for budget in (BUDGET, replace(BUDGET, family_epochs=4)):
        specs = propose(
            profile(), [*WHOLE, current], target_latency_ms=5.4, direction=Direction.LARGER, current=current,
            budget=budget, num_shortcuts=4,
        )  # fmt: skip
        assert specs[0].label == "pruned 0.625 plain"
        none = propose(
            profile(), [*WHOLE, current], target_latency_ms=3.9, direction=Direction.LARGER, current=current,
            budget=budget, num_shortcuts=4,
        )  # fmt: skip
        assert all(spec.shortcuts is None for spec in none), "no step wider fits"


def test_a_decision_names_it_and_is_replayed_with_it_and_older_ones_without() -> None:
    decision, _ = decide(
        profile=profile(5.0), windows=fleet_windows(8.0, digest=WIDE.digest), candidates=[WIDE],
        current_digest=WIDE.digest, state=PolicyState(), busy="", now_s=NOW_S, settings=PolicySettings(),
        search=BUDGET, num_branches=4, num_shortcuts=4,
    )  # fmt: skip
    assert decision.action is Action.BUILD
    assert " plain" in decision.reason
    assert replay(decision.inputs) == decision
    older = {name: value for name, value in decision.inputs.items() if name != "num_shortcuts"}
    assert " plain" not in replay(older).reason


def test_a_workload_may_name_it_alone_and_what_it_may_try_changes_no_teacher() -> None:
    workload = Workload(name="w", dataset="digits", search=SearchBudget(methods=(Method.SHORTCUTS,)))
    assert Workload.from_json(workload.to_json()) == workload
    assert workload.teacher_key == replace(workload, search=SearchBudget()).teacher_key
