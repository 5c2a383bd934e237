"""Turns job rows into compute tasks, and what comes of them into teachers and candidates.

Rules that this module keeps:

* Level-triggered: ``step`` compares the unfinished jobs in the database with what it has submitted. After a
  crash anywhere, the next ``step`` goes on; nothing is remembered that the database does not hold.
* A task's id names its content (teacher, profile, spec), so that a student which was built once is not built
  again: not by a second job, not after a kill.
* A result is stored in the same transaction as the job that it belongs to.
* A job of which at least one trial gave a student has succeeded; trials that failed are recorded beside it.
* Compression without a trained teacher, or without the elastic family that a spec is cut from, has it trained
  first, by a job of its own that everyone can see and that all who need it share.
* Only ``step`` talks to the cluster, and one thread calls it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from cloud.domain.candidates import Candidate
from cloud.domain.families import FamilyResult
from cloud.domain.jobs import Job, JobKind, JobState, Trial
from cloud.domain.specs import Road
from cloud.domain.tasks import (
    FamilyTask,
    StudentTask,
    Task,
    TaskEvent,
    TaskFailed,
    TaskProgress,
    TaskResult,
    TaskSucceeded,
    TeacherResult,
    TeacherTask,
)
from cloud.domain.workloads import Workload
from cloud.ensembles import finish_training
from cloud.family_plans import family_job, family_settings, family_task_id, known_family, save_family
from cloud.job_parts import Compute, JobStore
from cloud.job_plans import described, student_task_id, teacher_task_ids, train_job, with_trial
from cloud.search_rounds import SearchRounds
from edgeloop.errors import EdgeloopError, TransientError

logger = logging.getLogger(__name__)

#: Progress alone is written at most this often for each job.
_PROGRESS_INTERVAL_S = 0.5
_CANCELLED = "cancelled"


class JobRunner:
    """Owned by one thread. ``attach`` gives it the cluster once that is up; until then jobs wait.

    ``on_lost`` is called when the cluster does not answer; whoever owns it then attaches a new one.
    ``has_blob`` tells whether the registry holds a digest: what was deleted there is built again.
    ``get_blob`` reads one, and raises ``EdgeloopError`` where it cannot.
    """

    def __init__(
        self,
        store: JobStore,
        *,
        now_s: Callable[[], float],
        on_lost: Callable[[], None] = lambda: None,
        has_blob: Callable[[str], bool] = lambda _digest: True,
        get_blob: Callable[[str], bytes] = lambda _digest: b"",
    ) -> None:
        self._store = store
        self._now_s = now_s
        self._on_lost = on_lost
        self._has_blob = has_blob
        self._get_blob = get_blob
        self._rounds = SearchRounds(store, has_blob)
        self._compute: Compute | None = None
        self._waiting_for = "the cluster is starting"
        self._submitted: set[str] = set()
        self._progress: dict[str, tuple[float, str]] = {}
        self._written_s: dict[str, float] = {}

    def attach(self, compute: Compute | None, *, waiting_for: str = "") -> None:
        """Give it the cluster, or take it away and say what jobs wait for."""
        if compute is not self._compute:
            self._submitted.clear()
        self._compute = compute
        self._waiting_for = waiting_for or self._waiting_for

    def step(self) -> bool:
        """One round. True when a job ended, so that a controller has reason to look again. Never raises."""
        ended = False
        for event in self._poll():
            try:
                ended |= self._take(event)
            except Exception:
                logger.exception("result of task %s could not be stored", event.task_id)
                # It is submitted again, and the cluster gives its result again.
                self._submitted.discard(event.task_id)
        try:
            unfinished = sorted(
                self._store.jobs(unfinished_only=True), key=lambda job: (job.create_time_s, job.job_id)
            )
        except Exception:
            logger.exception("jobs could not be read")
            return ended
        for job in unfinished:
            try:
                ended |= self._advance(job)
            except TransientError as error:
                logger.warning("job %s waits: %s", job.job_id, error)
            except Exception as error:
                logger.exception("job %s failed", job.job_id)
                self._finish(job, JobState.FAILED, f"internal error: {error}")
                ended = True
        self._cancel_unwanted()
        return ended

    # -- what the cluster says ---------------------------------------------------------------------------

    def _poll(self) -> list[TaskEvent]:
        if self._compute is None:
            return []
        try:
            return self._compute.poll()
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, it is brought up again
            logger.warning("the cluster does not answer, and its tasks are submitted again: %s", error)
            self.attach(None, waiting_for="the cluster was lost and is started again")
            self._on_lost()
            return []

    def _take(self, event: TaskEvent) -> bool:
        if isinstance(event, TaskProgress):
            self._progress[event.task_id] = (min(1.0, max(0.0, event.fraction)), event.message)
            return False
        self._progress.pop(event.task_id, None)
        now_s = self._now_s()
        with self._store.transaction():
            wanting = [
                (job, trial)
                for job in self._store.jobs(unfinished_only=True)
                for trial in job.trials
                if trial.task_id == event.task_id and not trial.state.finished
            ]
            # A student that nobody wants any more may belong to a teacher that is gone.
            if isinstance(event, TaskSucceeded) and (wanting or not isinstance(event.result, Candidate)):
                result = event.result
                if isinstance(result, Candidate):
                    reason = next((trial.reason for _, trial in wanting if trial.reason), "")
                    result = replace(result, proposed_reason=reason)
                digest = self._save(result, now_s)
            for job, trial in wanting:
                if isinstance(event, TaskSucceeded):
                    done = replace(trial, state=JobState.SUCCEEDED, progress=1.0, digest=digest, message="")
                elif event.code == _CANCELLED:
                    continue  # cancelled for another job: this one still wants it
                else:
                    done = replace(
                        trial, state=JobState.FAILED, progress=1.0, code=event.code, message=event.message
                    )
                    # A workload that is wrong says nothing about the spec.
                    if trial.spec is not None and event.code != "config":
                        self._store.record_failed_trial(
                            job.profile, trial.spec, event.code, event.message, now_s
                        )
                self._store.update_job(with_trial(job, done))
        self._submitted.discard(event.task_id)
        if isinstance(event, TaskFailed) and event.code != _CANCELLED:
            logger.warning("task %s failed (%s): %s", event.task_id, event.code, event.message)
        return bool(wanting)

    def _save(self, result: TaskResult, now_s: float) -> str:
        if isinstance(result, TeacherResult):
            self._store.save_teacher(result, now_s)
            return ""
        if isinstance(result, FamilyResult):
            save_family(self._store, result)
            return ""
        self._store.save_candidate(result, now_s)
        return result.digest

    # -- what the jobs want --------------------------------------------------------------------------------

    def _advance(self, job: Job) -> bool:
        workload = self._store.workload(job.workload)
        if workload is None:
            return self._finish(job, JobState.FAILED, f"workload {job.workload} was removed")
        if job.kind is JobKind.TRAIN:
            return self._advance_training(job, workload)
        if job.kind is JobKind.FAMILY:
            return self._advance_family(job, workload)
        return self._advance_compression(job, workload)

    def _advance_training(self, job: Job, workload: Workload) -> bool:
        known = teacher_task_ids(workload)
        wanted = tuple(trial.task_id for trial in job.trials)
        if wanted not in (known, teacher_task_ids(workload, again_for=job.job_id)):
            return self._finish(
                job, JobState.FAILED, f"workload {workload.name} changed meanwhile: start the training again"
            )
        members = workload.members
        if wanted == known:
            for trial, member in zip(job.trials, members, strict=True):
                if not trial.state.finished and self._store.teacher(member.teacher_key) is not None:
                    job = with_trial(job, replace(trial, state=JobState.SUCCEEDED, progress=1.0))
        failed = next((trial for trial in job.trials if trial.state is JobState.FAILED), None)
        if failed is not None:
            return self._finish(job, JobState.FAILED, failed.message)
        if all(trial.state is JobState.SUCCEEDED for trial in job.trials):
            said = finish_training(self._store, workload, self._now_s(), self._get_blob)
            return self._finish(job, JobState.SUCCEEDED, said)
        attempt = "" if wanted == known else job.job_id
        tasks: dict[str, Task] = {
            trial.task_id: TeacherTask(task_id=trial.task_id, workload=member, attempt=attempt)
            for trial, member in zip(job.trials, members, strict=True)
            if not trial.state.finished
        }
        return self._work_on(job, tasks)

    def _advance_family(self, job: Job, workload: Workload) -> bool:
        trial = job.trials[0]
        teacher = self._store.teacher(workload.teacher_key)
        if teacher is None or trial.task_id != family_task_id(workload, teacher):
            return self._finish(
                job, JobState.FAILED, f"workload {workload.name} changed meanwhile: compress again"
            )
        if trial.state is JobState.FAILED:
            return self._finish(job, JobState.FAILED, trial.message)
        family = known_family(self._store, workload, teacher, self._has_blob)
        if family is not None:
            job = with_trial(job, replace(trial, state=JobState.SUCCEEDED, progress=1.0))
            narrow, wide = family.widths[0], family.widths[-1]
            return self._finish(
                job,
                JobState.SUCCEEDED,
                f"elastic family trained: accuracy {narrow.accuracy:.4f} at its narrowest, "
                f"{wide.accuracy:.4f} at its widest",
            )
        task = FamilyTask(
            task_id=trial.task_id, workload=workload, teacher=teacher, settings=family_settings(workload)
        )
        return self._work_on(job, {trial.task_id: task})

    def _advance_compression(self, job: Job, workload: Workload) -> bool:
        profile = self._store.profile(job.profile)
        if profile is None or profile.workload != workload.name:
            return self._finish(job, JobState.FAILED, f"profile {job.profile} was removed")
        if not job.trials:
            return self._finish(
                job, JobState.FAILED, "no spec is left to try: every proposal was built or failed"
            )
        teacher = self._store.teacher(workload.teacher_key)
        if teacher is None:
            return self._await_teacher(job, workload)
        if job.state is JobState.PENDING:
            job = self._rounds.name_tasks(job, workload, teacher, profile)
        open_trials = [trial for trial in job.trials if not trial.state.finished]
        if not open_trials:
            more = self._rounds.next_rung(job, workload, profile, teacher)
            if not more:
                return self._finish(job, *self._rounds.outcome(job, teacher))
            trials = (
                Trial(
                    task_id=student_task_id(workload, teacher, profile, found.spec),
                    spec=found.spec,
                    reason=found.reason,
                )
                for found in more
            )
            job = replace(job, trials=(*job.trials, *trials))
            self._store.update_job(job)
            open_trials = [trial for trial in job.trials if not trial.state.finished]
        family = known_family(self._store, workload, teacher, self._has_blob)
        cut = [trial for trial in open_trials if trial.spec and trial.spec.road is Road.ELASTIC]
        if cut and family is None:
            if problem := self._await_family(job, workload, teacher):
                return self._give_up(job, cut, problem)
            open_trials = [trial for trial in open_trials if trial not in cut]
        parent_digest = self._rounds.parent_of(job)
        tasks: dict[str, Task] = {}
        for trial in open_trials:
            assert trial.spec is not None
            tasks[trial.task_id] = StudentTask(
                task_id=trial.task_id,
                workload=workload,
                teacher=teacher,
                profile=profile,
                spec=trial.spec,
                parent_digest=parent_digest,
                family=family if trial.spec.road is Road.ELASTIC else None,
            )
        return self._work_on(job, tasks)

    def _await_teacher(self, job: Job, workload: Workload) -> bool:
        task_ids = teacher_task_ids(workload)
        own_id = f"{job.job_id}-teacher"
        own = self._store.job(own_id)
        if own is not None and own.state.finished and own.state is not JobState.SUCCEEDED:
            why = own.message or own.state.value
            return self._finish(
                job,
                JobState.FAILED,
                f"the teacher of {workload.name} could not be trained ({why}): see to that, then run "
                f"'edgeloop train {workload.name}' and compress again",
            )
        training = [
            other
            for other in self._store.jobs(unfinished_only=True)
            if other.kind is JobKind.TRAIN and tuple(trial.task_id for trial in other.trials) == task_ids
        ]
        if not training:
            first = train_job(own_id, workload, self._now_s())
            self._store.create_job(first)
            training = [first]
        self._note(job, replace(job, message=f"waits for the teacher ({training[0].job_id})"))
        return False

    def _await_family(self, job: Job, workload: Workload, teacher: TeacherResult) -> str:
        """See to it that the family is trained. Returns why it cannot be, or ""."""
        task_id = family_task_id(workload, teacher)
        own_id = f"{job.job_id}-family"
        own = self._store.job(own_id)
        if own is not None and own.state.finished:
            if own.state is JobState.SUCCEEDED:
                return "the elastic family was deleted from the registry meanwhile: compress again"
            return f"the elastic family could not be trained ({own.message or own.state.value})"
        unfinished = self._store.jobs(unfinished_only=True)
        if not any(trial.task_id == task_id for other in unfinished if other.kind is JobKind.FAMILY
                   for trial in other.trials):  # fmt: skip
            self._store.create_job(family_job(own_id, workload, teacher, self._now_s()))
        return ""

    def _give_up(self, job: Job, trials: list[Trial], why: str) -> bool:
        """These trials fail; the others go on."""
        for trial in trials:
            job = with_trial(
                job, replace(trial, state=JobState.FAILED, progress=1.0, code="failed", message=why)
            )
        self._store.update_job(job)
        return False

    def _work_on(self, job: Job, tasks: dict[str, Task]) -> bool:
        if self._compute is None:
            self._note(job, replace(job, message=f"waits: {self._waiting_for}"))
            return False
        for task_id, task in tasks.items():
            if task_id in self._submitted:
                continue
            try:
                self._compute.submit(task)
            except TransientError:
                raise
            except EdgeloopError as error:
                self._take(TaskFailed(task_id=task_id, code="config", message=error.message))
                return True
            self._submitted.add(task_id)
        self._note(job, described(job, self._progress))
        return False

    def _note(self, before: Job, after: Job) -> None:
        """Write a job that goes on, unless only its progress moved a moment ago."""
        if after == before:
            return
        now_s = self._now_s()
        same = replace(after, progress=0.0, message="", trials=()) == replace(
            before, progress=0.0, message="", trials=()
        )
        if same and abs(now_s - self._written_s.get(after.job_id, 0.0)) < _PROGRESS_INTERVAL_S:
            return
        self._written_s[after.job_id] = now_s
        self._store.update_job(after)

    def _finish(self, job: Job, state: JobState, message: str) -> bool:
        progress = 1.0 if state is JobState.SUCCEEDED else job.progress
        self._store.update_job(
            replace(job, state=state, message=message, progress=progress, end_time_s=self._now_s())
        )
        self._written_s.pop(job.job_id, None)
        level = logging.INFO if state is JobState.SUCCEEDED else logging.WARNING
        logger.log(level, "job %s %s: %s", job.job_id, state.value, message)
        return True

    def _cancel_unwanted(self) -> None:
        """What is submitted but belongs to no unfinished job any more was cancelled by a person."""
        if self._compute is None or not self._submitted:
            return
        try:
            wanted = {trial.task_id for job in self._store.jobs(unfinished_only=True) for trial in job.trials}
            for task_id in self._submitted - wanted:
                self._compute.cancel(task_id)
                self._submitted.discard(task_id)
        except Exception:
            logger.exception("tasks could not be cancelled")
