"""How a compression goes from one round of trials to the next, and how it ends.

Rules: everything follows from the database, so that a search goes on where it was after a kill; a student
that was built under the same name before is taken over, not built again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cloud.domain.jobs import Job, JobState, Trial
from cloud.domain.losses import Loss
from cloud.domain.methods import Proposal
from cloud.domain.profiles import DeviceProfile
from cloud.domain.rungs import next_rung
from cloud.domain.tasks import TeacherResult
from cloud.domain.workloads import Workload
from cloud.job_parts import JobStore
from cloud.job_plans import student_task_id

#: A student that is better than its teacher by more than this was not taught by it.
_OUTDONE = 0.01


class SearchRounds:
    """The part of running jobs that concerns a compression's trials."""

    def __init__(self, store: JobStore, has_blob: Callable[[str], bool]) -> None:
        self._store, self._has_blob = store, has_blob

    def next_rung(
        self, job: Job, workload: Workload, profile: DeviceProfile, teacher: TeacherResult
    ) -> tuple[Proposal, ...]:
        """What a search goes on with, now that all of its trials have ended."""
        if not job.max_trials:
            return ()
        built = self._store.candidates(profile.name, workload.name)
        failed = self._store.failed_specs(profile.name)
        return next_rung(
            [trial.spec for trial in job.trials if trial.spec is not None],
            built,
            constraints=profile.constraints,
            budget=workload.search,
            max_trials=job.max_trials,
            num_inputs=teacher.num_inputs if workload.loss is Loss.CROSS_ENTROPY else 0,
            num_branches=teacher.num_branches,
            num_shortcuts=teacher.num_shortcuts,
            exclude=[*(c.spec.digest for c in built), *(spec.digest for spec in failed)],
        )

    def name_tasks(self, job: Job, workload: Workload, teacher: TeacherResult, profile: DeviceProfile) -> Job:
        """Give each trial its content's name, and take over what was built under that name before."""
        built = {
            trial.task_id: trial.digest
            for other in self._store.jobs()
            for trial in other.trials
            if trial.digest and trial.state is JobState.SUCCEEDED
        }
        trials = []
        for trial in job.trials:
            assert trial.spec is not None
            task_id = student_task_id(workload, teacher, profile, trial.spec)
            digest = built.get(task_id, "")
            if digest and self._is_whole(digest, profile.name):
                trials.append(
                    replace(trial, task_id=task_id, state=JobState.SUCCEEDED, progress=1.0, digest=digest)
                )
            else:
                trials.append(replace(trial, task_id=task_id))
        started = replace(job, state=JobState.RUNNING, trials=tuple(trials))
        self._store.update_job(started)
        return started

    def _is_whole(self, digest: str, profile: str) -> bool:
        """Whether a candidate is known, with everything that is shipped of it."""
        candidate = self._store.candidate(digest, profile)
        return candidate is not None and all(
            self._has_blob(needed) for needed in (candidate.digest, candidate.manifest_digest)
        )

    def parent_of(self, job: Job) -> str:
        """What the students may not be slower than: what serves, when it was too slow."""
        entry = self._store.decision(job.decision_id) if job.decision_id else None
        if entry is None:
            return ""
        decision = entry.decision
        return decision.current_digest if 0 < decision.objective_p95_ms < decision.measured_p95_ms else ""

    def outcome(self, job: Job, teacher: TeacherResult) -> tuple[JobState, str]:
        """How a job of which all trials have ended is to end."""
        good = [trial for trial in job.trials if trial.state is JobState.SUCCEEDED]
        bad = [trial for trial in job.trials if trial.state is not JobState.SUCCEEDED]
        first = bad[0].message if bad else ""
        if not good:
            return (JobState.FAILED, first or "no student was built")
        text = f"{len(good)} students built" + (f", {len(bad)} failed: {first}" if bad else "")
        return (JobState.SUCCEEDED, text + self._outdone(job, good, teacher))

    def _outdone(self, job: Job, good: list[Trial], teacher: TeacherResult) -> str:
        """What to do about a teacher that has less to teach than its student knows, or an empty text."""
        built = [self._store.candidate(trial.digest, job.profile) for trial in good]
        best = max((c.metrics.accuracy for c in built if c is not None), default=0.0)
        if best <= teacher.taught_accuracy + _OUTDONE:
            return ""
        who = "its teacher" if teacher.ensemble_accuracy is None else "the mean of its teachers"
        return (
            f"; a student reaches {teacher.metric} {best:.4f}, {who} {teacher.taught_accuracy:.4f}: give "
            f"training.num_epochs more, or the workload a larger teacher"
        )
