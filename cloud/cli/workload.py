"""``edgeloop workload``: list, show, delete. They come with ``edgeloop apply``."""

from __future__ import annotations

from typing import Annotated

import typer

from cloud.cli import completion, describe, get
from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.output import Output, show_values, stdout
from cloud.cli.plain import plain
from edgeloop.v1 import control_service_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="What is to be learnt: data, teacher, and budgets.")
app.command("list")(get.workloads)
app.command("show")(describe.workload)


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="of the workload", autocompletion=completion.workload_names)],
    output: Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml")] = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Forget a workload. Refused while it has profiles or work of it has not ended."""
    with connect(Connection(server, state_dir)) as client:
        request = pb.DeleteWorkloadRequest(workload=name)
        answer = client.call("DeleteWorkload", request, pb.DeleteWorkloadResponse)
    if output is not Output.TABLE:
        show_values(plain(answer), output)
        return
    stdout.print(f"workload {name} is deleted; its teacher and what was built stay", markup=False)
