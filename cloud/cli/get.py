"""``edgeloop get``: lists."""

from __future__ import annotations

from typing import Annotated

import typer

from cloud.cli import columns, completion
from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.output import Output, show_list
from edgeloop.v1 import control_service_pb2 as pb

app = typer.Typer(
    no_args_is_help=True, help="List workloads, profiles, devices, candidates, rollouts, decisions, jobs."
)

output_option = Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml")]
profile_option = Annotated[
    str,
    typer.Option("--profile", "-p", help="of this profile alone", autocompletion=completion.profile_names),
]
workload_option = Annotated[
    str,
    typer.Option("--workload", "-w", help="of this workload alone", autocompletion=completion.workload_names),
]


@app.command()
def workloads(
    output: output_option = Output.TABLE, server: server_option = None, state_dir: state_dir_option = None
) -> None:
    """Workloads and their teachers."""
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("ListWorkloads", pb.ListWorkloadsRequest(), pb.ListWorkloadsResponse)
    show_list(answer.workloads, columns.WORKLOADS, output, empty="no workload yet: 'edgeloop apply -f FILE'")


@app.command()
def profiles(
    workload: workload_option = "",
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Profiles, what they measure against their objective, and the controller's last word."""
    with connect(Connection(server, state_dir)) as client:
        answer = client.call(
            "ListProfiles", pb.ListProfilesRequest(workload=workload), pb.ListProfilesResponse
        )
    show_list(answer.profiles, columns.PROFILES, output, empty="no profile yet: apply a Fleet document")


@app.command()
def devices(
    profile: profile_option = "",
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Devices, and what they run. GENERATION is what the device runs / what it should run.

    A device that hosts several workloads has a line for each.
    """
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("ListDevices", pb.ListDevicesRequest(profile=profile), pb.ListDevicesResponse)
    found, shown = list(answer.devices), columns.DEVICES
    if output is Output.TABLE and any(device.workloads for device in found):
        found = [line for line in columns.hosted_lines(found) if profile in ("", line.profile)]
        shown = columns.HOSTED
    show_list(
        found,
        shown,
        output,
        empty="no device has registered: start 'edgeloop-agent run' on one",
    )


@app.command()
def candidates(
    profile: profile_option = "",
    workload: workload_option = "",
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Students, built and measured. FRONT: no other beats it on accuracy, latency and size at once."""
    request = pb.ListCandidatesRequest(workload=workload, profile=profile)
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("ListCandidates", request, pb.ListCandidatesResponse)
    show_list(
        answer.candidates,
        columns.CANDIDATES,
        output,
        empty="no candidate yet: 'edgeloop compress --profile P'",
    )


@app.command()
def rollouts(
    profile: profile_option = "",
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Rollouts with the progress of their groups."""
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("ListRollouts", pb.ListRolloutsRequest(profile=profile), pb.ListRolloutsResponse)
    show_list(
        answer.rollouts,
        columns.ROLLOUTS,
        output,
        empty="no rollout yet: 'edgeloop rollout start --profile P'",
    )


@app.command()
def decisions(
    profile: profile_option = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="newest first")] = 100,
    changes: Annotated[
        bool, typer.Option("--changes", help="leave out those that repeat the one before")
    ] = False,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """What the controller decided, and why."""
    request = pb.ListDecisionsRequest(profile=profile, limit=limit, changes_only=changes)
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("ListDecisions", request, pb.ListDecisionsResponse)
    show_list(
        answer.decisions, columns.DECISIONS, output, empty="no decision yet: they come with the first reports"
    )


@app.command()
def jobs(
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="only those that still run or wait")
    ] = False,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Training and compression jobs."""
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("ListJobs", pb.ListJobsRequest(unfinished_only=unfinished), pb.ListJobsResponse)
    show_list(answer.jobs, columns.JOBS, output, empty="no job: 'edgeloop train WORKLOAD' starts one")


@app.command()
def measurements(
    profile: profile_option = "",
    device: Annotated[
        str,
        typer.Option("--device", "-d", help="of this device alone", autocompletion=completion.device_names),
    ] = "",
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Latency windows as the devices measured them."""
    request = pb.ListMeasurementsRequest(profile=profile, device_id=device)
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("ListMeasurements", request, pb.ListMeasurementsResponse)
    show_list(
        answer.measurements,
        columns.MEASUREMENTS,
        output,
        empty="nothing measured yet: devices report once a window",
    )


@app.command()
def identities(
    output: output_option = Output.TABLE, server: server_option = None, state_dir: state_dir_option = None
) -> None:
    """Devices that were enrolled, and how their certificates stand."""
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("ListIdentities", pb.ListIdentitiesRequest(), pb.ListIdentitiesResponse)
    show_list(
        answer.identities,
        columns.IDENTITIES,
        output,
        empty="no device was enrolled: 'edgeloop device enroll NAME' begins",
    )


@app.command()
def operators(
    output: output_option = Output.TABLE, server: server_option = None, state_dir: state_dir_option = None
) -> None:
    """Who may use the control script, besides the first operator, 'admin'."""
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("ListOperators", pb.ListOperatorsRequest(), pb.ListOperatorsResponse)
    show_list(
        answer.operators,
        columns.OPERATORS,
        output,
        empty="no operator but 'admin': 'edgeloop operator create NAME --role viewer' adds one",
    )


@app.command()
def audit(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="newest first")] = 100,
    refused: Annotated[bool, typer.Option("--refused", help="only what was refused")] = False,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Who did what, and who tried and was refused."""
    request = pb.ListAuditRequest(limit=limit, refused_only=refused)
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("ListAudit", request, pb.ListAuditResponse)
    show_list(answer.entries, columns.AUDIT, output, empty="nothing was written down yet")
