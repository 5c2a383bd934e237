"""``edgeloop rules``: what a candidate made of rules decides, a rule a line."""

from __future__ import annotations

from typing import Annotated

import typer

from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.output import Output, percent, show_values, stdout
from cloud.cli.plain import plain
from edgeloop.v1 import control_service_pb2 as pb


def rules(
    digest: Annotated[str, typer.Argument(help="a candidate's digest or its beginning")],
    output: Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml")] = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Print the rules of a candidate: if x[3] <= 0.7 and x[5] > 0.1 then class 2, 97 %."""
    with connect(Connection(server, state_dir)) as client:
        request = pb.ExplainRulesRequest(digest=digest)
        answer = client.call("ExplainRules", request, pb.ExplainRulesResponse)
    if output is not Output.TABLE:
        show_values(plain(answer), output)
        return
    stdout.print(
        f"{answer.kind} {answer.digest[:12]}: accuracy {percent(answer.accuracy)}, "
        f"as the teacher says {percent(answer.fidelity)}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    for line in answer.lines:
        stdout.print(line, soft_wrap=True, markup=False, highlight=False)
