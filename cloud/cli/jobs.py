"""``edgeloop train``, ``compress`` and ``cancel``: long work, watched until it ends.

The work runs in the control plane: Ctrl-C here stops the watching alone, and says how to come back to it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from cloud.cli import columns, completion
from cloud.cli.client import ControlClient
from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.output import Output, job_progress, show_list, show_values, stderr, stdout
from cloud.cli.pareto import front_text
from cloud.cli.plain import plain
from cloud.domain.idle_fields import as_asked
from cloud.domain.specs import CompressionSpec
from edgeloop.errors import ConfigError, EdgeloopError, RejectedError
from edgeloop.v1 import control_service_pb2 as pb

output_option = Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml")]


def train(
    workload: Annotated[
        str, typer.Argument(help="name of the workload", autocompletion=completion.workload_names)
    ],
    force: Annotated[
        bool, typer.Option("--force", help="train again even where a finished teacher is there")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="show progress until it ends")] = True,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Train the teacher of a workload."""
    with connect(Connection(server, state_dir)) as client:
        request = pb.TrainTeacherRequest(workload=workload, force=force)
        job = client.call("TrainTeacher", request, pb.TrainTeacherResponse).job
        job = watch(client, job) if wait else job
        if output is not Output.TABLE or not wait:
            show_list([job], columns.JOBS, output, empty="")
            return
        found = client.call("ListWorkloads", pb.ListWorkloadsRequest(), pb.ListWorkloadsResponse).workloads
    show_list([item for item in found if item.name == workload], columns.WORKLOADS, output, empty="")


def compress(
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            "-p",
            help="build students for this profile",
            autocompletion=completion.profile_names,
        ),
    ],
    spec: Annotated[
        list[str] | None,
        typer.Option(
            "--spec", help="build this instead of what the search proposes: road=pruned,width_ratio=0.5"
        ),
    ] = None,
    max_trials: Annotated[int, typer.Option(min=0, help="0: the workload's own budget")] = 0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="show progress until it ends")] = True,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Build and measure students for a profile; a missing teacher is trained first."""
    specs = [parse_spec(text).to_json() for text in spec or []]
    request = pb.CompressStudentsRequest(profile=profile, spec_json=specs, max_trials=max_trials)
    with connect(Connection(server, state_dir)) as client:
        job = client.call("CompressStudents", request, pb.CompressStudentsResponse).job
        job = watch(client, job) if wait else job
        if output is not Output.TABLE or not wait:
            show_list([job], columns.JOBS, output, empty="")
            return
        answer = client.call(
            "ListCandidates", pb.ListCandidatesRequest(profile=profile), pb.ListCandidatesResponse
        )
    show_list(answer.candidates, columns.CANDIDATES, output, empty="")


def cancel(
    job_id: Annotated[
        str, typer.Argument(help="ID, as 'edgeloop get jobs' shows it", autocompletion=completion.job_ids)
    ],
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Cancel a job. What it finished already is kept."""
    with connect(Connection(server, state_dir)) as client:
        job = client.call("CancelJob", pb.CancelJobRequest(job_id=job_id), pb.CancelJobResponse).job
    if output is Output.TABLE:
        stdout.print(
            f"job {job.job_id} is cancelled; {len(job.candidate_digests)} finished candidates are kept"
        )
    else:
        show_values(plain(job), output)


def parse_spec(text: str) -> CompressionSpec:
    """``road=rules,rules.kind=boosted`` as a CompressionSpec. Raises ``ConfigError`` naming the key."""
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, separator, value = part.partition("=")
        if not separator:
            raise ConfigError(f"--spec {text}: {part!r} is not key=value", code="spec-syntax")
        try:
            given = json.loads(value)
        except ValueError:
            given = value.strip()
        outer, dot, inner = key.strip().partition(".")
        if not dot:
            values[outer] = given
        elif isinstance(inside := values.setdefault(outer, {}), dict):
            inside[inner] = given
        else:
            raise ConfigError(
                f"--spec {text}: {outer} is given twice, whole and in parts", code="spec-syntax"
            )
    try:
        return as_asked(CompressionSpec.from_mapping(values))
    except ValueError as error:
        raise ConfigError(f"--spec {text}: {error}", code="spec-value") from None


def _front(client: ControlClient, profile: str) -> str:
    """What of the profile's students is worth having so far; watching goes on without it."""
    try:
        answer = client.call("GetTradeOff", pb.GetTradeOffRequest(profile=profile), pb.GetTradeOffResponse)
    except EdgeloopError as error:
        return f"front: not known ({error})"
    return f"front: {front_text(answer.points)}"


def watch(client: ControlClient, job: pb.JobInfo) -> pb.JobInfo:
    """Show a job's progress until it ends, and return it. Raises ``RejectedError`` if it failed."""
    bar = job_progress(stderr)
    num_built = 0
    try:
        with bar:
            task = bar.add_task(job.message, total=1.0, name=f"{job.kind} {job.profile or job.workload}")
            for job in client.watch_job(job.job_id):  # noqa: B020 - the newest is what counts
                bar.update(task, completed=job.progress, description=job.message)
                if len(job.candidate_digests) > num_built:
                    num_built = len(job.candidate_digests)
                    bar.console.print(_front(client, job.profile), soft_wrap=True, markup=False)
    except KeyboardInterrupt:
        stderr.print(
            f"job {job.job_id} goes on: 'edgeloop get jobs' shows it, 'edgeloop cancel {job.job_id}' ends it"
        )
        raise
    if job.state != pb.JOB_STATE_SUCCEEDED:
        raise RejectedError(f"job {job.job_id} did not succeed: {job.message}", code="job-failed")
    return job
