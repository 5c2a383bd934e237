"""``edgeloop describe`` and ``edgeloop why``: everything about one thing, and the reason for it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from google.protobuf.message import Message

from cloud.cli import columns, completion
from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.output import Output, show_list, show_values, stdout
from cloud.cli.plain import plain
from edgeloop.errors import RejectedError
from edgeloop.v1 import control_service_pb2 as pb

app = typer.Typer(
    no_args_is_help=True, help="Show everything about one workload, profile, device, candidate or rollout."
)

output_option = Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml")]


def _show(message: Message, output: Output) -> None:
    values = plain(message)
    if output is not Output.TABLE:
        show_values(values, output)
        return
    rows = [["FIELD", "VALUE"], *_rows(values)]
    indent = max(len(field) for field, _ in rows)
    for number, (field, value) in enumerate(rows):
        # Never wrapped: people copy digests from here.
        stdout.print(
            f"{field:<{indent}}  {value}".rstrip(),
            soft_wrap=True,
            markup=False,
            style="bold" if not number else None,
        )


def _rows(values: dict[str, Any], prefix: str = "") -> list[list[str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            rows += _rows(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):
                rows += _rows(item, f"{prefix}{key}[{index}].")
        elif isinstance(value, list):
            rows.append([prefix + key, ", ".join(str(item) for item in value)])
        else:
            rows.append([prefix + key, "-" if value in (None, "", {}) else str(value)])
    return rows


def _one(found: list[Any], kind: str, name: str, known: list[str]) -> Any:
    if len(found) == 1:
        return found[0]
    if found:
        raise RejectedError(f"{kind} {name!r} fits {len(found)}: give more digits", code="name-ambiguous")
    names = sorted(set(known))
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    raise RejectedError(f"no {kind} {name!r}: known are {listed or 'none yet'}", code="name-unknown")


@app.command()
def workload(
    name: Annotated[str, typer.Argument(autocompletion=completion.workload_names)],
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """A workload with its teacher."""
    with connect(Connection(server, state_dir)) as client:
        found = client.call("ListWorkloads", pb.ListWorkloadsRequest(), pb.ListWorkloadsResponse).workloads
    _show(_one([w for w in found if w.name == name], "workload", name, [w.name for w in found]), output)


@app.command()
def profile(
    name: Annotated[str, typer.Argument(autocompletion=completion.profile_names)],
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """A profile with its constraints, what it measures, and its candidates."""
    with connect(Connection(server, state_dir)) as client:
        found = client.call("ListProfiles", pb.ListProfilesRequest(), pb.ListProfilesResponse).profiles
        item = _one([p for p in found if p.name == name], "profile", name, [p.name for p in found])
        _show(item, output)
        if output is Output.TABLE:
            answer = client.call(
                "ListCandidates", pb.ListCandidatesRequest(profile=name), pb.ListCandidatesResponse
            )
            show_list(answer.candidates, columns.CANDIDATES, output, empty="no candidate yet")


@app.command()
def device(
    name: Annotated[str, typer.Argument(autocompletion=completion.device_names)],
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """A device: its hardware, what it should run and what it runs."""
    with connect(Connection(server, state_dir)) as client:
        found = client.call("ListDevices", pb.ListDevicesRequest(), pb.ListDevicesResponse).devices
    known = [d.registration.device_id for d in found]
    _show(_one([d for d in found if d.registration.device_id == name], "device", name, known), output)


@app.command()
def candidate(
    digest: Annotated[str, typer.Argument(help="digest or its beginning")],
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            "-p",
            help="as this profile has it, where several have the same student",
            autocompletion=completion.profile_names,
        ),
    ] = "",
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """A candidate: how it was made, what it measures, where it comes from."""
    with connect(Connection(server, state_dir)) as client:
        request = pb.ListCandidatesRequest(profile=profile)
        found = client.call("ListCandidates", request, pb.ListCandidatesResponse).candidates
    fitting = [c for c in found if c.digest.startswith(digest)]
    if len(fitting) > 1 and len({c.digest for c in fitting}) == 1:
        of = ", ".join(sorted(c.profile for c in fitting))
        raise RejectedError(
            f"candidate {digest!r} is one of several profiles ({of}): say which with --profile",
            code="name-ambiguous",
        )
    _show(_one(fitting, "candidate", digest, [c.digest[:12] for c in found]), output)


@app.command(name="rollout")
def describe_rollout(
    rollout_id: str,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """A rollout with its groups and devices, and why those wait that do."""
    with connect(Connection(server, state_dir)) as client:
        request = pb.GetRolloutRequest(rollout_id=rollout_id)
        rollout = client.call("GetRollout", request, pb.GetRolloutResponse).rollout
    if output is not Output.TABLE:
        show_values(plain(rollout), output)
        return
    devices = list(rollout.devices)
    del rollout.devices[:]
    _show(rollout, output)
    stdout.print()
    show_list(devices, columns.ROLLOUT_DEVICES, output, empty="no device belongs to it")


def why(
    device_id: Annotated[str, typer.Argument(metavar="DEVICE", autocompletion=completion.device_names)],
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Explain why a device runs what it runs."""
    with connect(Connection(server, state_dir)) as client:
        request = pb.ExplainDeviceRequest(device_id=device_id)
        answer = client.call("ExplainDevice", request, pb.ExplainDeviceResponse)
    if output is not Output.TABLE:
        show_values(plain(answer), output)
        return
    for sentence in answer.sentences:
        stdout.print(sentence, soft_wrap=True, markup=False)
    if answer.decisions:
        stdout.print()
        show_list(answer.decisions, columns.DECISIONS, output, empty="")
    if answer.history:
        stdout.print()
        show_list(answer.history, columns.STATUSES, output, empty="")
