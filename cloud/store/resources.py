from __future__ import annotations

from cloud.domain.candidates import Candidate
from cloud.domain.jobs import Job
from cloud.domain.profiles import DeviceProfile
from cloud.domain.specs import CompressionSpec
from cloud.domain.tasks import TeacherResult
from cloud.domain.workloads import Workload
from cloud.store.base import Change, Database


class ResourceTables(Database):
    def apply_workload(self, workload: Workload, now_s: float) -> Change:
        raise NotImplementedError

    def workloads(self) -> list[Workload]:
        """By name."""
        raise NotImplementedError

    def workload(self, name: str) -> Workload | None:
        raise NotImplementedError

    def workload_update_times(self) -> dict[str, float]:
        """When each workload last changed, in seconds since the epoch."""
        raise NotImplementedError

    def save_teacher(self, teacher: TeacherResult, now_s: float) -> None:
        raise NotImplementedError

    def teacher(self, teacher_key: str) -> TeacherResult | None:
        raise NotImplementedError

    def apply_profile(self, profile: DeviceProfile, now_s: float) -> Change:
        raise NotImplementedError

    def remove_profile(self, name: str) -> bool:
        """Forget a profile; its candidates, ledger and devices stay. False when there was none."""
        raise NotImplementedError

    def profiles(self, workload: str | None = None) -> list[DeviceProfile]:
        """By name."""
        raise NotImplementedError

    def profile(self, name: str) -> DeviceProfile | None:
        raise NotImplementedError

    def save_candidate(self, candidate: Candidate, now_s: float) -> bool:
        """True when it is new. An existing (digest, profile) keeps its first create time, takes the rest."""
        raise NotImplementedError

    def reject_candidate(self, digest: str, profile: str, reason: str) -> bool:
        """Mark it as one that may not ship; False when there is none."""
        raise NotImplementedError

    def candidates(self, profile: str | None = None, workload: str | None = None) -> list[Candidate]:
        """Oldest first."""
        raise NotImplementedError

    def candidate(self, digest: str, profile: str) -> Candidate | None:
        raise NotImplementedError

    def record_failed_trial(
        self, profile: str, spec: CompressionSpec, code: str, message: str, now_s: float
    ) -> None:
        raise NotImplementedError

    def failed_specs(self, profile: str) -> list[CompressionSpec]:
        raise NotImplementedError

    def create_job(self, job: Job) -> bool:
        """False, and nothing is changed, when a job of this id exists."""
        raise NotImplementedError

    def update_job(self, job: Job) -> None:
        """Replace it. A finished job stays as it ended: a late update is dropped."""
        raise NotImplementedError

    def jobs(self, *, unfinished_only: bool = False, limit: int = 1000) -> list[Job]:
        """Newest first."""
        raise NotImplementedError

    def job(self, job_id: str) -> Job | None:
        raise NotImplementedError
