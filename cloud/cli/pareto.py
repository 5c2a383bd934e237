"""``edgeloop pareto``: what of accuracy and latency a profile can have, on the terminal or as a picture."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud.cli.columns import spec_text
from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.output import (
    Output,
    milliseconds,
    percent,
    short,
    show_list,
    show_values,
    size,
    stderr,
    stdout,
)
from cloud.cli.plain import plain
from cloud.cli.scatter import Dot, scatter
from cloud.cli.table import Column
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.v1 import control_service_pb2 as pb

#: In the order in which they are drawn: the later ones win where they meet.
MARKS = {"predicted": ".", "rejected": "x", "beaten": "o", "front": "*", "chosen": "@"}


def kind_of(point: pb.TradeOffPoint) -> str:
    """One of ``MARKS``."""
    if not point.digest:
        return "predicted"
    if point.rejected_reason:
        return "rejected"
    if point.chosen:
        return "chosen"
    return "front" if point.on_front else "beaten"


COLUMNS = [
    Column("M", lambda p: MARKS[kind_of(p)]),
    Column("STUDENT", lambda p: short(p.digest) if p.digest else "not built"),
    Column("SPEC", lambda p: _spec(p.spec_json)),
    Column("PRECISION", lambda p: p.precision, rank=1),
    Column("ACCURACY", lambda p: percent(p.accuracy)),
    Column("P50 HERE", lambda p: milliseconds(p.latency_p50_ms)),
    Column("P95 FLEET", lambda p: milliseconds(p.predicted_p95_ms), rank=2),
    Column("SIZE", lambda p: size(p.artifact_bytes)),
    Column("WHY", lambda p: p.proposed_reason, note=True),
]


def pareto(
    profile: Annotated[str, typer.Argument(help="name of the profile")],
    output: Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml")] = Output.TABLE,
    png: Annotated[Path | None, typer.Option("--png", help="write a picture there")] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="write a page that is complete in itself there")
    ] = None,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Show accuracy against latency of a profile's students, the one chosen, and why."""
    with connect(Connection(server, state_dir)) as client:
        request = pb.GetTradeOffRequest(profile=profile)
        answer = client.call("GetTradeOff", request, pb.GetTradeOffResponse)
    if output is not Output.TABLE:
        show_values(plain(answer), output)
    else:
        _show(answer)
    if (png or html_file) and not answer.points:
        raise RejectedError(f"profile {profile} has no student to draw yet", code="pareto-empty")
    if png:
        _write(png, _picture(answer, "png"))
    if html_file:
        _write(html_file, _page(answer).encode())


def front_text(points: Sequence[pb.TradeOffPoint]) -> str:
    """The front of what was built so far, on one line, fastest first."""
    return ", ".join(
        f"{_spec(p.spec_json)} {p.precision} {percent(p.accuracy)} {milliseconds(p.latency_p50_ms)}"
        for p in points
        if p.on_front
    )


def _show(answer: pb.GetTradeOffResponse) -> None:
    if answer.points:
        order = list(MARKS)
        points = sorted(answer.points, key=lambda point: order.index(kind_of(point)))
        dots = [Dot(x=p.latency_p50_ms, y=p.accuracy, mark=MARKS[kind_of(p)]) for p in points]
        for line in scatter(dots, x_text=milliseconds, y_text=percent):
            stdout.print(line, soft_wrap=True, markup=False)
        legend = "   ".join(f"{mark} {kind}" for kind, mark in reversed(MARKS.items()))
        stdout.print(
            f"{legend}   (p50 where students are built)\n", soft_wrap=True, markup=False, style="dim"
        )
    show_list(
        answer.points, COLUMNS, Output.TABLE,
        empty=f"no student yet: 'edgeloop compress --profile {answer.profile}'",
    )  # fmt: skip
    stdout.print(answer.reason, soft_wrap=True, markup=False)
    if answer.prediction_error_ratio:
        stdout.print(
            f"latencies of students that were not built are predicted from {answer.profile}'s own; mean "
            f"error on those that were built {answer.prediction_error_ratio:.1%}",
            soft_wrap=True,
            markup=False,
            style="dim",
        )


def _spec(spec_json: str) -> str:
    text = spec_text(spec_json)
    epochs = json.loads(spec_json).get("num_epochs", 0) if spec_json else 0
    return f"{text} +{epochs}" if text.startswith("elastic") and epochs else text


def _picture(answer: pb.GetTradeOffResponse, form: str) -> bytes:
    from matplotlib.figure import Figure  # half a second that only pictures pay

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    styles: dict[str, dict[str, Any]] = {
        "predicted": {"marker": ".", "color": "#999999"},
        "rejected": {"marker": "x", "color": "#b00020"},
        "beaten": {"marker": "o", "color": "#8da0cb"},
        "front": {"marker": "o", "color": "#1f4e9c"},
        "chosen": {"marker": "*", "color": "#d95f02", "s": 160},
    }
    for kind, style in styles.items():
        found = [point for point in answer.points if kind_of(point) == kind]
        if found:
            axes.scatter(
                [p.latency_p50_ms for p in found], [p.accuracy * 100 for p in found], label=kind, **style
            )
    line = [point for point in answer.points if point.on_front]
    axes.plot([p.latency_p50_ms for p in line], [p.accuracy * 100 for p in line], color="#1f4e9c", lw=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("p50 where students are built, ms")
    axes.set_ylabel("accuracy on the validation split, %")
    axes.set_title(answer.profile)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=150)
    return buffer.getvalue()


def _page(answer: pb.GetTradeOffResponse) -> str:
    svg = _picture(answer, "svg").decode()
    svg = svg[svg.index("<svg") :]
    head = "".join(f"<th>{html.escape(column.header)}</th>" for column in COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(column.cell(point))}</td>" for column in COLUMNS) + "</tr>"
        for point in answer.points
    )
    title = html.escape(f"Trade-off of {answer.profile}")
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>body{{font:15px "
        "sans-serif;margin:2em;max-width:60em}td,th{text-align:left;padding:.2em .8em .2em 0}</style>"
        f"<h1>{title}</h1>{svg}<p>{html.escape(answer.reason)}</p><table><tr>{head}</tr>{rows}</table></html>"
    )


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", code="output-file") from error
    stderr.print(f"wrote {path}", soft_wrap=True, markup=False)
