"""One real agent for benchmarks: its process, a fleet service that accepts everything, what it is sent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from benchmarks.networks import SIZE, samples
from edge_agent.runtime import load_onnx
from edgeloop import artifact, topics, trust
from edgeloop.mqtt import MqttSession
from edgeloop.v1 import artifact_pb2, deployment_pb2, fleet_service_pb2, fleet_service_pb2_grpc

DEVICE_ID = "bench-1"
WORKLOAD = "bench"
PROFILE = "bench"


class Fleet(fleet_service_pb2_grpc.FleetServiceServicer):
    """Accepts everything: the agent's own cost is what is measured."""

    def Register(  # noqa: N802 - the protocol's name
        self, request: fleet_service_pb2.RegisterRequest, context: grpc.ServicerContext
    ) -> fleet_service_pb2.RegisterResponse:
        return fleet_service_pb2.RegisterResponse(profile=PROFILE, report_interval_s=1)

    def UpdateDeploymentStatus(  # noqa: N802 - the same
        self, request: fleet_service_pb2.UpdateDeploymentStatusRequest, context: grpc.ServicerContext
    ) -> fleet_service_pb2.UpdateDeploymentStatusResponse:
        return fleet_service_pb2.UpdateDeploymentStatusResponse()

    def StreamReports(  # noqa: N802 - the same
        self,
        request_iterator: Iterator[fleet_service_pb2.StreamReportsRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[fleet_service_pb2.StreamReportsResponse]:
        for request in request_iterator:
            yield fleet_service_pb2.StreamReportsResponse(
                batch_id=request.batch_id, num_accepted=len(request.reports)
            )


class Gateway:
    """One agent's folder, and the processes started over it."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self._words = words
        self._status = folder / "state" / "status.json"
        self._log = folder / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGELOOP")}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_agent.cli", "run", *self._words],
                stdout=log,
                stderr=log,
                env=environment,
            )

    def wait(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 60) -> dict[str, Any]:
        assert self.process is not None
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s and self.process.poll() is None:
            if self._status.exists():
                status: dict[str, Any] = json.loads(self._status.read_text())
                if status["pid"] == self.process.pid and condition(status):
                    return status
            time.sleep(0.05)
        raise RuntimeError(f"the agent did not come so far:\n{self._log.read_text()[-3000:]}")

    def memory(self, field: str) -> int:
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
        return 0

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)


def publish(session: MqttSession, key: trust.DirectorKey, data: bytes, *, generation: int = 1) -> str:
    """Publishes one artifact and deploys it; its digest."""
    inputs = samples(4)
    shape = [1, SIZE, SIZE]
    outputs = load_onnx(data).run(inputs)
    manifest = artifact.build_manifest(
        data,
        workload=WORKLOAD,
        profile=PROFILE,
        precision=artifact_pb2.PRECISION_FP32,
        inputs=[artifact_pb2.TensorSpec(name="x", datatype="FP32", shape=[0, *shape])],
        outputs=[artifact_pb2.TensorSpec(name="y", datatype="FP32", shape=[0, outputs.shape[1]])],
        golden=artifact.golden_set(inputs, outputs, absolute_tolerance=1e-3),
        accuracy=0.9,
    )
    raw = artifact.encode_manifest(manifest)
    manifest_digest = artifact.sha256_hex(raw)
    deployment = deployment_pb2.Deployment(
        device_id=DEVICE_ID,
        workload=WORKLOAD,
        profile=PROFILE,
        generation=generation,
        digest=manifest.digest,
        manifest_digest=manifest_digest,
        issue_time=trust.timestamp(time.time()),
    )
    messages = [(topics.manifest(manifest_digest), raw)]
    messages += [
        (topics.block(manifest.digest, n), block) for n, block in enumerate(artifact.split_blocks(data))
    ]
    messages.append((topics.deployment(DEVICE_ID), trust.sign_deployment(key, deployment)))
    for topic, payload in messages:
        session.publish(topic, payload, retain=True).wait(10)
    return str(manifest.digest)
