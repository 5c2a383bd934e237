"""The root of the control script: shared flags, error to exit code, and the commands that stand alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cloud.cli import (
    backup,
    check,
    contexts,
    demo,
    describe,
    device,
    doctor,
    get,
    jobs,
    keys,
    logs,
    operator,
    pareto,
    profile,
    rollout,
    rules,
    serve,
    top,
    workload,
)
from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.output import Output, show_values, stderr, stdout
from cloud.cli.plain import plain
from cloud.documents import load_documents
from cloud.resources import KINDS
from edgeloop import __version__
from edgeloop.errors import ConfigError, EdgeloopError, TransientError
from edgeloop.v1 import control_service_pb2 as pb

#: Documented in ``edgeloop --help``; scripts may rely on them.
EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_INTERRUPTED = 1, 2, 3, 130

app = typer.Typer(
    name="edgeloop",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fits models to the devices that must run them, and keeps them fitted.\n\n"
    "Exit codes: 0 done, 1 refused or failed, 2 wrong flags or file, 3 control plane not reachable, "
    "130 stopped; 'rollout watch' has more.",
)
app.add_typer(get.app, name="get")
app.add_typer(describe.app, name="describe")
app.add_typer(rollout.app, name="rollout")
app.add_typer(workload.app, name="workload")
app.add_typer(profile.app, name="profile")
app.add_typer(device.app, name="device")
app.add_typer(operator.app, name="operator")
app.add_typer(contexts.app, name="context")
app.add_typer(keys.app, name="keys")
app.command("serve")(serve.serve)
app.command("train")(jobs.train)
app.command("compress")(jobs.compress)
app.command("pareto")(pareto.pareto)
app.command("cancel")(jobs.cancel)
app.command("why")(describe.why)
app.command("logs")(logs.logs)
app.command("top")(top.top)
app.command("check")(check.check)
app.command("rules")(rules.rules)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


@app.command()
def schema(kind: Annotated[str, typer.Argument(help="Workload or Fleet")]) -> None:
    """Print the JSON Schema of a document kind, for your editor."""
    if kind not in KINDS:
        raise ConfigError(f"kind is {kind!r}: it must be one of {', '.join(KINDS)}", code="document-kind")
    print(json.dumps(KINDS[kind].model_json_schema(), indent=2))


@app.command()
def apply(
    files: Annotated[list[Path], typer.Option("--file", "-f", help="YAML file; may be given more than once")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check against the server, change nothing")
    ] = False,
    output: Annotated[Output, typer.Option("--output", "-o")] = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Create or change workloads and fleets. All documents are applied, or none."""
    documents = [(document, path) for path in files for document in load_documents(path)]
    request = pb.ApplyRequest(
        documents=[
            pb.Document(kind=document.kind, json=document.model_dump_json(), source=str(path))
            for document, path in documents
        ],
        validate_only=dry_run,
    )
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("Apply", request, pb.ApplyResponse)
    if output is not Output.TABLE:
        show_values(plain(answer), output)
        return
    for resource in answer.resources:
        change = pb.AppliedResource.Change.Name(resource.change).removeprefix("CHANGE_").lower()
        note = f": {resource.note}" if resource.note else ""
        stdout.print(
            f"{resource.kind.lower()}/{resource.name} {change}{' (dry run)' if dry_run else ''}{note}",
            soft_wrap=True,
        )


@app.command()
def info(
    output: Annotated[Output, typer.Option("--output", "-o")] = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Show the control plane: version, broker, compute, and the key that agents must trust."""
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("GetServerInfo", pb.GetServerInfoRequest(), pb.GetServerInfoResponse)
    values = plain(answer)
    if output is not Output.TABLE:
        show_values(values, output)
    else:
        if answer.tuf_root:  # some thousand digits say nothing to people
            values["tuf_root"] = f"{len(answer.tuf_root)} bytes, as 'edgeloop info -o json' shows in hex"
        indent = max(map(len, values))
        for key, value in values.items():
            # Never wrapped: people copy the director's key from here.
            stdout.print(f"{key:<{indent}}  {value}", soft_wrap=True, markup=False, highlight=False)


@app.command()
def pause(server: server_option = None, state_dir: state_dir_option = None) -> None:
    """Stop the controller from changing anything. It goes on measuring and explaining."""
    _set_paused(Connection(server, state_dir), paused=True)
    stdout.print("the controller is paused: 'edgeloop resume' lets it act again")


@app.command()
def resume(server: server_option = None, state_dir: state_dir_option = None) -> None:
    """Let the controller act again."""
    _set_paused(Connection(server, state_dir), paused=False)
    stdout.print("the controller acts again")


def _set_paused(connection: Connection, *, paused: bool) -> None:
    with connect(connection) as client:
        request = pb.SetControllerPausedRequest(paused=paused)
        client.call("SetControllerPaused", request, pb.SetControllerPausedResponse)


def main() -> None:
    """Run the control script; errors become one clear message and an exit code."""
    try:
        app()
    except TransientError as error:
        stderr.print(f"edgeloop: {error}", style="red", soft_wrap=True, markup=False)
        sys.exit(EXIT_UNREACHABLE)
    except ConfigError as error:
        stderr.print(f"edgeloop: {error}", style="red", soft_wrap=True, markup=False)
        sys.exit(EXIT_USAGE)
    except EdgeloopError as error:
        stderr.print(f"edgeloop: {error}", style="red", soft_wrap=True, markup=False)
        sys.exit(EXIT_FAILED)
    except OSError as error:  # a folder that is read-only, a disk that is full: the name says which
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        stderr.print(f"edgeloop: {what}", style="red", soft_wrap=True, markup=False)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
