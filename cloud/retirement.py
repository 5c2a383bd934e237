"""Students of a teacher that their workload no longer has.

A student's accuracy holds for the data that its teacher learnt, and for inputs of that shape. When a workload
changes so that it needs another teacher, rules that this module keeps:

* Its students are retired: they may not ship, they count for no choice, and each says why.
* What was learnt from them goes too: each profile's policy starts afresh, failed specs may be tried again.
* Work under way for them ends with a reason.
* When the workload becomes again what it was, its students come back, all but those rejected for themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from cloud.domain.candidates import Candidate
from cloud.domain.jobs import JobKind, JobState
from cloud.domain.workloads import Workload
from cloud.store import Store

_PREFIX = "was built from teacher "


def is_retired(candidate: Candidate) -> bool:
    """Whether it belongs to a teacher that its workload no longer has."""
    return candidate.rejected_reason.startswith(_PREFIX)


def current(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that belong to the teacher that their workload has now."""
    return [candidate for candidate in candidates if not is_retired(candidate)]


def change_teacher(store: Store, before: Workload, after: Workload, now_s: float) -> int:
    """Call inside the transaction that changes the workload. Returns how many students were retired."""
    if before.teacher_key == after.teacher_key:
        return 0
    retired = 0
    for candidate in store.candidates(workload=before.name):
        if candidate.rejected_reason == _reason(after):
            store.save_candidate(replace(candidate, rejected_reason=""), now_s)
        elif not candidate.rejected_reason:
            store.save_candidate(replace(candidate, rejected_reason=_reason(before)), now_s)
            retired += 1
    for profile in store.profiles(before.name):
        store.forget_policy(profile.name)
    for job in store.jobs(unfinished_only=True):
        if job.workload == before.name and job.kind is JobKind.COMPRESS:
            message = f"workload {before.name} changed meanwhile: compress again"
            store.update_job(replace(job, state=JobState.FAILED, message=message, end_time_s=now_s))
    return retired


def _reason(workload: Workload) -> str:
    return f"{_PREFIX}{workload.teacher_key}, which workload {workload.name} no longer has: it changed"
