"""What people apply and what the cluster makes of it: workloads, teachers, profiles, candidates, jobs.

Rules kept here:

- Applying what is there already changes nothing, not even a time.
- A finished job stays as it ended, whatever arrives late.
- A candidate is one artifact for one profile; building the same artifact again refreshes its figures.
"""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa

from cloud.domain.candidates import Candidate
from cloud.domain.codec import from_json, to_json
from cloud.domain.jobs import Job, JobState
from cloud.domain.profiles import DeviceProfile
from cloud.domain.specs import CompressionSpec
from cloud.domain.tasks import TeacherResult
from cloud.domain.workloads import Workload
from cloud.store import schema
from cloud.store.base import Change, Database

_FINISHED = [state.value for state in JobState if state.finished]


class ResourceTables(Database):
    """Workloads, teachers, profiles, candidates and jobs."""

    def apply_workload(self, workload: Workload, now_s: float) -> Change:
        """Create or update it."""
        return self._apply(schema.workloads, workload.name, {"spec_json": workload.to_json()}, now_s)

    def workloads(self) -> list[Workload]:
        """By name."""
        table = schema.workloads.c
        with self._read() as connection:
            return [
                Workload.from_json(text)
                for text in connection.scalars(sa.select(table.spec_json).order_by(table.name))
            ]

    def workload(self, name: str) -> Workload | None:
        """None when there is none of this name."""
        table = schema.workloads.c
        with self._read() as connection:
            text = connection.scalar(sa.select(table.spec_json).where(table.name == name))
        return None if text is None else Workload.from_json(text)

    def remove_workload(self, name: str) -> bool:
        """Forget a workload; its teacher and candidates stay. False when there was none."""
        with self._write() as connection:
            statement = sa.delete(schema.workloads).where(schema.workloads.c.name == name)
            return connection.execute(statement).rowcount == 1

    def workload_update_times(self) -> dict[str, float]:
        """When each workload last changed, in seconds since the epoch."""
        with self._read() as connection:
            return {row.name: row.update_time_s for row in connection.execute(sa.select(schema.workloads))}

    def save_teacher(self, teacher: TeacherResult, now_s: float) -> None:
        """Insert or replace by teacher_key: training again on purpose gives a new teacher."""
        values = {
            "teacher_key": teacher.teacher_key,
            "workload": teacher.workload,
            "result_json": to_json(teacher),
            "create_time_s": now_s,
        }
        with self._write() as connection:
            self._upsert(connection, schema.teachers, values, keep=["create_time_s"])

    def teacher(self, teacher_key: str) -> TeacherResult | None:
        """None until one was trained."""
        table = schema.teachers.c
        with self._read() as connection:
            text = connection.scalar(sa.select(table.result_json).where(table.teacher_key == teacher_key))
        return None if text is None else from_json(TeacherResult, text)

    def apply_profile(self, profile: DeviceProfile, now_s: float) -> Change:
        """Create or update it."""
        values = {"workload": profile.workload, "spec_json": to_json(profile)}
        return self._apply(schema.profiles, profile.name, values, now_s)

    def remove_profile(self, name: str) -> bool:
        """Forget a profile; its candidates, ledger and devices stay. False when there was none."""
        with self._write() as connection:
            statement = sa.delete(schema.profiles).where(schema.profiles.c.name == name)
            return connection.execute(statement).rowcount == 1

    def profiles(self, workload: str | None = None) -> list[DeviceProfile]:
        """By name."""
        table = schema.profiles.c
        statement = sa.select(table.spec_json).order_by(table.name)
        if workload is not None:
            statement = statement.where(table.workload == workload)
        with self._read() as connection:
            return [from_json(DeviceProfile, text) for text in connection.scalars(statement)]

    def profile(self, name: str) -> DeviceProfile | None:
        """None when there is none of this name."""
        table = schema.profiles.c
        with self._read() as connection:
            text = connection.scalar(sa.select(table.spec_json).where(table.name == name))
        return None if text is None else from_json(DeviceProfile, text)

    def save_candidate(self, candidate: Candidate, now_s: float) -> bool:
        """True when it is new. An existing (digest, profile) keeps its first create time, takes the rest."""
        table = schema.candidates.c
        with self._write() as connection:
            key = (table.digest == candidate.digest, table.profile == candidate.profile)
            created_s = connection.scalar(sa.select(table.create_time_s).where(*key))
            time_s = candidate.create_time_s or now_s if created_s is None else created_s
            values = {
                "digest": candidate.digest,
                "profile": candidate.profile,
                "workload": candidate.workload,
                "candidate_json": to_json(replace(candidate, create_time_s=time_s)),
                "create_time_s": time_s,
            }
            self._upsert(connection, schema.candidates, values)
        return created_s is None

    def reject_candidate(self, digest: str, profile: str, reason: str) -> bool:
        """Mark it as one that may not ship; False when there is none."""
        with self.transaction():
            candidate = self.candidate(digest, profile)
            if candidate is not None:
                self.save_candidate(replace(candidate, rejected_reason=reason), candidate.create_time_s)
        return candidate is not None

    def candidates(self, profile: str | None = None, workload: str | None = None) -> list[Candidate]:
        """Oldest first."""
        table = schema.candidates.c
        statement = sa.select(table.candidate_json).order_by(table.create_time_s, table.digest)
        if profile is not None:
            statement = statement.where(table.profile == profile)
        if workload is not None:
            statement = statement.where(table.workload == workload)
        with self._read() as connection:
            return [from_json(Candidate, text) for text in connection.scalars(statement)]

    def candidate(self, digest: str, profile: str) -> Candidate | None:
        """None when this artifact was not built for this profile."""
        table = schema.candidates.c
        statement = sa.select(table.candidate_json).where(table.digest == digest, table.profile == profile)
        with self._read() as connection:
            text = connection.scalar(statement)
        return None if text is None else from_json(Candidate, text)

    def record_failed_trial(
        self, profile: str, spec: CompressionSpec, code: str, message: str, now_s: float
    ) -> None:
        """Remember that building this spec failed for good, so that the search does not ask for it again."""
        values = {
            "profile": profile,
            "spec_digest": spec.digest,
            "spec_json": spec.to_json(),
            "code": code,
            "message": message,
            "event_time_s": now_s,
        }
        with self._write() as connection:
            self._upsert(connection, schema.failed_trials, values)

    def failed_specs(self, profile: str) -> list[CompressionSpec]:
        """Oldest first."""
        table = schema.failed_trials.c
        statement = sa.select(table.spec_json).where(table.profile == profile)
        with self._read() as connection:
            texts = connection.scalars(statement.order_by(table.event_time_s, table.spec_digest))
            return [from_json(CompressionSpec, text) for text in texts]

    def forget_policy(self, profile: str) -> None:
        """Drop what the policy and the search have learnt of the profile's students."""
        with self._write() as connection:
            for table in (schema.policy_states, schema.failed_trials):
                connection.execute(sa.delete(table).where(table.c.profile == profile))

    def create_job(self, job: Job) -> bool:
        """False, and nothing is changed, when a job of this id exists."""
        with self._write() as connection:
            return self._insert_new(connection, schema.jobs, _job_row(job))

    def update_job(self, job: Job) -> None:
        """Replace it. A finished job stays as it ended: a late update is dropped."""
        table = schema.jobs.c
        with self._write() as connection:
            connection.execute(
                sa.update(schema.jobs)
                .where(table.job_id == job.job_id, table.state.not_in(_FINISHED))
                .values(**_job_row(job))
            )

    def jobs(self, *, unfinished_only: bool = False, limit: int = 1000) -> list[Job]:
        """Newest first."""
        table = schema.jobs.c
        statement = sa.select(table.job_json)
        if unfinished_only:
            statement = statement.where(table.state.not_in(_FINISHED))
        statement = statement.order_by(table.create_time_s.desc(), table.job_id.desc()).limit(limit)
        with self._read() as connection:
            return [from_json(Job, text) for text in connection.scalars(statement)]

    def job(self, job_id: str) -> Job | None:
        """None when there is none of this id."""
        table = schema.jobs.c
        with self._read() as connection:
            text = connection.scalar(sa.select(table.job_json).where(table.job_id == job_id))
        return None if text is None else from_json(Job, text)

    def _apply(self, table: sa.Table, name: str, values: dict[str, str], now_s: float) -> Change:
        with self._write() as connection:
            stored = connection.scalar(sa.select(table.c.spec_json).where(table.c.name == name))
            if stored == values["spec_json"]:
                return Change.UNCHANGED
            self._upsert(connection, table, {"name": name, **values, "update_time_s": now_s})
        return Change.CREATED if stored is None else Change.UPDATED


def _job_row(job: Job) -> dict[str, str | float]:
    return {
        "job_id": job.job_id,
        "state": job.state.value,
        "job_json": to_json(job),
        "create_time_s": job.create_time_s,
    }
