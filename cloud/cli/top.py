"""``edgeloop top``: the fleet in the terminal, drawn anew every few seconds."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from cloud.cli import columns
from cloud.cli.client import ControlClient
from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.output import Output, milliseconds, short, show_line, size, stdout
from cloud.cli.plain import clock_text, enum_text, plain
from cloud.cli.table import Column, lay_out
from edgeloop.errors import TransientError
from edgeloop.v1 import control_service_pb2 as pb

_PROFILES = [
    Column("PROFILE", lambda p: p.name or "(none)"),
    Column("DEVICES", lambda p: str(p.num_devices)),
    Column("CONNECTED", lambda p: str(p.num_connected)),
    Column("P95", lambda p: milliseconds(p.measured_p95_ms)),
    Column("OBJECTIVE", lambda p: milliseconds(p.objective_p95_ms)),
    Column("VERDICT", lambda p: p.verdict or "-"),
    Column("REQUESTS/S", lambda p: f"{p.requests_per_s:.1f}"),
    Column("RSS MAX", lambda p: size(p.max_rss_bytes), rank=1),
    Column("STATES", lambda p: ", ".join(f"{n} {s}" for s, n in sorted(p.num_by_state.items())), note=True),
]
_ROLLOUTS = [
    Column("ROLLOUT", lambda r: r.rollout_id),
    Column("PROFILE", lambda r: r.profile),
    Column("STATE", lambda r: enum_text(r, "state")),
    Column("DIGEST", lambda r: short(r.digest)),
    Column("MESSAGE", lambda r: r.message, note=True),
]


def top(
    once: Annotated[bool, typer.Option("--once", help="print it once and end")] = False,
    interval_s: Annotated[
        float, typer.Option("--interval", min=0.5, max=3600, help="seconds between two looks")
    ] = 2.0,
    decisions: Annotated[int, typer.Option(min=1, max=100, help="how many of the last changes")] = 5,
    output: Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml")] = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Show the fleet live: devices by state, p95 against objective, requests, memory, jobs, decisions.

    Without a terminal it prints once. ``-o json`` prints one line at each look.
    """
    request = pb.GetFleetSummaryRequest(num_decisions=decisions)
    with connect(Connection(server, state_dir)) as client:
        summary = _ask(client, request)
        if output is not Output.TABLE:
            show_line(plain(summary), output)
            while not once:
                time.sleep(interval_s)
                show_line(plain(_ask(client, request)), output)
            return
        if once or not stdout.is_terminal:
            stdout.print(screen(summary, stdout.width if stdout.is_terminal else None), soft_wrap=True)
            return
        with Live(screen(summary, stdout.width), console=stdout, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval_s)
                try:
                    shown = screen(_ask(client, request), stdout.width)
                except TransientError as error:
                    shown = Group(screen(summary, stdout.width), Text(str(error), style="red"))
                live.update(shown, refresh=True)


def screen(summary: pb.GetFleetSummaryResponse, width: int | None) -> RenderableType:
    """All of it, top down: what people look for first comes first."""
    num_devices = sum(profile.num_devices for profile in summary.profiles)
    num_connected = sum(profile.num_connected for profile in summary.profiles)
    rate = sum(profile.requests_per_s for profile in summary.profiles)
    paused = "  the controller is paused" if summary.controller_paused else ""
    parts: list[RenderableType] = [
        Text(
            f"{clock_text(summary.time)} UTC  {num_connected} of {num_devices} devices connected  "
            f"{rate:.1f} requests/s{paused}"
        )
    ]
    for listed, items in (
        (_PROFILES, summary.profiles),
        (_ROLLOUTS, summary.rollouts),
        (columns.JOBS, summary.jobs),
        (columns.DECISIONS, summary.decisions),
    ):
        if not items:
            continue
        header, *lines = lay_out(listed, list(items), width)
        parts += [Text(""), Text(header, style="bold"), *(Text(line) for line in lines)]
    return Group(*parts)


def _ask(client: ControlClient, request: pb.GetFleetSummaryRequest) -> pb.GetFleetSummaryResponse:
    return client.call("GetFleetSummary", request, pb.GetFleetSummaryResponse)
