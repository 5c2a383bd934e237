"""Decisions with what they start, and rollouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cloud_store_values import D2, DECISION, JOB, PROFILE, QUIET, ROLLOUT, STATE

from cloud.domain.decisions import Action, Verdict
from cloud.domain.rollout import RolloutState
from cloud.domain.state import PolicyState
from cloud.store import Store


def test_a_decision_is_committed_with_what_it_starts(store: Store) -> None:
    assert store.policy_state(PROFILE.name) == PolicyState()
    assert store.commit_decision("d1", DECISION, STATE, 5.0, job=JOB, rollout=ROLLOUT) == "d1"
    entry = store.decision("d1")
    assert entry is not None
    assert (entry.decision, entry.decide_time_s) == (DECISION, 5.0)
    assert store.policy_state(PROFILE.name) == STATE
    assert (store.jobs(), store.rollouts()) == ([JOB], [ROLLOUT])
    assert store.decision("d2") is None


def test_when_one_part_cannot_be_stored_nothing_is(store: Store) -> None:
    unstorable = replace(DECISION, inputs={"window": object()})
    with pytest.raises(TypeError):
        store.commit_decision("d1", unstorable, STATE, 5.0, job=JOB, rollout=ROLLOUT)
    broken = replace(ROLLOUT, message=object())  # type: ignore[arg-type]  # what must not happen, happens
    with pytest.raises(TypeError):
        store.commit_decision("d1", DECISION, STATE, 5.0, job=JOB, rollout=broken)
    assert (store.decisions(), store.jobs(), store.rollouts()) == ([], [], [])
    assert store.policy_state(PROFILE.name) == PolicyState()


def test_committing_the_same_decision_again_changes_nothing(store: Store) -> None:
    store.commit_decision("d1", DECISION, STATE, 5.0, job=JOB)
    later = replace(STATE, current_digest=D2)
    assert store.commit_decision("d1", replace(DECISION, reason="other"), later, 6.0) == "d1"
    assert [entry.decision for entry in store.decisions()] == [DECISION]
    assert store.policy_state(PROFILE.name) == STATE


def test_quiet_repeats_are_counted_and_keep_the_newest_figures(store: Store) -> None:
    for n in range(5):
        kept = store.commit_decision(f"d{n}", replace(QUIET, measured_p95_ms=7.0 + n), STATE, float(n))
        assert kept == "d0"
    (entry,) = store.decisions()
    assert (entry.decide_time_s, entry.last_time_s, entry.num_repeats) == (0.0, 4.0, 4)
    assert entry.decision.measured_p95_ms == 11.0


def test_another_profile_does_not_break_a_run(store: Store) -> None:
    store.commit_decision("a1", QUIET, STATE, 1.0)
    store.commit_decision("b1", replace(QUIET, profile="other"), STATE, 1.0)
    assert store.commit_decision("a2", QUIET, STATE, 2.0) == "a1"
    assert [entry.decision_id for entry in store.decisions("other")] == ["b1"]


def test_what_acts_is_never_folded(store: Store) -> None:
    for n in range(3):
        store.commit_decision(f"d{n}", DECISION, STATE, float(n))
    assert [entry.decision_id for entry in store.decisions()] == ["d2", "d1", "d0"]
    assert [entry.decision_id for entry in store.decisions(changes_only=True)] == ["d0"]


def test_changes_only_shows_each_change_of_mind(store: Store) -> None:
    thin = replace(QUIET, action=Action.HOLD, verdict=Verdict.THIN)
    for n, decision in enumerate([thin, thin, QUIET, DECISION, QUIET, QUIET]):
        store.commit_decision(f"d{n}", decision, STATE, float(n))
    found = [entry.decision_id for entry in store.decisions(PROFILE.name, changes_only=True)]
    assert found == ["d4", "d3", "d2", "d0"]
    assert [entry.decision_id for entry in store.decisions(limit=2)] == ["d4", "d3"]


def test_pruning_forgets_only_the_quiet(store: Store) -> None:
    store.commit_decision("acted", DECISION, STATE, 1.0)
    store.commit_decision("old", QUIET, STATE, 2.0)
    store.commit_decision("new", replace(QUIET, verdict=Verdict.SLACK), STATE, 9.0)
    assert store.prune_decisions(5.0) == 1
    assert [entry.decision_id for entry in store.decisions()] == ["new", "acted"]


def test_a_rollout_is_replaced_by_its_next_state(store: Store) -> None:
    store.save_rollout(ROLLOUT, 1.0)
    store.save_rollout(replace(ROLLOUT, rollout_id="rollout-2", create_time_s=200.0), 2.0)
    assert [rollout.rollout_id for rollout in store.rollouts()] == ["rollout-2", "rollout-1"]
    done = replace(ROLLOUT, state=RolloutState.SUCCEEDED)
    store.save_rollout(done, 3.0)
    assert store.rollout("rollout-1") == done
    unfinished = store.rollouts(PROFILE.name, unfinished_only=True)
    assert [rollout.rollout_id for rollout in unfinished] == ["rollout-2"]
    assert store.rollouts("other") == []
    assert store.rollout("other") is None
    assert store.rollout_update_times() == {"rollout-1": 3.0, "rollout-2": 2.0}
