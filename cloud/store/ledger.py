"""What the controller decided, and what it started because of it.

Rules kept here:

- Persist, then act: a decision, the policy state after it, and the job or rollout that it starts become
  durable together, before anything is sent anywhere.
- A decision that only repeats the one before is counted, not added: the ledger grows with what happens, not
  with time. The newest figures and inputs of such a run replace the older ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from cloud.domain.codec import from_json, to_json
from cloud.domain.decisions import Action, Decision
from cloud.domain.jobs import Job
from cloud.domain.rollout import Rollout, RolloutState
from cloud.domain.state import PolicyState
from cloud.store import schema
from cloud.store.resources import ResourceTables

_QUIET = [Action.HOLD.value, Action.KEEP.value, Action.ALERT.value]
_TERMINAL = [state.value for state in RolloutState if state.is_terminal]


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntry:
    """One decision, or a run of equal quiet ones: ``decision`` is then the newest of the run."""

    decision_id: str
    decision: Decision
    decide_time_s: float
    last_time_s: float
    num_repeats: int = 0


class LedgerTables(ResourceTables):
    """Decisions, policy states and rollouts."""

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

        Returns the id it is kept under: a quiet decision (keep, hold, alert; no job, no rollout) that equals
        the one before in action, verdict, digests and specs is folded into that one. Idempotent by
        decision_id: a second call with a known id changes nothing.
        """
        quiet = decision.action.value in _QUIET and job is None and rollout is None
        outcome = _outcome(decision)
        table = schema.decisions.c
        with self.transaction(), self._write() as connection:
            if (
                connection.scalar(sa.select(table.position).where(table.decision_id == decision_id))
                is not None
            ):
                return decision_id
            last = connection.execute(
                sa.select(table.decision_id, table.outcome, table.action)
                .where(table.profile == decision.profile)
                .order_by(table.position.desc())
                .limit(1)
            ).one_or_none()
            repeats = last is not None and last.outcome == outcome
            if last is not None and repeats and quiet:
                decision_id = last.decision_id
                connection.execute(
                    sa.update(schema.decisions)
                    .where(table.decision_id == decision_id)
                    .values(
                        decision_json=to_json(decision),
                        last_time_s=now_s,
                        num_repeats=table.num_repeats + 1,
                    )
                )
            else:
                connection.execute(
                    sa.insert(schema.decisions).values(
                        decision_id=decision_id,
                        profile=decision.profile,
                        action=decision.action.value,
                        outcome=outcome,
                        is_change=not repeats,
                        decision_json=to_json(decision),
                        decide_time_s=now_s,
                        last_time_s=now_s,
                        num_repeats=0,
                    )
                )
            state_row = {
                "profile": decision.profile,
                "state_json": policy_state.to_json(),
                "update_time_s": now_s,
            }
            self._upsert(connection, schema.policy_states, state_row)
            if job is not None:
                self.create_job(job)
            if rollout is not None:
                self.save_rollout(rollout, now_s)
        return decision_id

    def decisions(
        self, profile: str | None = None, *, limit: int = 100, changes_only: bool = False
    ) -> list[LedgerEntry]:
        """Newest first. ``changes_only`` leaves out those with the same outcome as the one before."""
        table = schema.decisions
        statement = sa.select(table).order_by(table.c.position.desc()).limit(limit)
        if profile is not None:
            statement = statement.where(table.c.profile == profile)
        if changes_only:
            statement = statement.where(table.c.is_change)
        with self._read() as connection:
            return [_entry(row) for row in connection.execute(statement)]

    def decision(self, decision_id: str) -> LedgerEntry | None:
        """None when there is none of this id."""
        table = schema.decisions
        with self._read() as connection:
            row = connection.execute(sa.select(table).where(table.c.decision_id == decision_id)).one_or_none()
        return None if row is None else _entry(row)

    def prune_decisions(self, before_s: float) -> int:
        """Drop quiet decisions that ended before; returns how many. Those that acted stay for good."""
        table = schema.decisions
        with self._write() as connection:
            statement = sa.delete(table).where(table.c.last_time_s < before_s, table.c.action.in_(_QUIET))
            return connection.execute(statement).rowcount

    def policy_state(self, profile: str) -> PolicyState:
        """A fresh one when there is none."""
        table = schema.policy_states.c
        with self._read() as connection:
            text = connection.scalar(sa.select(table.state_json).where(table.profile == profile))
        return PolicyState() if text is None else PolicyState.from_json(text)

    def save_rollout(self, rollout: Rollout, now_s: float) -> None:
        """Insert or replace by rollout_id."""
        row = {
            "rollout_id": rollout.rollout_id,
            "profile": rollout.profile,
            "state": rollout.state.value,
            "rollout_json": to_json(rollout),
            "create_time_s": rollout.create_time_s or now_s,
            "update_time_s": now_s,
        }
        with self._write() as connection:
            self._upsert(connection, schema.rollouts, row, keep=["create_time_s"])

    def rollouts(
        self, profile: str | None = None, *, unfinished_only: bool = False, limit: int = 1000
    ) -> list[Rollout]:
        """Newest first."""
        table = schema.rollouts.c
        statement = sa.select(table.rollout_json)
        if profile is not None:
            statement = statement.where(table.profile == profile)
        if unfinished_only:
            statement = statement.where(table.state.not_in(_TERMINAL))
        statement = statement.order_by(table.create_time_s.desc(), table.rollout_id.desc()).limit(limit)
        with self._read() as connection:
            return [from_json(Rollout, text) for text in connection.scalars(statement)]

    def rollout(self, rollout_id: str) -> Rollout | None:
        """None when there is none of this id."""
        table = schema.rollouts.c
        with self._read() as connection:
            text = connection.scalar(sa.select(table.rollout_json).where(table.rollout_id == rollout_id))
        return None if text is None else from_json(Rollout, text)

    def rollout_update_times(self) -> dict[str, float]:
        """When each rollout was last saved, in seconds since the epoch."""
        with self._read() as connection:
            rows = connection.execute(
                sa.select(schema.rollouts.c.rollout_id, schema.rollouts.c.update_time_s)
            )
            return {row.rollout_id: row.update_time_s for row in rows}


def _outcome(decision: Decision) -> str:
    """Text that is equal exactly where ``Decision.same_outcome`` holds."""
    return to_json(
        [
            decision.action,
            decision.verdict,
            decision.current_digest,
            decision.chosen_digest,
            decision.specs,
        ]
    )


def _entry(row: sa.Row[Any]) -> LedgerEntry:
    return LedgerEntry(
        decision_id=row.decision_id,
        decision=from_json(Decision, row.decision_json),
        decide_time_s=row.decide_time_s,
        last_time_s=row.last_time_s,
        num_repeats=row.num_repeats,
    )
