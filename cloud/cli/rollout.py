"""``edgeloop rollout``: list, show, start, watch, pause, resume, abort."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from cloud.cli import columns, completion, describe, get
from cloud.cli.client import ControlClient
from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.output import Output, show_list
from cloud.cli.rollout_view import EXIT_CODES, follow
from edgeloop.errors import RejectedError
from edgeloop.v1 import control_service_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Expose a candidate to the devices of a profile, step by step.")

output_option = Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml")]
rollout_argument = Annotated[str, typer.Argument(help="ID, as 'edgeloop get rollouts' shows it")]

app.command("list")(get.rollouts)
app.command("show")(describe.describe_rollout)


@app.command()
def start(
    profile: Annotated[str, typer.Option("--profile", "-p", autocompletion=completion.profile_names)],
    candidate: Annotated[
        str,
        typer.Option(
            "--candidate", help="digest or its beginning; the best that meets the constraints if left out"
        ),
    ] = "",
    canary_share: Annotated[
        float, typer.Option(min=0, max=1, help="share of devices in the first group")
    ] = 0.0,
    max_per_minute: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="devices told in any minute; 0: as the profile says")
    ] = 0,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Start a rollout. One that still runs for the profile is superseded."""
    request = pb.StartRolloutRequest(
        profile=profile,
        digest=candidate,
        canary_share=canary_share,
        max_per_minute=max_per_minute,
        request_id=str(uuid.uuid4()),
    )
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("StartRollout", request, pb.StartRolloutResponse)
    show_list([answer.rollout], columns.ROLLOUTS, output, empty="")


@app.command()
def watch(
    rollout_id: Annotated[
        str, typer.Argument(metavar="[ROLLOUT]", help="ID; the newest that runs if left out")
    ] = "",
    profile: Annotated[str, typer.Option("--profile", "-p", help="the newest of this profile")] = "",
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Follow a rollout until it ends: groups, devices by state, measured p95, what comes next.

    Exit codes: 0 it succeeded, 1 it failed, 4 it was aborted, 5 a newer one took its place. -o json prints
    one line at every change. Ctrl-C ends the watching alone.
    """
    with connect(Connection(server, state_dir)) as client:
        follow(client, rollout_id or _newest(client, profile), output)


def _newest(client: ControlClient, profile: str) -> str:
    """The newest that has not ended, or else the newest."""
    found = client.call(
        "ListRollouts", pb.ListRolloutsRequest(profile=profile), pb.ListRolloutsResponse
    ).rollouts
    running = [rollout for rollout in found if rollout.state not in EXIT_CODES]
    if not found:
        raise RejectedError(
            "there is no rollout to watch: 'edgeloop rollout start --profile P' begins one",
            code="rollout-none",
        )
    if len(running) > 1 and not profile:
        listed = ", ".join(f"{rollout.rollout_id} ({rollout.profile})" for rollout in running[:20])
        raise RejectedError(f"{len(running)} rollouts run: name one of {listed}", code="rollout-ambiguous")
    return str((running or list(found))[0].rollout_id)


@app.command()
def pause(
    rollout_id: rollout_argument,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Expose no further device until it is resumed."""
    with connect(Connection(server, state_dir)) as client:
        answer = client.call(
            "PauseRollout", pb.PauseRolloutRequest(rollout_id=rollout_id), pb.PauseRolloutResponse
        )
    show_list([answer.rollout], columns.ROLLOUTS, output, empty="")


@app.command()
def resume(
    rollout_id: rollout_argument,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Go on with a paused rollout."""
    with connect(Connection(server, state_dir)) as client:
        answer = client.call(
            "ResumeRollout", pb.ResumeRolloutRequest(rollout_id=rollout_id), pb.ResumeRolloutResponse
        )
    show_list([answer.rollout], columns.ROLLOUTS, output, empty="")


@app.command()
def abort(
    rollout_id: rollout_argument,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """End a rollout; devices that changed already go back to what they ran before."""
    with connect(Connection(server, state_dir)) as client:
        answer = client.call(
            "AbortRollout", pb.AbortRolloutRequest(rollout_id=rollout_id), pb.AbortRolloutResponse
        )
    show_list([answer.rollout], columns.ROLLOUTS, output, empty="")
