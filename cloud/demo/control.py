"""What the demonstration asks of its control plane, which may be restarted at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cloud.cli.client import ControlClient
from cloud.demo.outcome import Span, busy_spans
from cloud.demo.processes import Processes
from edgeloop.errors import TransientError
from edgeloop.v1 import control_service_pb2 as pb

Reply = TypeVar("Reply")
POLL_S = 0.5


class DemoControl:
    """Calls that wait for a control plane which is away, and keep all processes alive meanwhile."""

    def __init__(self, port: int, processes: Processes, *, workload: str, source: str, logs: Path) -> None:
        """``source`` names the example in documents, ``logs`` is where to look when something takes long."""
        self._client = ControlClient(f"127.0.0.1:{port}", timeout_s=20.0)
        self._processes = processes
        self._workload = workload
        self._source = source
        self._logs = logs

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def call(self, method: str, request: object, reply: type[Reply], *, timeout_s: float = 90.0) -> Reply:
        """Call the control plane; while it is being restarted, wait for it."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._client.call(method, request, reply)
            except TransientError:
                self._processes.tend()
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)

    def wait(self, what: str, done: Callable[[], bool], *, timeout_s: float) -> None:
        """Return once it is done. Raises ``TransientError`` (``demo-timeout``) when that takes longer."""
        deadline = time.monotonic() + timeout_s
        while not done():
            self._processes.tend()
            if time.monotonic() > deadline:
                raise TransientError(
                    f"{what} took over {timeout_s:.0f} s: see {self._logs}", code="demo-timeout"
                )
            time.sleep(POLL_S)

    def pause(self, paused: bool) -> None:
        """Whether the controller may act."""
        request = pb.SetControllerPausedRequest(paused=paused)
        self.call("SetControllerPaused", request, pb.SetControllerPausedResponse)

    def apply(self, kind: str, text: str) -> None:
        """One document, as ``edgeloop apply`` does."""
        document = pb.Document(kind=kind, json=text, source=self._source)
        self.call("Apply", pb.ApplyRequest(documents=[document]), pb.ApplyResponse)

    def teacher(self) -> pb.TeacherInfo:
        """The workload's, once it is trained."""
        answer = self.call("ListWorkloads", pb.ListWorkloadsRequest(), pb.ListWorkloadsResponse)
        return next(item.teacher for item in answer.workloads if item.name == self._workload)

    def candidates(self, profile: str) -> list[pb.CandidateInfo]:
        """Students of the profile that are built."""
        request = pb.ListCandidatesRequest(profile=profile)
        return list(self.call("ListCandidates", request, pb.ListCandidatesResponse).candidates)

    def devices(self) -> list[pb.DeviceInfo]:
        """All that ever registered."""
        return list(self.call("ListDevices", pb.ListDevicesRequest(), pb.ListDevicesResponse).devices)

    def profiles(self) -> dict[str, pb.ProfileInfo]:
        """By name."""
        answer = self.call("ListProfiles", pb.ListProfilesRequest(), pb.ListProfilesResponse)
        return {profile.name: profile for profile in answer.profiles}

    def rollouts(self, profile: str) -> list[pb.RolloutInfo]:
        """Of the profile, whatever became of them."""
        request = pb.ListRolloutsRequest(profile=profile)
        return list(self.call("ListRollouts", request, pb.ListRolloutsResponse).rollouts)

    def measurements(self, profile: str) -> list[pb.Measurement]:
        """Latency windows that devices of the profile reported."""
        request = pb.ListMeasurementsRequest(profile=profile)
        return list(self.call("ListMeasurements", request, pb.ListMeasurementsResponse).measurements)

    def busy(self) -> list[Span]:
        """When this machine was building, as the control plane itself counts it."""
        jobs = self.call("ListJobs", pb.ListJobsRequest(), pb.ListJobsResponse).jobs
        return busy_spans(jobs, time.time())
