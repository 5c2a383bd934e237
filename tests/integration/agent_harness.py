"""The cloud as an agent sees it, in the test's process: a director, a publisher and a FleetService.

Publishes what a test hands it, remembers what agents say, and starts agents as processes of their own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import grpc
import numpy as np
import onnx
from machine import WAIT_S, dying_with_us, wait_until
from onnx import TensorProto, helper, numpy_helper

from edgeloop import artifact, topics, trust
from edgeloop.mqtt import MqttSession
from edgeloop.v1 import (
    artifact_pb2,
    deployment_pb2,
    device_pb2,
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    telemetry_pb2,
)

BLOCK_SIZE_BYTES = 4096
NUM_INPUTS, NUM_HIDDEN, NUM_OUTPUTS = 16, 2048, 4


def make_model(seed: int, *, divide_by_zero: bool = False, num_hidden: int = NUM_HIDDEN) -> bytes:
    """A small network; as it stands some 40 blocks of 4 KiB."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(NUM_INPUTS, num_hidden)).astype(np.float32)
    second = (rng.normal(size=(num_hidden, NUM_OUTPUTS)) / num_hidden).astype(np.float32)
    zero = np.zeros((1,), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["scores" if divide_by_zero else "y"]),
    ]
    initializers = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
    if divide_by_zero:
        nodes.append(helper.make_node("Mul", ["scores", "zero"], ["nothing"]))
        nodes.append(helper.make_node("Div", ["nothing", "zero"], ["y"]))
        initializers.append(numpy_helper.from_array(zero, "zero"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", NUM_INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", NUM_OUTPUTS])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipment:
    """An artifact with its manifest, as the cloud would publish them."""

    data: bytes
    manifest: artifact_pb2.Manifest
    raw_manifest: bytes

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def manifest_digest(self) -> str:
        return artifact.sha256_hex(self.raw_manifest)

    @property
    def blocks(self) -> list[bytes]:
        return artifact.split_blocks(self.data, self.manifest.block_size_bytes)


def golden_inputs(num: int = 4) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(99).normal(size=(num, NUM_INPUTS)).astype(np.float32)


def ship(
    data: bytes,
    *,
    workload: str = "tiny",
    profile: str = "small",
    golden_offset: float = 0.0,
    packed: bool = False,
    metric: str = "",
    block_size_bytes: int = BLOCK_SIZE_BYTES,
) -> Shipment:
    from edge_agent.runtime import load_onnx

    inputs = golden_inputs()
    outputs = np.nan_to_num(load_onnx(data).run(inputs)) + np.float32(golden_offset)
    executable = b""
    if packed:
        from cloud.compression.pack import pack_onnx

        data, executable = pack_onnx(data), data
    manifest = artifact.build_manifest(
        data,
        artifact_format="onnx-packed-v1" if packed else "onnx",
        executable=executable,
        workload=workload,
        profile=profile,
        precision=artifact_pb2.PRECISION_FP32,
        inputs=[artifact_pb2.TensorSpec(name="x", datatype="FP32", shape=[0, NUM_INPUTS])],
        outputs=[artifact_pb2.TensorSpec(name="y", datatype="FP32", shape=[0, NUM_OUTPUTS])],
        golden=artifact.golden_set(inputs, outputs, absolute_tolerance=1e-3),
        accuracy=0.9,
        metric=metric,
        block_size_bytes=block_size_bytes,
    )
    return Shipment(data=data, manifest=manifest, raw_manifest=artifact.encode_manifest(manifest))


class FleetServicer(fleet_service_pb2_grpc.FleetServiceServicer):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.registrations: list[device_pb2.Registration] = []
        self.statuses: list[deployment_pb2.DeploymentStatus] = []
        self.reports: dict[tuple[str, str, int], telemetry_pb2.LatencyReport] = {}

    def Register(  # the name is the service's
        self, request: fleet_service_pb2.RegisterRequest, context: grpc.ServicerContext
    ) -> fleet_service_pb2.RegisterResponse:
        with self.lock:
            self.registrations.append(request.registration)
        return fleet_service_pb2.RegisterResponse(profile="small", report_interval_s=30)

    def UpdateDeploymentStatus(
        self, request: fleet_service_pb2.UpdateDeploymentStatusRequest, context: grpc.ServicerContext
    ) -> fleet_service_pb2.UpdateDeploymentStatusResponse:
        with self.lock:
            self.statuses.append(request.status)
        return fleet_service_pb2.UpdateDeploymentStatusResponse()

    def StreamReports(
        self,
        request_iterator: Iterator[fleet_service_pb2.StreamReportsRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[fleet_service_pb2.StreamReportsResponse]:
        for request in request_iterator:
            with self.lock:
                for report in request.reports:
                    self.reports[report.device_id, report.boot_id, report.sequence] = report
            yield fleet_service_pb2.StreamReportsResponse(
                batch_id=request.batch_id, num_accepted=len(request.reports)
            )

    def states(self, generation: int) -> list[str]:
        """What was said of a generation, in the order in which it came."""
        with self.lock:
            return [
                deployment_pb2.DeploymentState.Name(status.state).removeprefix("DEPLOYMENT_STATE_")
                for status in self.statuses
                if status.generation == generation
            ]

    def codes(self, generation: int) -> set[str]:
        with self.lock:
            return {
                status.code for status in self.statuses if status.generation == generation and status.code
            }


class Cloud:
    """Everything but the control plane's own decisions."""

    def __init__(self, broker_host: str, broker_port: int) -> None:
        self.key = trust.DirectorKey.generate()
        self.broker = f"{broker_host}:{broker_port}"
        self.session = MqttSession(broker_host, broker_port, "test-publisher").start()
        assert self.session.wait_connected(WAIT_S), self.session.last_error
        self.requests: list[deployment_pb2.BlockRequest] = []
        self.presence: dict[str, bytes] = {}
        self.session.subscribe(topics.ALL_REQUESTS, self._on_request)
        self.session.subscribe(topics.ALL_PRESENCE, self._on_presence)
        self.fleet = FleetServicer()
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        fleet_service_pb2_grpc.add_FleetServiceServicer_to_server(self.fleet, self._server)
        self.server = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        self.shipments: dict[str, Shipment] = {}
        self.answers_requests = False

    def close(self) -> None:
        self.session.close()
        self._server.stop(0).wait()

    def _on_request(self, topic: str, payload: bytes) -> None:
        request = artifact.parse_block_request(payload, device_id=topics.device_of(topic))
        self.requests.append(request)
        shipment = self.shipments.get(request.manifest_digest)
        if self.answers_requests and shipment is not None:
            if request.manifest:
                self.session.publish(
                    topics.manifest(shipment.manifest_digest), shipment.raw_manifest, retain=True
                )
            for n in request.blocks:
                self.session.publish(topics.block(shipment.digest, n), shipment.blocks[n], retain=True)

    def _on_presence(self, topic: str, payload: bytes) -> None:
        self.presence[topics.device_of(topic)] = payload

    def put(self, topic: str, payload: bytes) -> None:
        self.session.publish(topic, payload, retain=True).wait(WAIT_S)

    def publish(self, shipment: Shipment, *, without: frozenset[int] = frozenset()) -> None:
        self.shipments[shipment.manifest_digest] = shipment
        self.put(topics.manifest(shipment.manifest_digest), shipment.raw_manifest)
        for n, block in enumerate(shipment.blocks):
            if n not in without:
                self.put(topics.block(shipment.digest, n), block)

    def deploy(
        self,
        device_id: str,
        shipment: Shipment,
        generation: int,
        *,
        profile: str = "small",
        topic: str = "",
        delta: deployment_pb2.Delta | None = None,
    ) -> bytes:
        signed = trust.sign_deployment(
            self.key,
            deployment_pb2.Deployment(
                device_id=device_id,
                workload=shipment.manifest.workload,
                profile=profile,
                generation=generation,
                digest=shipment.digest,
                manifest_digest=shipment.manifest_digest,
                issue_time=trust.timestamp(time.time()),
                delta=delta,
            ),
        )
        self.put(topic or topics.deployment(device_id), signed)
        return signed


class AgentProcess:
    """`edgeloop-agent run` with a state folder that outlives it; it ends with the tests at the latest."""

    #: All that were started in this process, whether they run or not.
    started: ClassVar[set[AgentProcess]] = set()

    def __init__(self, cloud: Cloud, folder: Path, device_id: str = "gw-1", **flags: str) -> None:
        self.cloud = cloud
        self.device_id = device_id
        self.state_dir = folder / device_id
        self._log_path = folder / f"{device_id}.log"
        replay = folder / "replay.npz"
        if not replay.exists():
            np.savez(replay, inputs=golden_inputs(32))
        self._flags = {
            "replay": str(replay),
            "rate-hz": "50",
            "report-interval-s": "0.5",
            "block-timeout-s": "0.3",
            "trial-requests": "10",
            "log-level": "debug",
            "serve-grpc": "off",
            "serve-rest": "off",
            **{name.replace("_", "-"): value for name, value in flags.items()},
        }
        # Flags that are not given after all.
        self.left_out: frozenset[str] = frozenset()
        self.process: subprocess.Popen[bytes] | None = None

    def add_flag(self, name: str, value: str) -> None:
        """From the next start on."""
        self._flags[name] = value

    def command(self) -> list[str]:
        settings = {
            "device-id": self.device_id,
            "state-dir": str(self.state_dir),
            "server": self.cloud.server,
            "broker": self.cloud.broker,
            "director-key": self.cloud.key.public_bytes.hex(),
            **self._flags,
        }
        given = [item for item in settings.items() if item[0] not in self.left_out]
        words = [word for name, value in given for word in (f"--{name}", value)]
        return [sys.executable, "-m", "edge_agent.cli", "run", *words]

    def start(self) -> AgentProcess:
        with self._log_path.open("ab") as log:
            environment = {name: value for name, value in os.environ.items() if "EDGELOOP" not in name}
            # The process of the self-test is the most courteous of all: beside busy ones it takes its time.
            environment["EDGELOOP_AGENT_SELF_TEST_TIMEOUT_S"] = "120"
            self.process = subprocess.Popen(
                dying_with_us(self.command()), stdout=log, stderr=log, env=environment
            )
        self.started.add(self)
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(WAIT_S)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.log[-4000:]}") from None

    def num_reported(self) -> int:
        """Requests in the reports that the cloud has, of all starts together."""
        with self.cloud.fleet.lock:
            return sum(sum(report.latency.counts) for report in self.cloud.fleet.reports.values())

    def check_all_reported(self) -> None:
        """Of an agent that was stopped: every request that was answered is in exactly one report.

        It gives what is left two seconds as it ends. What a busy machine did not carry in them is in its
        spool, and the next start sends it: that one is asked nothing.
        """
        asked = self.status()["num_requests"]
        if self.num_reported() != asked:
            self.left_out |= {"replay", "rate-hz"}
            self.start()
            wait_until(
                lambda: self.num_reported() >= asked, what=lambda: f"{asked}, not {self.num_reported()}"
            )
            self.stop()
        assert self.num_reported() == asked

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def status(self) -> dict[str, Any]:
        try:
            said: dict[str, Any] = json.loads((self.state_dir / "status.json").read_bytes())
        except FileNotFoundError:
            return {}
        return said

    def wait(
        self, condition: Callable[[dict[str, Any]], bool], *, timeout_s: float = WAIT_S
    ) -> dict[str, Any]:
        """Until a running agent's status satisfies the condition; its log is in the failure."""
        until_s = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if self.process is not None and status.get("pid") == self.process.pid and condition(status):
                return status
            assert time.monotonic() < until_s, f"after {timeout_s:g} s still {status}\n{self.log[-4000:]}"
            assert self.process is None or self.process.poll() is None, f"it ended:\n{self.log[-4000:]}"
            time.sleep(0.02)

    def wait_state(self, state: str, generation: int, *, timeout_s: float = WAIT_S) -> dict[str, Any]:
        return self.wait(
            lambda status: (status["state"], status["generation"]) == (state, generation), timeout_s=timeout_s
        )
