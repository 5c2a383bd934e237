"""``edgeloop profile``: list, show, set-objective, delete."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from cloud.cli import completion, describe, get
from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.output import Output, milliseconds, percent, show_values, size, stderr, stdout
from cloud.cli.plain import enum_text, plain
from edgeloop.errors import ConfigError
from edgeloop.v1 import control_service_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="What a class of devices must meet.")
app.command("list")(get.profiles)
app.command("show")(describe.profile)

name_argument = Annotated[str, typer.Argument(help="of the profile", autocompletion=completion.profile_names)]
output_option = Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml")]

_OPEN = "none"


def _number(flag: str, text: str | None) -> float | None:
    """What was written: None when nothing, 0 for ``none``. Raises ``ConfigError`` for anything else."""
    if text is None:
        return None
    if text == _OPEN:
        return 0.0
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(
            f"{flag} is {text!r}: give a number over 0, or '{_OPEN}' to leave it open", code="constraints"
        )
    return number


def _count(flag: str, text: str | None) -> int | None:
    number = _number(flag, text)
    if number is None:
        return None
    if number != int(number) or number >= 2**63:
        raise ConfigError(f"{flag} is {text!r}: give whole bytes", code="constraints")
    return int(number)


@app.command("set-objective")
def set_objective(
    name: name_argument,
    p95_ms: Annotated[str | None, typer.Option(help="of the latency that devices measure, in ms")] = None,
    min_accuracy: Annotated[str | None, typer.Option(help="0 to 1")] = None,
    artifact_bytes: Annotated[str | None, typer.Option(help="of what is sent to devices")] = None,
    peak_rss_bytes: Annotated[str | None, typer.Option(help="of the memory it may take to run")] = None,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Change what a profile must meet. What is not given stays; 'none' leaves a side open.

    The Fleet document still says what it said: change it there too, or the next 'edgeloop apply' of it brings
    the old values back.
    """
    request = pb.SetProfileConstraintsRequest(
        profile=name,
        latency_p95_ms=_number("--p95-ms", p95_ms),
        min_accuracy=_number("--min-accuracy", min_accuracy),
        artifact_bytes=_count("--artifact-bytes", artifact_bytes),
        peak_rss_bytes=_count("--peak-rss-bytes", peak_rss_bytes),
    )
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("SetProfileConstraints", request, pb.SetProfileConstraintsResponse)
    if output is not Output.TABLE:
        show_values(plain(answer), output)
        return
    now = answer.constraints
    said = [
        f"{text} {shown}"
        for text, shown in (
            ("p95 at most", milliseconds(now.latency_p95_ms)),
            ("accuracy at least", percent(now.min_accuracy)),
            ("artifact at most", size(now.artifact_bytes)),
            ("peak memory at most", size(now.peak_rss_bytes)),
        )
        if shown != "-"
    ]
    change = enum_text(answer.resource, "change")
    note = f"; {answer.resource.note}" if answer.resource.note else ""
    stdout.print(
        f"profile/{name} {change}: {', '.join(said) or 'nothing is constrained'}{note}",
        soft_wrap=True,
        markup=False,
    )
    if answer.resource.change != pb.AppliedResource.CHANGE_UNCHANGED:
        stderr.print("its Fleet document is as it was: change it there too before it is applied again")


@app.command()
def delete(
    name: name_argument,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Forget a profile. Refused while devices belong to it or work of it has not ended."""
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("DeleteProfile", pb.DeleteProfileRequest(profile=name), pb.DeleteProfileResponse)
    if output is not Output.TABLE:
        show_values(plain(answer), output)
        return
    stdout.print(f"profile {name} is deleted; its candidates and decisions stay", markup=False)
