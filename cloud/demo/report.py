"""``report.json`` for programs and ``report.html`` for people, from the same values.

The page is one file: figures are inline SVG, nothing is fetched, so that it can be mailed and archived.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure

from cloud.cli.output import milliseconds, percent, size
from cloud.cli.plain import enum_text
from cloud.demo.outcome import ProfileOutcome, Span
from edgeloop.v1 import control_service_pb2 as pb

INK, ACCENT, QUIET, ALERT = "#1f2933", "#0b7285", "#adb5bd", "#c92a2a"
DEVICE_COLOURS = ("#0b7285", "#e67700", "#5f3dc4", "#2b8a3e", "#a61e4d", "#364fc7")


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """All that a demonstration found out. Times are seconds since the epoch."""

    workload: str
    wall_s: float
    stages: dict[str, float]
    teacher: pb.TeacherInfo
    outcomes: list[ProfileOutcome]
    devices: list[pb.DeviceInfo]
    measurements: dict[str, list[pb.Measurement]]
    candidates: dict[str, list[pb.CandidateInfo]]
    busy: list[Span]
    slowdowns: dict[str, int]
    verdicts: dict[str, str]
    objective_time_s: float

    @property
    def closed(self) -> bool:
        """Whether every profile ended as it should, by measurement."""
        return bool(self.outcomes) and not any(outcome.problems for outcome in self.outcomes)


def as_json(demo: Demonstration) -> dict[str, Any]:
    """The values of ``report.json``."""
    return {
        "closed": demo.closed,
        "workload": demo.workload,
        "wall_s": round(demo.wall_s, 1),
        "stages_s": {name: round(seconds, 1) for name, seconds in demo.stages.items()},
        "teacher": {
            "accuracy": demo.teacher.test_accuracy,
            "validation_accuracy": demo.teacher.accuracy,
            "macs": demo.teacher.macs,
            "artifact_bytes": demo.teacher.artifact_bytes,
        },
        "profiles": {
            outcome.name: {
                "expected": outcome.outcome.value,
                "emulated_slowdown": demo.slowdowns[outcome.name],
                "objective_p95_ms": outcome.objective_p95_ms,
                "met": outcome.met,
                "problems": outcome.problems,
                "verdict": demo.verdicts[outcome.name],
                "rounds": [asdict(item) for item in outcome.rounds],
            }
            for outcome in demo.outcomes
        },
        "devices": [
            {
                "device_id": device.registration.device_id,
                "profile": device.profile,
                "state": _state(device),
                "generation": device.generation,
                "serving_digest": device.serving_digest,
                "rss_bytes": device.rss_bytes,
                "emulated_slowdown": device.registration.emulated_slowdown,
            }
            for device in demo.devices
        ],
    }


def _state(device: pb.DeviceInfo) -> str:
    return enum_text(device.deployment, "state")


def write_report(demo: Demonstration, folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` into the folder."""
    values = as_json(demo)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cloud.demo", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(milliseconds=milliseconds, percent=percent, size=size)
    page = environment.get_template("report.html.j2").render(
        report=values,
        latency={outcome.name: latency_plot(demo, outcome) for outcome in demo.outcomes},
        trade_off={outcome.name: trade_off_plot(demo, outcome) for outcome in demo.outcomes},
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def latency_plot(demo: Demonstration, outcome: ProfileOutcome) -> str:
    """p95 of each window against the objective over time, each new generation marked. Returns SVG."""
    figure, axes = _figure()
    windows = demo.measurements[outcome.name]
    origin = min((m.start_time.ToNanoseconds() / 1e9 for m in windows), default=0.0)
    for index, device in enumerate(sorted({m.device_id for m in windows})):
        points = sorted(
            (m.end_time.ToNanoseconds() / 1e9 - origin, m.p95_ms) for m in windows if m.device_id == device
        )
        colour = DEVICE_COLOURS[index % len(DEVICE_COLOURS)]
        axes.plot(
            *zip(*points, strict=True), marker="o", markersize=3, linewidth=1, color=colour, label=device
        )
    for begin, finish in demo.busy:
        if finish > origin:
            axes.axvspan(max(begin - origin, 0.0), finish - origin, color="#f1f3f5", zorder=0)
    end = max((m.end_time.ToNanoseconds() / 1e9 - origin for m in windows), default=1.0)
    axes.hlines(
        outcome.objective_p95_ms,
        max(0.0, demo.objective_time_s - origin),
        end,
        color=ALERT,
        linestyle="--",
        linewidth=1.2,
        label="objective",
    )
    top = max([m.p95_ms for m in windows] + [outcome.objective_p95_ms]) * 1.15
    for item in outcome.rounds:
        start = item.start_s - origin
        axes.axvline(start, color=QUIET, linewidth=1)
        axes.annotate(
            f"generation {item.generation}\n{item.digest[:8]}",
            (start, top),
            xytext=(3, -2),
            textcoords="offset points",
            va="top",
            fontsize=7,
            color=INK,
        )
    axes.set(xlabel="seconds", ylabel="p95, ms", ylim=(0, top))
    _legend_above(axes)
    return _svg(figure)


def trade_off_plot(demo: Demonstration, outcome: ProfileOutcome) -> str:
    """Accuracy against latency of every candidate, the front and the chosen ones marked. Returns SVG."""
    figure, axes = _figure()
    candidates = demo.candidates[outcome.name]
    axes.scatter(
        [c.latency_p50_ms for c in candidates],
        [c.accuracy * 100 for c in candidates],
        color=QUIET,
        label="built",
    )
    front = sorted((c.latency_p50_ms, c.accuracy * 100) for c in candidates if c.on_front)
    if front:
        axes.plot(
            *zip(*front, strict=True),
            color=ACCENT,
            linewidth=1,
            marker="o",
            markersize=4,
            label="Pareto front",
        )
    by_digest = {c.digest: c for c in candidates}
    for item in outcome.rounds:
        chosen = by_digest[item.digest]
        point = (chosen.latency_p50_ms, chosen.accuracy * 100)
        axes.scatter(*point, s=110, facecolors="none", edgecolors=ALERT, linewidths=1.4)
        axes.annotate(
            f"generation {item.generation}",
            point,
            xytext=(6, -12),
            textcoords="offset points",
            fontsize=7,
            color=INK,
        )
    axes.set(xlabel="p50 where it was built, one thread, ms", ylabel="validation accuracy, %")
    axes.margins(0.15)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 99.0), min(high, 100.5))
    _legend_above(axes)
    return _svg(figure)


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.6, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    axes.grid(visible=True, axis="y", color="#e9ecef", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _legend_above(axes: Any) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), fontsize=7, frameon=False, ncols=4, borderaxespad=0.2
    )


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # Text stays text, so that it can be read aloud and searched; a fixed salt keeps the file reproducible.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgeloop", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
