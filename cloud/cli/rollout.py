"""``edgeloop rollout``: start, pause, resume, abort."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from cloud.cli import columns
from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.output import Output, show_list
from edgeloop.v1 import control_service_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Expose a candidate to the devices of a profile, step by step.")

output_option = Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml")]
rollout_argument = Annotated[str, typer.Argument(help="ID, as 'edgeloop get rollouts' shows it")]


@app.command()
def start(
    profile: Annotated[str, typer.Option("--profile", "-p")],
    candidate: Annotated[
        str,
        typer.Option(
            "--candidate", help="digest or its beginning; the best that meets the constraints if left out"
        ),
    ] = "",
    canary_share: Annotated[
        float, typer.Option(min=0, max=1, help="share of devices in the first group")
    ] = 0.0,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Start a rollout. One that still runs for the profile is superseded."""
    request = pb.StartRolloutRequest(
        profile=profile, digest=candidate, canary_share=canary_share, request_id=str(uuid.uuid4())
    )
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("StartRollout", request, pb.StartRolloutResponse)
    show_list([answer.rollout], columns.ROLLOUTS, output, empty="")


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
