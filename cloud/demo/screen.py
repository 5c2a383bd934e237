"""What the demonstration shows in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cloud.cli.output import make_table, milliseconds, percent, short, size
from cloud.demo.outcome import ProfileOutcome
from cloud.demo.plan import DemoPlan, Outcome
from cloud.demo.report import Demonstration
from edgeloop.v1 import control_service_pb2 as pb

EXPECTATION = {
    Outcome.COMPRESSED: "misses: gets a smaller student",
    Outcome.RELAXED: "has slack: gets a more accurate student",
    Outcome.KEPT: "fits: is left alone",
}


def student_table(candidates: Iterable[pb.CandidateInfo]) -> Table:
    """The students that were built, as measured where they were built."""
    rows = [
        [
            candidate.profile,
            short(candidate.digest),
            f"x{json.loads(candidate.spec_json)['width_ratio']:g}",
            candidate.precision,
            percent(candidate.accuracy),
            milliseconds(candidate.latency_p50_ms),
            size(candidate.artifact_bytes),
        ]
        for candidate in candidates
    ]
    return make_table(["PROFILE", "STUDENT", "WIDTH", "PRECISION", "ACCURACY", "P50 HERE", "SIZE"], rows)


def objective_table(plan: DemoPlan, outcomes: Mapping[str, ProfileOutcome]) -> Table:
    """What each profile measured first, the objective that it got, and what is to be expected."""
    rows = []
    for item in plan.profiles:
        outcome = outcomes[item.profile]
        first = outcome.rounds[0].p95_ms if outcome.rounds else 0.0
        wanted = milliseconds(outcome.objective_p95_ms)
        rows.append(
            [item.profile, f"{item.slowdown}x", milliseconds(first), wanted, EXPECTATION[item.outcome]]
        )
    return make_table(["PROFILE", "SLOWDOWN", "P95 NOW", "OBJECTIVE", "EXPECTED"], rows)


def progress_table(outcomes: Sequence[ProfileOutcome], profiles: Mapping[str, pb.ProfileInfo]) -> Table:
    """Where each profile stands at this moment."""
    rows = []
    for outcome in outcomes:
        profile = profiles[outcome.name]
        last = outcome.rounds[-1] if outcome.rounds else None
        rows.append(
            [
                outcome.name,
                str(last.generation) if last else "-",
                short(last.digest) if last else "-",
                milliseconds(profile.measured_p95_ms or (last.p95_ms if last else 0.0)),
                milliseconds(outcome.objective_p95_ms),
                profile.verdict,
                profile.message[:90],
            ]
        )
    return make_table(["PROFILE", "GENERATION", "SERVING", "P95", "OBJECTIVE", "VERDICT", "CONTROLLER"], rows)


def show_end(console: Console, demonstration: Demonstration, folder: Path) -> None:
    """Print the closing table: before and after, and why."""
    rows = [
        [
            outcome.name,
            str(item.generation),
            short(item.digest),
            milliseconds(item.p95_ms),
            milliseconds(outcome.objective_p95_ms),
            percent(item.accuracy),
            size(item.artifact_bytes),
        ]
        for outcome in demonstration.outcomes
        for item in outcome.rounds
    ]
    headers = ["PROFILE", "GENERATION", "STUDENT", "P95", "OBJECTIVE", "ON TEST", "SIZE"]
    console.print(make_table(headers, rows))
    console.print("[bold]why[/bold]")
    for outcome in demonstration.outcomes:
        for item in outcome.rounds[1:]:
            text = f"  {outcome.name}, generation {item.generation}: {item.decision}: {item.reason}"
            console.print(text, soft_wrap=True, markup=False)
        if len(outcome.rounds) == 1:
            console.print(
                f"  {outcome.name}: {demonstration.verdicts[outcome.name]}", soft_wrap=True, markup=False
            )
    for outcome in demonstration.outcomes:
        for problem in outcome.problems:
            console.print(f"{outcome.name}: {problem}", style="red")
    word = "the loop closed" if demonstration.closed else "the loop did not close"
    console.print(f"[bold]{word}[/bold] in {demonstration.wall_s:.0f} s", soft_wrap=True)
    console.print(
        f"  open {folder / 'report.html'} in a browser; {folder / 'report.json'} is the same for programs",
        soft_wrap=True,
        highlight=False,
    )
