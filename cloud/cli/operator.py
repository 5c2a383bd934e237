"""``edgeloop operator``: who may use the control script."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.device import parse_ttl
from cloud.cli.output import Output, show_values, stderr, stdout
from cloud.cli.plain import plain
from edgeloop.v1 import control_service_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Give people and programs access to the control plane.")


class RoleOption(StrEnum):
    VIEWER = "viewer"
    OPERATOR = "operator"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="as the audit log will call it")],
    role: Annotated[RoleOption, typer.Option(help="viewer reads, operator changes")] = RoleOption.VIEWER,
    ttl: Annotated[str, typer.Option(help="such as 90d; without it the token does not expire")] = "",
    output: Annotated[Output, typer.Option("--output", "-o")] = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Print a token, once. It goes into EDGELOOP_TOKEN or a context."""
    request = pb.CreateOperatorRequest(name=name, role=role.value, ttl_s=parse_ttl(ttl) if ttl else 0)
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("CreateOperator", request, pb.CreateOperatorResponse)
    if output is not Output.TABLE:
        show_values(plain(answer), output)
        return
    stderr.print(f"{name} is a new {role.value}; its token, which is not shown again:")
    stdout.print(answer.token, soft_wrap=True, markup=False, highlight=False)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument()],
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """End a token, at once."""
    with connect(Connection(server, state_dir)) as client:
        client.call("RevokeOperator", pb.RevokeOperatorRequest(name=name), pb.RevokeOperatorResponse)
    stdout.print(f"operator {name} is revoked")
