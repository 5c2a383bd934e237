"""A local API over real sockets, with a model that does as the test says, and clients of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from edge_agent.config import AgentConfig, Endpoint
from edge_agent.inference import InferenceEngine, ServedModel
from edge_agent.meter import LatencyMeter
from edge_agent.serving.grpc_api import SERVICE
from edge_agent.serving.inference import grpc_service_pb2 as pb
from edge_agent.serving.local_api import LocalApi
from edge_agent.status_file import AgentStatus
from edgeloop.errors import RejectedError

LOCAL = Endpoint(host="127.0.0.1", port=0)
DIGEST = "ab" * 32
INFER = "/v2/models/digits/infer"


class FakeRuntime:
    """Doubles; blocks or fails as told."""

    input_name, output_name = "x", "y"
    input_shape, sample_shape, output_shape = (1, 2), (2,), (1, 2)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.failing = False
        self.num_runs = 0

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        if threading.current_thread() is not threading.main_thread():  # which warms it up
            self.num_runs += 1
            self.begun.set()
            assert self.gate.wait(60)
        if self.failing:
            raise RejectedError("kernel failed", code="model-run")
        return inputs * np.float32(2)


def status(**changes: Any) -> AgentStatus:
    said: dict[str, Any] = {
        "pid": 1,
        "running": True,
        "device_id": "gw-1",
        "boot_id": "b",
        "agent_version": "0",
        "state": "active",
        "start_time_s": 1.0,
        "update_time_s": 2.0,
    }
    return AgentStatus(**(said | changes))


class Gateway:
    """An engine, its local API, and clients of it."""

    def __init__(self, **changes: Any) -> None:
        said: dict[str, Any] = {
            "device_id": "gw-1",
            "state_dir": Path(),
            "server": LOCAL,
            "broker": LOCAL,
            "director_keys": (),
            "serve_grpc": LOCAL,
            "serve_rest": LOCAL,
            "serve_timeout_s": 600.0,
        }
        self.meter = LatencyMeter(window_s=1e6)
        self.engine = InferenceEngine(meter=self.meter, max_pending=4)
        self.engine.start()
        self.runtime = FakeRuntime()
        self.api = LocalApi(AgentConfig(**(said | changes)), {"": self.engine}, status=status)

    def install(self) -> None:
        self.engine.swap(ServedModel(runtime=self.runtime, digest=DIGEST, generation=1, workload="digits"))

    def start(self) -> Gateway:
        self.api.start(time.monotonic())
        return self

    def close(self) -> None:
        self.runtime.gate.set()
        self.api.stop()
        self.engine.close()

    def connect(self) -> http.client.HTTPConnection:
        host, _, port = self.api.rest_address.rpartition(":")
        return http.client.HTTPConnection(host, int(port), timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response.status, response.read()

    def infer(self, values: object = (1.0, 2.0), **changes: object) -> tuple[int, dict[str, Any]]:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": values} | changes
        code, body = self.ask("POST", INFER, json.dumps({"inputs": [tensor]}).encode())
        return code, json.loads(body)

    def call(self, method: str, request: Any, *, timeout_s: float = 60.0) -> bytes:
        with grpc.insecure_channel(self.api.grpc_address) as channel:
            answer: bytes = channel.unary_unary(f"/{SERVICE}/{method}")(
                request if isinstance(request, bytes) else request.SerializeToString(), timeout=timeout_s
            )
            return answer


def grpc_request(shape: tuple[int, ...] = (1, 2)) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="digits")
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    request.raw_input_contents.append(np.ones(shape, np.float32).tobytes())
    return request
