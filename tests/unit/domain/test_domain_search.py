from __future__ import annotations

from collections.abc import Sequence

import pytest
from domain_values import candidate, profile
from hypothesis import given
from hypothesis import strategies as st

from cloud.domain.candidates import Candidate
from cloud.domain.feasibility import explain_infeasible, violations
from cloud.domain.policy import PolicySettings
from cloud.domain.prediction import Prediction, Predictor
from cloud.domain.profiles import Constraints
from cloud.domain.search import Direction, propose, roads_for
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.state import Measured
from cloud.domain.width_curve import width_for
from cloud.domain.workloads import SearchBudget

PROFILE = profile()
BUDGET = SearchBudget()
WIDE, HALF, QUARTER = candidate(0.75), candidate(0.5), candidate(0.25)


def specs_for(
    candidates: Sequence[Candidate], target_ms: float | None, direction: Direction, **changes: object
) -> tuple[CompressionSpec, ...]:
    return propose(
        PROFILE,
        candidates,
        target_latency_ms=target_ms,
        direction=direction,
        budget=changes.pop("budget", BUDGET),  # type: ignore[arg-type]  # one helper for all its callers
        **changes,  # type: ignore[arg-type]  # the same
    )


# Search.


def test_the_first_round_covers_the_widths_then_tries_second_roads():
    specs = specs_for([], None, Direction.INITIAL)
    assert [spec.width_ratio for spec in specs] == [0.75, 0.5, 0.25, 0.25, 0.5, 0.75]
    assert len({spec.digest for spec in specs}) == BUDGET.max_trials
    few = specs_for([], None, Direction.INITIAL, budget=SearchBudget(max_trials=2))
    assert [spec.width_ratio for spec in few] == [0.75, 0.5]


@pytest.mark.parametrize(
    ("width", "first"),
    [(0.75, Road.PRUNED), (0.5, Road.PRUNED), (0.25, Road.SCRATCH), (0.1, Road.PRUNED)],
)
def test_small_students_take_other_roads(width, first):
    assert roads_for(width, 4)[0] is first


def test_the_width_is_read_off_what_was_measured():
    made = [WIDE, HALF, QUARTER]
    for known in made:
        assert width_for(made, known.metrics.latency_p50_ms) == pytest.approx(known.spec.width_ratio)
    between = width_for(made, (0.4**1.2))
    assert between == pytest.approx(0.4, rel=0.01)
    assert width_for(made, QUARTER.metrics.latency_p50_ms / 2) < 0.25


def test_one_student_alone_gives_a_guess_and_none_is_an_error():
    assert 0.3 < width_for([WIDE], WIDE.metrics.latency_p50_ms / 2) < 0.5
    with pytest.raises(ValueError, match="initial"):
        width_for([], 1.0)


def test_a_smaller_student_that_measured_slower_does_not_mislead():
    # Irregular widths can be slower than larger ones: the curve still rises.
    odd = candidate(0.4, latency_ms=HALF.metrics.latency_p50_ms * 1.3)
    widths = [width_for([WIDE, HALF, odd, QUARTER], target) for target in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)]
    assert widths == sorted(widths)


@given(
    st.lists(st.integers(1, 16), min_size=1, max_size=8, unique=True),
    st.lists(st.floats(0.5, 2.0), min_size=8, max_size=8),
    st.floats(0.001, 5.0),
    st.sampled_from([Direction.SMALLER, Direction.LARGER]),
    st.integers(1, 10),
)
def test_no_spec_is_proposed_twice_and_all_lie_on_the_grid_and_in_the_budget(
    steps, errors, target_ms, direction, max_trials
):
    made = [
        candidate(n / 16, latency_ms=(n / 16) ** 1.2 * error) for n, error in zip(steps, errors, strict=False)
    ]
    current = made[0]
    asked: set[str] = {c.spec.digest for c in made}
    for _ in range(30):
        specs = specs_for(
            made,
            target_ms,
            direction,
            budget=SearchBudget(max_trials=max_trials),
            exclude=asked,
            current=current,
        )
        if not specs:
            break
        assert len(specs) <= max_trials
        for spec in specs:
            assert spec.digest not in asked
            assert spec.width_ratio * 16 == round(spec.width_ratio * 16) >= 1
            if direction is Direction.LARGER:
                assert spec.width_ratio > current.spec.width_ratio
            elif current.spec.width_ratio > 1 / 16:
                assert spec.width_ratio < current.spec.width_ratio
        asked |= {spec.digest for spec in specs}
    else:
        pytest.fail("the proposals never end")


def test_specs_of_rejected_candidates_are_taken_too():
    rejected = candidate(0.5, rejected_reason="too slow")
    specs = specs_for([WIDE, rejected], rejected.metrics.latency_p50_ms, Direction.SMALLER, current=WIDE)
    assert specs
    assert rejected.spec.digest not in {spec.digest for spec in specs}


def test_a_target_is_not_exceeded():
    target_ms = 0.4**1.2
    specs = specs_for([WIDE, HALF, QUARTER], target_ms, Direction.LARGER, current=QUARTER)
    assert max(spec.width_ratio for spec in specs) <= 0.4
    assert specs_for([WIDE, HALF, QUARTER], target_ms, Direction.LARGER, current=HALF) == ()


# Prediction.


def measured(p95_ms: float, upper_ratio: float = 1.05) -> Measured:
    return Measured(p95_ms=p95_ms, upper_p95_ms=p95_ms * upper_ratio, anchor_p95_ms=p95_ms)


def test_a_ratio_carries_over_and_the_margin_grows_with_distance():
    predictor = Predictor([WIDE, HALF, QUARTER], {WIDE.digest: measured(7.0)}, PolicySettings())
    scale = 7.0 / WIDE.metrics.latency_p50_ms
    half, quarter = predictor.predict(HALF), predictor.predict(QUARTER)
    assert half.p95_ms == pytest.approx(scale * HALF.metrics.latency_p50_ms)
    assert not half.is_measured
    assert quarter.upper_p95_ms / quarter.p95_ms > half.upper_p95_ms / half.p95_ms > 1


def test_more_measured_digests_make_the_margin_smaller():
    one = Predictor([WIDE, HALF, QUARTER], {WIDE.digest: measured(7.0)}, PolicySettings())
    two = Predictor(
        [WIDE, HALF, QUARTER], {WIDE.digest: measured(7.0), QUARTER.digest: measured(2.0)}, PolicySettings()
    )
    assert (
        two.predict(HALF).upper_p95_ms / two.predict(HALF).p95_ms
        < one.predict(HALF).upper_p95_ms / one.predict(HALF).p95_ms
    )


def test_what_was_measured_is_what_is_predicted():
    predictor = Predictor(
        [WIDE, HALF], {WIDE.digest: measured(7.0), HALF.digest: measured(6.5)}, PolicySettings()
    )
    found = predictor.predict(HALF)
    assert found.is_measured
    assert found.p95_ms == 6.5


def test_between_two_measured_digests_the_prediction_lies_between():
    # A fixed cost per call: the ratio is worse for the small one, and one ratio for all would mislead.
    predictor = Predictor(
        [WIDE, HALF, QUARTER], {WIDE.digest: measured(7.0), QUARTER.digest: measured(4.0)}, PolicySettings()
    )
    assert 4.0 < predictor.predict(HALF).p95_ms < 7.0


def test_without_anything_measured_the_clouds_own_tail_is_assumed():
    predictor = Predictor([WIDE, HALF], {}, PolicySettings())
    assert not predictor.knows_fleet
    assert predictor.predict(HALF).p95_ms == pytest.approx(HALF.metrics.latency_p95_ms)


@given(st.floats(0.01, 100.0), st.floats(0.5, 20.0))
def test_the_largest_that_fits_does_fit(limit_ms, p95_ms):
    predictor = Predictor([WIDE, HALF], {WIDE.digest: measured(p95_ms)}, PolicySettings())
    latency_ms = predictor.largest_fitting(limit_ms, at_most_ms=WIDE.metrics.latency_p50_ms)
    if latency_ms:
        assert predictor.predict_latency(latency_ms).upper_p95_ms <= limit_ms
        larger = latency_ms * 1.05
        assert (
            larger > WIDE.metrics.latency_p50_ms or predictor.predict_latency(larger).upper_p95_ms > limit_ms
        )


# Feasibility.


def predict(found: Candidate) -> Prediction:
    latency = found.metrics.latency_p50_ms * 5
    return Prediction(p95_ms=latency, upper_p95_ms=latency)


def test_violations_name_the_fields():
    constraints = Constraints(artifact_bytes=1, peak_rss_bytes=1, min_accuracy=0.999, latency_p95_ms=0.0)
    assert violations(WIDE, constraints) == ("artifact_bytes", "peak_rss_bytes", "min_accuracy")
    assert violations(WIDE, Constraints()) == ()


def test_each_single_relaxation_is_named_with_its_figure():
    found = explain_infeasible(
        [
            candidate(0.75, accuracy=0.95, latency_ms=1.82),
            candidate(0.5, accuracy=0.9154, latency_ms=1.6),
            candidate(0.25, accuracy=0.80, latency_ms=0.4),
        ],
        Constraints(latency_p95_ms=8.0, min_accuracy=0.93),
        predict,
    )
    assert found.binding == ("latency_p95_ms", "min_accuracy")
    assert found.relaxations == ("p95 9.1 ms at floor 0.93", "floor 0.915 at 8 ms")


def test_when_one_relaxation_is_not_enough_all_that_bind_are_named():
    found = explain_infeasible(
        [candidate(0.75, accuracy=0.9, latency_ms=2.0, artifact_bytes=5000)],
        Constraints(latency_p95_ms=8.0, min_accuracy=0.93, artifact_bytes=4000),
        predict,
    )
    assert found.binding == ("latency_p95_ms", "artifact_bytes", "min_accuracy")
    assert "p95 10 ms, 5000 artifact bytes, floor 0.9" in found.sentence


def test_rejected_candidates_are_no_way_out():
    found = explain_infeasible(
        [candidate(0.5, rejected_reason="broken")], Constraints(latency_p95_ms=0.1), predict
    )
    assert found.binding == ()
    assert "no student could be built" in found.sentence
