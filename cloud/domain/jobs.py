"""Work that was asked of the cluster: training a teacher or its elastic family, or a round of compression."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cloud.domain.specs import CompressionSpec


class JobKind(StrEnum):
    TRAIN = "train"
    COMPRESS = "compress"
    FAMILY = "family"


class JobState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One task of a job. ``spec`` is None for a teacher's; ``digest`` is the candidate that came of it.

    ``reason`` is why the search proposed the spec, empty where a person or the controller asked for it.
    """

    task_id: str
    spec: CompressionSpec | None = None
    state: JobState = JobState.PENDING
    progress: float = 0.0
    digest: str = ""
    code: str = ""
    message: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """``progress`` is 0 to 1. ``end_time_s`` is 0 until the job is finished.

    ``max_trials`` is how many trials a search may grow to, rung by rung; 0 stands for those that it has.
    """

    job_id: str
    kind: JobKind
    workload: str
    profile: str = ""
    state: JobState = JobState.PENDING
    progress: float = 0.0
    message: str = ""
    trials: tuple[Trial, ...] = ()
    decision_id: str = ""
    create_time_s: float = 0.0
    end_time_s: float = 0.0
    max_trials: int = 0

    @property
    def candidate_digests(self) -> tuple[str, ...]:
        """Of the trials that succeeded, in the order in which they were asked for."""
        return tuple(trial.digest for trial in self.trials if trial.digest)
