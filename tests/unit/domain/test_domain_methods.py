"""What the search asks for beside widths and roads, and when it does not."""

from __future__ import annotations

from dataclasses import replace

from domain_values import candidate

from cloud.domain.candidates import Candidate
from cloud.domain.methods import Method, other_methods, reserved_trials, size_levers
from cloud.domain.profiles import Constraints
from cloud.domain.rungs import next_rung
from cloud.domain.specs import Precision, Road
from cloud.domain.workloads import SearchBudget, Workload

BUDGET = SearchBudget()


def student(width: float, accuracy: float, num_bytes: int, **changes: object) -> Candidate:
    made = candidate(width, accuracy=accuracy)
    metrics = replace(
        made.metrics,
        artifact_bytes=num_bytes,
        num_parameters=num_bytes,
        **changes,  # type: ignore[arg-type]
    )
    return replace(made, metrics=metrics, precision=Precision.INT8)


WIDE, NARROW = student(0.75, 0.95, 10_000), student(0.25, 0.85, 3_000)


def test_bytes_that_do_not_bind_ask_for_nothing():
    for limit in (None, 20_000):
        assert size_levers([WIDE, NARROW], constraints=Constraints(artifact_bytes=limit), methods=None) == ()


def test_the_mildest_lever_that_is_enough_goes_to_the_best_student_that_is_too_large():
    (mild,) = size_levers([WIDE, NARROW], constraints=Constraints(artifact_bytes=7_000), methods=None)
    assert mild.spec.width_ratio == 0.75
    assert mild.spec.quantisation is not None
    assert mild.spec.sparsity is None
    assert "artifact bytes bind" in mild.reason
    strong, *_ = size_levers([WIDE, NARROW], constraints=Constraints(artifact_bytes=3_500), methods=None)
    assert strong.spec.sparsity is not None
    assert strong.spec.quantisation is not None


def test_what_was_tried_is_followed_by_something_stronger_and_methods_can_be_ruled_out():
    limit = Constraints(artifact_bytes=7_000)
    (first,) = size_levers([WIDE], constraints=limit, methods=None)
    (second,) = size_levers([WIDE], constraints=limit, methods=None, exclude=[first.spec.digest])
    assert second.spec.digest != first.spec.digest
    assert size_levers([WIDE], constraints=limit, methods=()) == ()
    (zeros,) = size_levers([WIDE], constraints=limit, methods=(Method.SPARSITY,))
    assert zeros.spec.quantisation is None
    assert zeros.spec.sparsity is not None


def test_a_narrower_student_that_fits_and_is_better_ends_it():
    better = replace(NARROW, metrics=replace(NARROW.metrics, accuracy=0.96))
    assert size_levers([WIDE, better], constraints=Constraints(artifact_bytes=7_000), methods=None) == ()


def test_training_for_int8_follows_a_measured_loss_over_the_tolerance():
    for loss, asked in ((None, 0), (0.005, 0), (0.03, 1)):
        made = [student(0.5, 0.9, 5_000, int8_loss=loss)]
        found = other_methods(made, constraints=Constraints(), methods=None, tolerance=0.01, num_inputs=0)
        assert len(found) == asked
    assert found[0].spec.precision is Precision.INT8
    assert found[0].spec.quantisation is not None
    assert found[0].spec.quantisation.qat_epochs > 0


def test_rules_compete_where_inputs_are_few_and_a_floor_is_set_or_they_are_named():
    def roads(num_inputs: int, floor: float | None, methods: tuple[Method, ...] | None = None) -> set[Road]:
        found = other_methods(
            [WIDE], constraints=Constraints(min_accuracy=floor), methods=methods, tolerance=0.01,
            num_inputs=num_inputs,
        )  # fmt: skip
        return {proposal.spec.road for proposal in found}

    assert roads(64, 0.8) == {Road.RULES}
    assert roads(64, None, (Method.RULES,)) == {Road.RULES}
    assert roads(64, None) == roads(784, 0.8) == roads(0, 0.8) == set()


def test_the_first_rung_leaves_room_and_the_next_keeps_to_the_budget():
    bound = Constraints(artifact_bytes=7_000)
    assert reserved_trials(Constraints(), None, 6) == 0
    assert 0 < reserved_trials(bound, None, 6) < 6
    assert reserved_trials(bound, None, 1) == 0
    tried = [WIDE.spec, NARROW.spec]
    found = next_rung(tried, [WIDE, NARROW], constraints=bound, budget=BUDGET, max_trials=3)
    assert [proposal.spec.quantisation is not None for proposal in found] == [True]
    assert next_rung(tried, [WIDE, NARROW], constraints=bound, budget=BUDGET, max_trials=2) == ()
    # Where nothing binds, the room goes to the other roads.
    other = next_rung(tried, [WIDE, NARROW], constraints=Constraints(), budget=BUDGET, max_trials=6)
    assert other
    assert all(proposal.spec.quantisation is None for proposal in other)


def test_workloads_without_the_new_fields_keep_their_text():
    plain = Workload(name="a", dataset="digits")
    assert "methods" not in plain.to_json()
    assert "tolerance" not in plain.to_json()
    chosen = replace(plain, search=SearchBudget(methods=(Method.SPARSITY,), tolerance=0.02))
    assert Workload.from_json(chosen.to_json()) == chosen
