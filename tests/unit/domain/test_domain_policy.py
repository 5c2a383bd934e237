from __future__ import annotations

from itertools import pairwise

import pytest
from domain_values import SETTINGS, candidate, digest_of, profile, window
from policy_loop import STEP_S
from policy_world import HALF, QUARTER, WIDE, loop, world

from cloud.domain.decisions import Action, Verdict
from cloud.domain.policy import PolicySettings, PolicyState, decide, replay
from cloud.domain.workloads import SearchBudget


def test_what_meets_its_objective_is_kept_for_good():
    run = loop(world(WIDE, HALF, QUARTER), HALF.digest, objective_ratio=1.15)
    decisions = run.run(100)
    assert {d.action for d in decisions} == {Action.KEEP}
    assert {d.verdict for d in decisions} == {Verdict.MEETS}
    assert decisions[0].measured_p95_ms == pytest.approx(run.p95_ms, rel=0.02)


def test_without_an_objective_what_serves_is_kept():
    decision = loop(world(WIDE, QUARTER), WIDE.digest).step()
    assert (decision.action, decision.verdict) == (Action.KEEP, Verdict.OPEN)
    assert decision.reason.startswith("no objective set")


def test_a_miss_is_met_with_the_most_accurate_that_is_predicted_to_fit():
    run = loop(world(WIDE, HALF, QUARTER), WIDE.digest, objective_ratio=0.75)
    decision = run.step()
    assert (decision.action, decision.verdict) == (Action.ROLL_OUT, Verdict.MISSES)
    assert decision.chosen_digest == HALF.digest
    assert "is over" in decision.reason
    run.run(100)
    assert run.current == HALF.digest
    assert run.decisions[-1].verdict is Verdict.MEETS


def test_a_miss_must_show_in_consecutive_windows():
    run = loop(world(WIDE, QUARTER), WIDE.digest, objective_ratio=0.8)
    run.num_windows = 2
    decision = run.step()
    assert (decision.action, decision.verdict) == (Action.HOLD, Verdict.MISSES)
    # The newest window is fine again: that breaks the row.
    run = loop(world(WIDE, QUARTER), WIDE.digest, objective_ratio=0.8, noise=lambda n: 0.7 if n == 0 else 1.0)
    assert run.step().action is Action.HOLD


def test_when_nothing_fits_students_around_the_target_are_built_and_shipped():
    run = loop(world(WIDE), WIDE.digest, objective_ratio=0.5)
    decision = run.step()
    assert (decision.action, decision.verdict) == (Action.BUILD, Verdict.MISSES)
    assert decision.specs
    assert all(spec.width_ratio < 0.75 for spec in decision.specs)
    run.run(60)
    assert run.decisions[-1].verdict in (Verdict.MEETS, Verdict.SLACK)
    assert run.p95_ms <= run.profile.constraints.latency_p95_ms


def test_on_a_miss_nothing_slower_is_shipped_however_accurate():
    slower = candidate(0.6, accuracy=0.999, latency_ms=WIDE.metrics.latency_p50_ms * 1.01)
    run = loop(world(WIDE, slower), WIDE.digest, objective_ratio=0.97)
    run.run(30)
    assert slower.digest not in {d.chosen_digest for d in run.decisions}


def test_rejected_candidates_and_those_over_a_constraint_are_not_shipped():
    rejected = candidate(0.5, rejected_reason="slower than its parent")
    heavy = candidate(0.4, artifact_bytes=10**9)
    run = loop(world(WIDE, rejected, heavy, QUARTER), WIDE.digest, objective_ratio=0.75, artifact_bytes=10**6)
    assert run.step().chosen_digest == QUARTER.digest


def test_another_profiles_candidates_are_not_shipped():
    foreign = candidate(0.5, profile="other")
    run = loop(world(WIDE, foreign, QUARTER), WIDE.digest, objective_ratio=0.75)
    assert run.step().chosen_digest == QUARTER.digest


def test_what_measured_worse_than_predicted_is_not_tried_again():
    # HALF is predicted to fit, and on these devices it is not.
    made = world(WIDE, HALF, QUARTER, slower={HALF.digest: 1.5})
    run = loop(made, WIDE.digest, objective_ratio=0.75)
    run.run(120)
    chosen = [d.chosen_digest for d in run.decisions if d.starts_rollout]
    assert chosen[0] == HALF.digest
    assert chosen.count(HALF.digest) == 1
    assert run.p95_ms <= run.profile.constraints.latency_p95_ms


def test_slack_is_spent_on_accuracy():
    run = loop(world(WIDE, HALF, QUARTER), QUARTER.digest, objective_ms=WIDE.metrics.latency_p50_ms * 5 * 1.3)
    decision = run.step()
    assert (decision.action, decision.verdict) == (Action.ROLL_OUT, Verdict.SLACK)
    assert decision.chosen_digest == WIDE.digest
    run.run(60)
    assert run.p95_ms <= run.profile.constraints.latency_p95_ms


def test_slack_must_show_for_longer_than_a_miss():
    run = loop(world(WIDE, QUARTER), QUARTER.digest, objective_ms=50.0, num_windows=4)
    assert run.step().action is Action.KEEP


def test_slack_without_anything_better_builds_a_few_times_and_then_rests():
    run = loop(world(QUARTER), QUARTER.digest, objective_ratio=3.0)
    run.run(100)
    builds = [d for d in run.decisions if d.action is Action.BUILD]
    assert 1 <= len(builds) <= SETTINGS.max_slack_builds
    assert run.accuracy > QUARTER.metrics.accuracy
    assert run.p95_ms <= run.profile.constraints.latency_p95_ms
    assert not any(d in run.acted for d in run.decisions[-50:])


def test_slack_never_leads_to_a_less_accurate_model():
    dull = candidate(0.6, accuracy=0.5)
    run = loop(world(dull, QUARTER), QUARTER.digest, objective_ratio=4.0)
    run.run(60)
    assert dull.digest not in {d.chosen_digest for d in run.decisions}


def test_a_step_up_that_misses_is_taken_back():
    made = world(WIDE, QUARTER, slower={WIDE.digest: 3.0})
    run = loop(made, QUARTER.digest, objective_ms=WIDE.metrics.latency_p50_ms * 5 * 1.3)
    run.run(100)
    rollouts = [(d.action, d.chosen_digest) for d in run.decisions if d.starts_rollout]
    assert rollouts[:2] == [(Action.ROLL_OUT, WIDE.digest), (Action.ROLL_BACK, QUARTER.digest)]
    assert [digest for _, digest in rollouts].count(WIDE.digest) == 1


def test_thin_evidence_holds():
    run = loop(world(WIDE, QUARTER), WIDE.digest, objective_ratio=0.5, num_windows=1, num_devices=1)
    decision = run.step()
    assert (decision.action, decision.verdict) == (Action.HOLD, Verdict.THIN)
    assert "requests" in decision.reason


def test_a_miss_of_throttled_machines_is_no_reason_to_compress():
    run = loop(world(WIDE, HALF), WIDE.digest, objective_ratio=1.1)
    run.run(10)
    run.reference_ms = 0.5
    run.world.slowdown *= 2.5
    decision = run.step()
    assert (decision.action, decision.verdict) == (Action.ALERT, Verdict.THROTTLED)
    assert not run.acted
    # The same with a reference as fast as ever: it is the model.
    run.reference_ms = 0.2
    assert run.step().verdict is Verdict.MISSES


def test_busy_starts_nothing_but_goes_on_measuring():
    run = loop(world(WIDE, HALF), WIDE.digest, objective_ratio=0.5)
    decision, state = decide(
        profile=run.profile,
        windows=[window("device-0", n, 4.0, digest=WIDE.digest) for n in range(8)],
        candidates=run.world.candidates,
        current_digest=WIDE.digest,
        state=PolicyState(),
        busy="rollout r1 is running",
        now_s=1_000_000.0,
        settings=SETTINGS,
        search=SearchBudget(),
    )
    assert (decision.action, decision.verdict) == (Action.HOLD, Verdict.BUSY)
    assert "rollout r1" in decision.reason
    assert state.measured[WIDE.digest].p95_ms == pytest.approx(4.0, rel=0.02)


def test_a_late_report_about_another_digest_moves_nothing():
    run = loop(world(WIDE, HALF, QUARTER), HALF.digest, objective_ratio=1.15)
    late = [window(f"device-{i}", n, 500.0, digest=WIDE.digest) for i in range(3) for n in range(8)]
    run.forge = lambda windows: [*windows, *late]
    assert {d.verdict for d in run.run(20)} == {Verdict.MEETS}


def test_nothing_happens_within_the_cool_down():
    made = world(WIDE, HALF, QUARTER, slower={HALF.digest: 1.5})
    run = loop(made, WIDE.digest, objective_ratio=0.75)
    run.run(60)
    times = [i * STEP_S for i, d in enumerate(run.decisions) if d.starts_rollout]
    assert len(times) >= 2
    assert all(later - sooner >= run.settings.cool_down_s for sooner, later in pairwise(times))
    assert any("cooling down" in d.reason for d in run.decisions)


def test_a_profile_without_students_gets_some():
    run = loop(world(), "", objective_ms=5.0)
    decision = run.step()
    assert (decision.action, decision.verdict) == (Action.BUILD, Verdict.NEW)
    assert {spec.width_ratio for spec in decision.specs} == {0.75, 0.5, 0.25}
    assert run.step().starts_rollout
    assert run.current


def test_a_profile_without_an_objective_starts_with_the_most_accurate():
    run = loop(world(WIDE, HALF, QUARTER), "")
    assert run.step().chosen_digest == WIDE.digest


def test_what_cannot_be_met_is_explained_and_the_best_effort_serves():
    run = loop(world(WIDE, HALF, QUARTER), WIDE.digest, objective_ms=0.02)
    run.run(150)
    last = run.decisions[-1]
    assert (last.action, last.verdict) == (Action.ALERT, Verdict.INFEASIBLE)
    assert "binding: p95 objective" in last.reason
    assert "nearest: p95" in last.reason
    fastest = min(c.metrics.latency_p50_ms for c in run.world.candidates)
    assert run.p95_ms == pytest.approx(fastest * 5)


def test_the_nearest_relaxations_name_both_ways_out():
    run = loop(
        world(WIDE, HALF, QUARTER),
        WIDE.digest,
        objective_ms=HALF.metrics.latency_p50_ms * 5 * 1.3,
        min_accuracy=(WIDE.metrics.accuracy + HALF.metrics.accuracy) / 2,
        settings=PolicySettings(max_miss_builds=0),
    )
    run.run(5)
    last = run.decisions[-1]
    assert (last.action, last.verdict) == (Action.ALERT, Verdict.INFEASIBLE)
    assert "binding: p95 objective and accuracy floor" in last.reason
    assert f"p95 {WIDE.metrics.latency_p50_ms * 5:.2f}"[:7] in last.reason
    assert "floor 0.96 at " in last.reason
    assert run.current == WIDE.digest


def test_a_raised_floor_replaces_what_serves():
    run = loop(world(WIDE, QUARTER), QUARTER.digest, objective_ms=50.0, min_accuracy=0.96)
    assert run.step().chosen_digest == WIDE.digest


def test_new_constraints_give_new_budgets():
    run = loop(world(WIDE), WIDE.digest, objective_ms=0.02)
    run.run(80)
    assert run.decisions[-1].verdict is Verdict.INFEASIBLE
    run.profile = profile(1.0)
    run.run(60)
    assert run.decisions[-1].verdict in (Verdict.MEETS, Verdict.SLACK)


def test_no_spec_is_asked_for_twice_even_when_every_build_fails():
    made = world(WIDE)
    made.build = lambda specs: None  # type: ignore[method-assign]  # a builder that never delivers
    run = loop(made, WIDE.digest, objective_ratio=0.5)
    run.run(60)
    asked = [spec.digest for d in run.decisions for spec in d.specs]
    assert len(asked) == len(set(asked)) > 0
    assert sum(d.action is Action.BUILD for d in run.decisions) <= SETTINGS.max_miss_builds
    assert run.decisions[-1].verdict is Verdict.INFEASIBLE


def test_a_digest_that_devices_refuse_is_not_tried_for_ever():
    run = loop(
        world(WIDE, HALF, QUARTER), WIDE.digest, objective_ratio=0.75, refused=frozenset({HALF.digest})
    )
    run.run(60)
    tried = [d.chosen_digest for d in run.decisions if d.starts_rollout]
    assert tried.count(HALF.digest) <= SETTINGS.max_rollouts_per_digest
    assert run.p95_ms <= run.profile.constraints.latency_p95_ms


def test_the_state_survives_json_and_a_newer_version_is_refused():
    run = loop(world(WIDE, HALF, QUARTER), WIDE.digest, objective_ratio=0.75)
    run.run(30)
    assert PolicyState.from_json(run.state.to_json()) == run.state
    assert run.state.measured
    with pytest.raises(ValueError, match="version 2"):
        PolicyState.from_json(PolicyState(version=2).to_json())


def test_inputs_of_another_version_are_refused():
    decision = loop(world(WIDE), WIDE.digest, objective_ratio=1.1).step()
    with pytest.raises(ValueError, match="version 7"):
        replay({**decision.inputs, "version": 7})


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"min_samples": 0}, "min_samples"), ({"slack_ratio": 0.99, "fit_ratio": 0.9}, "slack_ratio")],
)
def test_settings_out_of_range_name_the_field(changes, field):
    with pytest.raises(ValueError, match=field):
        PolicySettings(**changes)


def test_a_digest_that_is_no_candidate_is_measured_and_replaced_when_it_misses():
    stranger = digest_of("stranger")
    made = world(QUARTER)
    made.p95_of = lambda digest: 40.0 if digest == stranger else 5 * QUARTER.metrics.latency_p50_ms  # type: ignore[method-assign]  # knows it
    run = loop(made, stranger, objective_ms=5.0)
    decision = run.step()
    assert (decision.action, decision.chosen_digest) == (Action.ROLL_OUT, QUARTER.digest)
