"""What to do about a profile: one pure function of what was measured, built, remembered and asked for.

Rules kept here, in this order:

1. Nothing is started while something is in flight, within the cool-down, or on thin, mixed or untrusted
   evidence.
2. Throttled machines are reported, not compressed for.
3. A miss must show in several consecutive windows and beyond doubt, slack in more of them.
4. On a miss the most accurate candidate whose predicted upper bound meets the objective is rolled out, and
   never one that is slower than what it replaces. When there is none, students around the target are built.
5. On slack the same upward: only for a strictly more accurate candidate that is predicted to stay within
   the objective, or for a bounded number of attempts to build one.
6. What cannot be met is said, with the constraint that binds and the nearest relaxations, and the best
   effort serves.
7. Constant input comes to rest: each step tries a digest or a spec that was not tried before, or returns to
   one that measured better, and all budgets end.

The decision is made from its ``inputs`` and nothing else, so a ledger of them replays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cloud.domain.candidates import Candidate, fastest, most_accurate
from cloud.domain.decisions import Action, Decision, Verdict
from cloud.domain.evidence import Window, tabulate
from cloud.domain.feasibility import explain_infeasible, violations
from cloud.domain.inputs import DecisionInputs, observe
from cloud.domain.prediction import Predictor
from cloud.domain.profiles import DeviceProfile
from cloud.domain.search import Direction, propose
from cloud.domain.settings import PolicySettings
from cloud.domain.state import PolicyState
from cloud.domain.workloads import SearchBudget

__all__ = ["Action", "Decision", "PolicySettings", "PolicyState", "Verdict", "decide", "replay"]

#: Less room than this above what serves is not worth building for.
_WORTHWHILE_ROOM = 1.15


def decide(
    *,
    profile: DeviceProfile,
    windows: Sequence[Window],
    candidates: Sequence[Candidate],
    current_digest: str,
    state: PolicyState,
    busy: str,
    now_s: float,
    settings: PolicySettings,
    search: SearchBudget,
    num_branches: int = 0,
    num_shortcuts: int = 0,
) -> tuple[Decision, PolicyState]:
    """A profile's decision: store it and the state, which counts it as taken, in one transaction, then act.

    ``windows`` are the profile's, of all digests; ``current_digest`` is its target ("" when none); ``busy``
    says why nothing may be started now, or is "". ``num_branches`` and ``num_shortcuts``: see ``propose``.
    """
    mine = sorted(
        (c for c in candidates if c.profile == profile.name and c.workload == profile.workload),
        key=lambda candidate: candidate.digest,
    )
    table = tabulate(
        windows,
        workload=profile.workload,
        digests={current_digest, *(candidate.digest for candidate in mine)} - {""},
        now_s=now_s,
        settings=settings,
    )
    present = {row.device_id for row in table.rows}
    inputs = DecisionInputs(
        profile=profile,
        table=table,
        candidates=tuple(mine),
        current_digest=current_digest,
        # Only what can matter: a ledger entry need not hold the baselines of devices that are silent.
        state=replace(state, baselines={d: b for d, b in state.baselines.items() if d in present}),
        busy=busy,
        now_s=now_s,
        settings=settings,
        search=search,
        num_branches=num_branches,
        num_shortcuts=num_shortcuts,
    )
    decision, after = _Case(inputs).decide()
    return decision, replace(after, baselines={**state.baselines, **after.baselines})


def replay(inputs: Mapping[str, Any]) -> Decision:
    """The decision that these inputs lead to. Raises ``ValueError`` for those of an unknown version."""
    return _Case(DecisionInputs.from_json(inputs)).decide()[0]


class _Case:
    """One decision in the making."""

    def __init__(self, inputs: DecisionInputs) -> None:
        self._inputs = inputs
        self._profile = inputs.profile
        self._constraints = inputs.profile.constraints
        self._settings = inputs.settings
        self._limit_ms = inputs.profile.constraints.latency_p95_ms
        self._found, self._state = observe(inputs)
        self._current = next((c for c in inputs.candidates if c.digest == inputs.current_digest), None)
        self._predictor = Predictor(inputs.candidates, self._state.measured, inputs.settings)

    def decide(self) -> tuple[Decision, PolicyState]:
        found = self._found
        if self._inputs.busy:
            return self._hold(Verdict.BUSY, f"{self._inputs.busy}; deciding again when that has ended")
        if not self._inputs.current_digest:
            return self._first()
        if found.problem:
            return self._distrust()
        if self._current is not None and (
            self._current.rejected_reason or violations(self._current, self._constraints)
        ):
            return self._replace_unfit()
        if self._limit_ms is None:
            return self._quiet(Action.KEEP, Verdict.OPEN, "no objective set: what serves is kept")
        if not found.is_enough(self._settings):
            return self._hold(Verdict.THIN, self._what_is_thin())
        return self._judge(self._limit_ms)

    def _judge(self, limit_ms: float) -> tuple[Decision, PolicyState]:
        found, settings = self._found, self._settings
        rounds = found.rounds_ms
        if found.p95_ms > limit_ms:
            if found.is_throttled:
                return self._quiet(
                    Action.ALERT,
                    Verdict.THROTTLED,
                    f"{self._said()}, but the reference kernel is slow too on {_some(found.throttled)}: "
                    "the machines are throttled or busy, a smaller model is not the cure",
                )
            num_over = _leading(rounds, lambda p95_ms: p95_ms > limit_ms)
            if num_over < settings.num_miss_windows:
                return self._hold(
                    Verdict.MISSES,
                    f"{self._said()}, in {num_over} consecutive windows: {settings.num_miss_windows} count",
                )
            if found.lower_p95_ms <= limit_ms and num_over < 2 * settings.num_miss_windows:
                return self._hold(
                    Verdict.MISSES,
                    f"{self._said()}, but not beyond doubt: more windows are needed",
                )
            return self._tighten(Verdict.MISSES, f"{self._said()} in {num_over} consecutive windows")
        slack_ms = settings.slack_ratio * limit_ms
        num_under = _leading(rounds, lambda p95_ms: p95_ms < slack_ms)
        if (
            num_under >= settings.num_slack_windows
            and found.upper_p95_ms < settings.fit_ratio * limit_ms
            and found.p95_ms < slack_ms
            and not found.is_throttled
        ):
            return self._relax(limit_ms, f"{self._said()}, with room to spare in {num_under} windows")
        return self._quiet(Action.KEEP, Verdict.MEETS, self._said())

    def _distrust(self) -> tuple[Decision, PolicyState]:
        found = self._found
        if found.problem == "mixed":
            return self._hold(
                Verdict.MIXED,
                f"real and emulated devices report for one profile ({_some(found.untrusted)} against the "
                "others): give each kind a profile of its own",
            )
        return self._quiet(
            Action.ALERT,
            Verdict.UNTRUSTED,
            f"{len(found.untrusted)} of {found.num_devices} devices report what does not fit the others "
            f"({_some(found.untrusted)}): nothing is changed until that is cleared up",
        )

    def _first(self) -> tuple[Decision, PolicyState]:
        why = "nothing serves yet"
        eligible = self._eligible()
        if not eligible:
            return self._build(Verdict.NEW, why, Direction.INITIAL, None)
        fitting = [c for c in eligible if self._fits(c, self._limit_ms)]
        if fitting:
            return self._roll_out(
                Verdict.NEW, f"{why}: the most accurate that should fit", most_accurate(fitting)
            )
        return self._roll_out(Verdict.NEW, f"{why}: none should fit, the fastest is tried", fastest(eligible))

    def _replace_unfit(self) -> tuple[Decision, PolicyState]:
        """What serves breaks a constraint other than latency, or was rejected after it shipped."""
        assert self._current is not None
        broken = violations(self._current, self._constraints)
        why = self._current.rejected_reason or f"what serves does not meet {', '.join(broken)}"
        if cooling := self._cooling():
            return self._hold(Verdict.MISSES, f"{why}; {cooling}")
        fitting = [c for c in self._eligible() if self._fits(c, self._limit_ms)]
        if fitting:
            return self._roll_out(
                Verdict.MISSES, f"{why}: the most accurate that should fit", most_accurate(fitting)
            )
        if "min_accuracy" in broken and self._limit_ms is not None:
            target_ms = self._predictor.largest_fitting(
                self._limit_ms, at_most_ms=4 * self._current.metrics.latency_p50_ms
            )
            return self._build(Verdict.MISSES, why, Direction.LARGER, target_ms or None)
        direction = Direction.LARGER if broken == ("min_accuracy",) else Direction.SMALLER
        return self._build(Verdict.MISSES, why, direction, None)

    def _tighten(self, verdict: Verdict, why: str) -> tuple[Decision, PolicyState]:
        if cooling := self._cooling():
            return self._hold(verdict, f"{why}; {cooling}")
        faster = self._faster()
        fitting = [c for c in faster if self._fits(c, self._limit_ms)]
        if fitting:
            return self._roll_out(
                verdict, f"{why}: the most accurate that should fit", most_accurate(fitting)
            )
        target_ms = None
        if self._limit_ms is not None and self._current is not None:
            own_ms = self._current.metrics.latency_p50_ms
            target_ms = self._predictor.largest_fitting(self._limit_ms, at_most_ms=own_ms) or own_ms / 1000
        return self._build(verdict, why, Direction.SMALLER, target_ms)

    def _relax(self, limit_ms: float, why: str) -> tuple[Decision, PolicyState]:
        if self._current is None:
            return self._quiet(
                Action.KEEP, Verdict.SLACK, f"{why}; what serves is no candidate of this profile"
            )
        if cooling := self._cooling():
            return self._hold(Verdict.SLACK, f"{why}; {cooling}")
        room_ms = self._settings.fit_ratio * limit_ms
        floor = self._current.metrics.accuracy + self._settings.min_accuracy_gain
        better = [c for c in self._eligible() if c.metrics.accuracy > floor and self._fits(c, room_ms)]
        if better:
            return self._roll_out(
                Verdict.SLACK, f"{why}: a more accurate one should fit", most_accurate(better)
            )
        own_ms = self._current.metrics.latency_p50_ms
        target_ms = self._predictor.largest_fitting(room_ms, at_most_ms=20 * own_ms)
        if target_ms < _WORTHWHILE_ROOM * own_ms:
            return self._quiet(
                Action.KEEP, Verdict.SLACK, f"{why}, but too little of it for a larger student"
            )
        return self._build(Verdict.SLACK, why, Direction.LARGER, target_ms)

    def _build(
        self, verdict: Verdict, why: str, direction: Direction, target_ms: float | None
    ) -> tuple[Decision, PolicyState]:
        is_slack = verdict is Verdict.SLACK
        spent = self._state.num_slack_builds if is_slack else self._state.num_miss_builds
        limit = self._settings.max_slack_builds if is_slack else self._settings.max_miss_builds
        specs = propose(
            self._profile,
            self._inputs.candidates,
            target_latency_ms=target_ms,
            direction=direction,
            budget=self._inputs.search,
            exclude=self._state.proposed,
            current=self._current,
            num_branches=self._inputs.num_branches,
            num_shortcuts=self._inputs.num_shortcuts,
        )
        if spent >= limit or not specs:
            left = "nothing new is left to build"
            ended = left if spent < limit else f"{spent} rounds of building are spent"
            if is_slack:
                return self._quiet(Action.KEEP, verdict, f"{why}, but {ended}: what serves is kept")
            return self._give_up(f"{why}; {ended}")
        aim = f" for {target_ms:.3g} ms where they are built" if target_ms is not None else ""
        state = replace(
            self._state,
            num_slack_builds=self._state.num_slack_builds + is_slack,
            num_miss_builds=self._state.num_miss_builds + (not is_slack),
            proposed=(*self._state.proposed, *(spec.digest for spec in specs)),
        )
        what = ", ".join(spec.label for spec in specs)
        decision = self._decision(Action.BUILD, verdict, f"{why}: building{aim} ({what})")
        return replace(decision, specs=specs), state

    def _give_up(self, why: str) -> tuple[Decision, PolicyState]:
        """Nothing meets all constraints: say so, and serve what comes nearest."""
        sentence = explain_infeasible(
            self._inputs.candidates, self._constraints, self._predictor.predict
        ).sentence
        reason = f"{why}; {sentence}"
        faster = [
            c
            for c in self._faster()
            if self._predictor.predict(c).p95_ms < (1 - self._settings.min_latency_gain) * self._found.p95_ms
        ]
        if faster and self._found.is_enough(self._settings):
            return self._roll_out(
                Verdict.INFEASIBLE, f"{reason}; the fastest is the best effort", fastest(faster)
            )
        return self._quiet(Action.ALERT, Verdict.INFEASIBLE, f"{reason}; what serves is kept")

    def _roll_out(self, verdict: Verdict, why: str, chosen: Candidate) -> tuple[Decision, PolicyState]:
        state = self._state
        is_back = verdict is Verdict.MISSES and chosen.digest == state.previous_digest
        prediction = self._predictor.predict(chosen)
        source = "measured" if prediction.is_measured else "predicted"
        decision = self._decision(
            Action.ROLL_BACK if is_back else Action.ROLL_OUT,
            verdict,
            f"{why}: {chosen.digest[:12]}, accuracy {chosen.metrics.accuracy:.4g}, {source} p95 "
            f"{prediction.p95_ms:.3g} ms (upper {prediction.upper_p95_ms:.3g})",
        )
        counts = dict(state.num_rollouts)
        counts[chosen.digest] = counts.get(chosen.digest, 0) + 1
        return (
            replace(decision, chosen_digest=chosen.digest, predicted_p95_ms=prediction.p95_ms),
            replace(state, num_rollouts=counts, last_change_s=self._inputs.now_s),
        )

    def _eligible(self) -> list[Candidate]:
        """Candidates that may ship and may still be tried."""
        limit = self._settings.max_rollouts_per_digest
        return [
            c
            for c in self._inputs.candidates
            if not c.rejected_reason
            and c.digest != self._inputs.current_digest
            and not violations(c, self._constraints)
            and self._state.num_rollouts.get(c.digest, 0) < limit
        ]

    def _faster(self) -> list[Candidate]:
        """Those that are faster than what serves, both where they were built and as predicted."""
        own_ms = self._current.metrics.latency_p50_ms if self._current is not None else None
        return [
            c
            for c in self._eligible()
            if (own_ms is None or c.metrics.latency_p50_ms < own_ms)
            and self._predictor.predict(c).p95_ms < self._found.p95_ms
        ]

    def _fits(self, candidate: Candidate, limit_ms: float | None) -> bool:
        return limit_ms is None or self._predictor.predict(candidate).upper_p95_ms <= limit_ms

    def _cooling(self) -> str:
        last_s = self._state.last_change_s
        left_s = 0.0 if last_s is None else last_s + self._settings.cool_down_s - self._inputs.now_s
        return f"cooling down for another {left_s:.0f} s after the last change" if left_s > 0 else ""

    def _said(self) -> str:
        found, limit_ms = self._found, self._limit_ms or 0.0
        relation = "over" if found.p95_ms > limit_ms else "within"
        aside = f", {len(found.untrusted)} set aside" if found.untrusted else ""
        return (
            f"p95 {found.p95_ms:.3g} ms ({found.lower_p95_ms:.3g} to {found.upper_p95_ms:.3g}) is {relation} "
            f"{limit_ms:.3g} ms on {_number(found.num_devices, 'device')}{aside}"
        )

    def _what_is_thin(self) -> str:
        found, settings = self._found, self._settings
        return (
            f"{_number(found.num_samples, 'request')} in {_number(found.num_windows, 'window')} of "
            f"{_number(found.num_devices, 'device')} so far: {settings.min_samples}, {settings.min_windows} "
            f"and {settings.min_devices} are needed"
        )

    def _hold(self, verdict: Verdict, reason: str) -> tuple[Decision, PolicyState]:
        return self._quiet(Action.HOLD, verdict, reason)

    def _quiet(self, action: Action, verdict: Verdict, reason: str) -> tuple[Decision, PolicyState]:
        return self._decision(action, verdict, reason), self._state

    def _decision(self, action: Action, verdict: Verdict, reason: str) -> Decision:
        found = self._found
        return Decision(
            profile=self._profile.name,
            workload=self._profile.workload,
            action=action,
            verdict=verdict,
            reason=reason,
            current_digest=self._inputs.current_digest,
            measured_p95_ms=found.p95_ms,
            lower_p95_ms=found.lower_p95_ms,
            upper_p95_ms=found.upper_p95_ms,
            objective_p95_ms=self._limit_ms or 0.0,
            num_samples=found.num_samples,
            num_devices=found.num_devices,
            inputs=self._inputs.to_json(),
        )


def _leading(rounds: Sequence[float], holds: Callable[[float], bool]) -> int:
    """In how many rounds, from the newest on, it holds without a break."""
    return next((i for i, value in enumerate(rounds) if not holds(value)), len(rounds))


def _some(device_ids: Sequence[str]) -> str:
    shown = ", ".join(device_ids[:3])
    return shown if len(device_ids) <= 3 else f"{shown} and {len(device_ids) - 3} more"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
