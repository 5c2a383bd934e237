from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cloud.domain.jobs import Job
from cloud.store.base import Database

if TYPE_CHECKING:
    from cloud.domain.decisions import Decision
    from cloud.domain.policy import PolicyState
    from cloud.domain.rollout import Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntry:
    """One decision, or a run of equal quiet ones: `decision` is then the newest of the run."""

    decision_id: str
    decision: Decision
    decide_time_s: float
    last_time_s: float
    num_repeats: int = 0


class LedgerTables(Database):
    def commit_decision(
        self,
        decision_id: str,
        decision: Decision,
        policy_state: PolicyState,
        now_s: float,
        *,
        job: Job | None = None,
        rollout: Rollout | None = None,
    ) -> str:
        """Decision, new policy state, and the job or rollout that it starts: all in one transaction.

        Returns the id it is kept under: a quiet decision (keep, hold, alert; no job, no rollout) that equals the
        one before in action, verdict and digests is folded into that one. Idempotent by decision_id.
        """
        raise NotImplementedError

    def decisions(
        self, profile: str | None = None, *, limit: int = 100, changes_only: bool = False
    ) -> list[LedgerEntry]:
        """Newest first. `changes_only` leaves out those with the same action, verdict and digests as before."""
        raise NotImplementedError

    def decision(self, decision_id: str) -> LedgerEntry | None:
        raise NotImplementedError

    def prune_decisions(self, before_s: float) -> int:
        """Drop quiet decisions that ended before; those that acted stay for good."""
        raise NotImplementedError

    def policy_state(self, profile: str) -> PolicyState:
        """A fresh one when there is none."""
        raise NotImplementedError

    def save_rollout(self, rollout: Rollout, now_s: float) -> None:
        """Insert or replace by rollout_id."""
        raise NotImplementedError

    def rollouts(
        self, profile: str | None = None, *, unfinished_only: bool = False, limit: int = 1000
    ) -> list[Rollout]:
        """Newest first."""
        raise NotImplementedError

    def rollout(self, rollout_id: str) -> Rollout | None:
        raise NotImplementedError

    def rollout_update_times(self) -> dict[str, float]:
        raise NotImplementedError
