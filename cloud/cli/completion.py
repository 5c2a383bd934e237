"""Names of what there is, for the shell's completion.

Asked of the control plane that the words so far lead to. A shell waits for the answer and shows nothing else:
so it comes soon or not at all, and no error is ever told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from cloud.cli.client import ControlClient
from cloud.cli.context import Connection, connect
from edgeloop.errors import EdgeloopError
from edgeloop.v1 import control_service_pb2 as pb

_TIMEOUT_S = 2.0


def _completer(
    names: Callable[[ControlClient], Iterable[str]],
) -> Callable[[typer.Context, str], list[str]]:
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        state_dir = ctx.params.get("state_dir")
        connection = Connection(ctx.params.get("server"), Path(state_dir) if state_dir else None)
        try:
            with connect(connection, timeout_s=_TIMEOUT_S) as client:
                return sorted(name for name in names(client) if name.startswith(incomplete))
        except EdgeloopError:
            return []

    return complete


def _profiles(client: ControlClient) -> Iterable[str]:
    found = client.call("ListProfiles", pb.ListProfilesRequest(), pb.ListProfilesResponse)
    return (profile.name for profile in found.profiles)


def _workloads(client: ControlClient) -> Iterable[str]:
    found = client.call("ListWorkloads", pb.ListWorkloadsRequest(), pb.ListWorkloadsResponse)
    return (workload.name for workload in found.workloads)


def _devices(client: ControlClient) -> Iterable[str]:
    found = client.call("ListDevices", pb.ListDevicesRequest(), pb.ListDevicesResponse)
    return (device.registration.device_id for device in found.devices)


def _jobs(client: ControlClient) -> Iterable[str]:
    return (job.job_id for job in client.call("ListJobs", pb.ListJobsRequest(), pb.ListJobsResponse).jobs)


#: For ``typer.Option(autocompletion=...)`` and ``typer.Argument(autocompletion=...)``.
profile_names = _completer(_profiles)
workload_names = _completer(_workloads)
device_names = _completer(_devices)
job_ids = _completer(_jobs)
