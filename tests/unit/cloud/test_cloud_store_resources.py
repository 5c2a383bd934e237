"""Workloads, profiles, teachers, candidates and jobs: each call can be made twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cloud_store_values import (
    CANDIDATE,
    D1,
    D2,
    JOB,
    M1,
    PROFILE,
    SPEC,
    TEACHER,
    WORKLOAD,
)

from cloud.domain.jobs import JobState
from cloud.domain.profiles import Constraints
from cloud.domain.workloads import SearchBudget
from cloud.store import Change, Store


def test_applying_a_workload_says_what_it_changed(store: Store) -> None:
    assert store.apply_workload(WORKLOAD, 1.0) is Change.CREATED
    assert store.apply_workload(WORKLOAD, 2.0) is Change.UNCHANGED
    assert store.workload_update_times() == {"digits": 1.0}
    changed = replace(WORKLOAD, search=SearchBudget(max_trials=9))
    assert store.apply_workload(changed, 3.0) is Change.UPDATED
    assert store.workload("digits") == changed
    assert store.workload_update_times() == {"digits": 3.0}
    assert store.workload("other") is None


def test_applying_and_removing_a_profile(store: Store) -> None:
    assert store.apply_profile(PROFILE, 1.0) is Change.CREATED
    assert store.apply_profile(PROFILE, 2.0) is Change.UNCHANGED
    changed = replace(PROFILE, constraints=Constraints(latency_p95_ms=3.0))
    assert store.apply_profile(changed, 3.0) is Change.UPDATED
    assert store.profile(PROFILE.name) == changed
    assert store.profiles(workload="other") == []
    assert store.remove_profile(PROFILE.name)
    assert not store.remove_profile(PROFILE.name)
    assert store.profiles() == []


def test_removing_a_profile_does_not_forget_what_its_devices_run(store: Store) -> None:
    store.apply_profile(PROFILE, 1.0)
    store.set_current(PROFILE.name, D1, manifest_digest=M1, rollout_id="r", now_s=2.0)
    store.remove_profile(PROFILE.name)
    store.apply_profile(PROFILE, 3.0)
    assert store.current_digest(PROFILE.name) == D1
    assert store.current_digest("other") == ""


def test_a_teacher_is_replaced_by_one_of_the_same_key(store: Store) -> None:
    assert store.teacher("feed") is None
    store.save_teacher(TEACHER, 1.0)
    better = replace(TEACHER, accuracy=0.995)
    store.save_teacher(better, 2.0)
    assert store.teacher("feed") == better


def test_a_candidate_built_twice_is_one(store: Store) -> None:
    first = replace(CANDIDATE, create_time_s=0.0)
    assert store.save_candidate(first, 5.0)
    assert not store.save_candidate(replace(first, precision=CANDIDATE.precision), 9.0)
    assert store.candidates() == [replace(CANDIDATE, create_time_s=5.0)]


def test_one_artifact_may_be_a_candidate_of_two_profiles(store: Store) -> None:
    store.save_candidate(CANDIDATE, 1.0)
    store.save_candidate(replace(CANDIDATE, profile="other"), 1.0)
    assert len(store.candidates()) == 2
    assert store.candidates(profile="other", workload="digits") == [replace(CANDIDATE, profile="other")]
    assert store.candidate(D2, "other") is None


def test_a_rejected_candidate_keeps_its_reason(store: Store) -> None:
    store.save_candidate(CANDIDATE, 1.0)
    assert store.reject_candidate(D1, PROFILE.name, "failed its trial on 2 devices")
    assert not store.reject_candidate(D2, PROFILE.name, "no such thing")
    found = store.candidate(D1, PROFILE.name)
    assert found == replace(CANDIDATE, rejected_reason="failed its trial on 2 devices")


def test_failed_specs_are_remembered_once(store: Store) -> None:
    for now_s in (1.0, 2.0):
        store.record_failed_trial("p", SPEC, "failed", "why", now_s)
    assert store.failed_specs("p") == [SPEC]
    assert store.failed_specs("other") == []


def test_a_job_is_created_once_and_ends_once(store: Store) -> None:
    assert store.create_job(JOB)
    assert not store.create_job(replace(JOB, message="another"))
    assert store.job("job-1") == JOB
    done = replace(JOB, state=JobState.SUCCEEDED, progress=1.0, end_time_s=200.0)
    store.update_job(done)
    store.update_job(replace(JOB, state=JobState.RUNNING, message="late"))
    store.update_job(replace(JOB, state=JobState.FAILED, message="late"))
    assert store.job("job-1") == done
    assert store.jobs(unfinished_only=True) == []
    assert store.job("other") is None


def test_jobs_come_newest_first(store: Store) -> None:
    for n in range(4):
        store.create_job(replace(JOB, job_id=f"job-{n}", create_time_s=float(n)))
    assert [job.job_id for job in store.jobs(limit=3)] == ["job-3", "job-2", "job-1"]
    assert len(store.jobs(unfinished_only=True)) == 4


def test_a_transaction_that_fails_changes_nothing(store: Store) -> None:
    def fail() -> None:
        with store.transaction():
            store.apply_workload(WORKLOAD, 1.0)
            with store.transaction():
                store.apply_profile(PROFILE, 1.0)
            assert store.workload("digits") == WORKLOAD  # one sees one's own writes
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (store.workloads(), store.profiles()) == ([], [])


def test_settings(store: Store) -> None:
    assert store.get_meta("paused", "no") == "no"
    store.set_meta("paused", "yes")
    store.set_meta("paused", "")
    assert store.get_meta("paused", "no") == ""
