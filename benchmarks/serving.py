"""What the local inference API costs beside the work itself: latency over gRPC and HTTP, and memory.

    python -m benchmarks.serving

- *latency*: a server process holds the engine with the local API, and a bare gRPC echo with as many threads
  on the same library. A client process calls, round by round in random order and with the same bytes: the
  echo, `ModelInfer`, and a bare ``session.run`` of its own on the same graph. The figure is the ratio between
  the median of `ModelInfer` and the sum of the medians of echo and run (goal: at most 1.3), one for each of
  several repetitions, and the median of these with their range. Beside it, without a goal, the same request
  over HTTP with binary data, and over gRPC while a second client keeps the model busy.
- *memory*: real agents (`edgeloop-agent run`) that serve the same model from their state folder, with the API
  off and on, the latter after some thousand requests.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.networks import bare_session, conv_graph, medians_us, samples
from edge_agent.blobs import BlobStore
from edge_agent.config import Endpoint
from edge_agent.inference import InferenceEngine, ServedModel
from edge_agent.journal import Journal
from edge_agent.meter import LatencyMeter
from edge_agent.runtime import load_onnx
from edge_agent.serving import tensors
from edge_agent.serving.grpc_api import MAX_CALLS, SERVICE, GrpcApi
from edge_agent.serving.inference import grpc_service_pb2 as pb
from edge_agent.serving.metrics import ServingMetrics
from edge_agent.serving.model_service import ModelService
from edge_agent.serving.rest_api import RestApi
from edge_agent.update_state import Slot, State, UpdateState
from edgeloop import artifact
from edgeloop.v1 import artifact_pb2

WORKLOAD = "bench"
GOAL_RATIO = 1.3
ECHO = "/bench.Echo/Echo"
INFER = f"/{SERVICE}/ModelInfer"
LOCAL = Endpoint(host="127.0.0.1", port=0)
MAX_REQUEST_BYTES = 1 << 24


def serve(data: bytes, pipe: Connection) -> None:
    """The server process; ends when the pipe does."""
    engine = InferenceEngine(meter=LatencyMeter(window_s=30))
    engine.swap(ServedModel(runtime=load_onnx(data), digest="a" * 64, generation=1, workload=WORKLOAD))
    engine.start()
    service, metrics = ModelService({"": engine}, timeout_s=5), ServingMetrics()
    api = GrpcApi(service, LOCAL, metrics=metrics, max_request_bytes=MAX_REQUEST_BYTES)
    rest = RestApi(service, LOCAL, metrics=metrics, render_metrics=list, max_request_bytes=MAX_REQUEST_BYTES)
    echo = grpc.server(ThreadPoolExecutor(MAX_CALLS), maximum_concurrent_rpcs=MAX_CALLS)
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        lambda request, context: request
    )
    echo.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": method}),))
    echo_port = echo.add_insecure_port("127.0.0.1:0")
    echo.start()
    pipe.send((str(api.start()), str(rest.start()), f"127.0.0.1:{echo_port}"))
    with contextlib.suppress(EOFError):
        pipe.recv()
    api.stop(0)
    rest.stop(0)
    echo.stop(0)
    engine.close()


def infer_over(channel: grpc.Channel) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    """ModelInfer of serialised requests: what protobuf costs the caller is not what is measured."""
    return channel.unary_unary(INFER)


def grpc_request(sample: Any) -> bytes:
    request = pb.ModelInferRequest(model_name=WORKLOAD)
    request.inputs.add(name="x", datatype="FP32", shape=sample.shape)
    request.raw_input_contents.append(tensors.to_raw(sample))
    data: bytes = request.SerializeToString()
    return data


def http_caller(address: str, sample: Any) -> Callable[[], object]:
    raw = tensors.to_raw(sample)
    said = {
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": sample.shape,
                "parameters": {"binary_data_size": len(raw)},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(said).encode()
    body, headers = text + raw, {"Inference-Header-Content-Length": str(len(text))}
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port))

    def call() -> object:
        connection.request("POST", f"/v2/models/{WORKLOAD}/infer", body, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(answer.decode())
        return answer

    return call


def measure_latency(data: bytes, *, num_rounds: int, num_repeats: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(data, theirs), daemon=True)
    server.start()
    theirs.close()
    try:
        grpc_address, rest_address, echo_address = ours.recv()
        sample = samples(1)
        request = grpc_request(sample)
        session = bare_session(data)
        with (
            grpc.insecure_channel(grpc_address) as channel,
            grpc.insecure_channel(echo_address) as echo_channel,
        ):
            infer = infer_over(channel)
            echo: grpc.UnaryUnaryMultiCallable[bytes, bytes] = echo_channel.unary_unary(ECHO)
            wanted = session.run(None, {"x": sample})[0]
            answer = pb.ModelInferResponse.FromString(infer(request))
            found = np.frombuffer(answer.raw_output_contents[0], np.float32)
            if not np.allclose(found, wanted.ravel(), atol=1e-4):
                raise RuntimeError("the API does not answer what the model does")
            actions = {
                "bare session.run": lambda: session.run(None, {"x": sample}),
                "bare gRPC echo": lambda: echo(request),
                "ModelInfer over gRPC": lambda: infer(request),
                "infer over HTTP, binary": http_caller(rest_address, sample),
            }
            rows: list[list[float]] = [
                medians_us(list(actions.values()), num_rounds, repeat) for repeat in range(num_repeats)
            ]
            busy_us = measure_busy(lambda: infer(request), num_rounds)
    finally:
        ours.close()
        server.join(10)
    ratios = [row[2] / (row[0] + row[1]) for row in rows]
    return {
        "p50_us": {name: statistics.median(row[n] for row in rows) for n, name in enumerate(actions)},
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "two_clients_p50_us": busy_us,
    }


def measure_busy(call: Callable[[], object], num_rounds: int) -> float:
    """Median of one of two clients that call without a pause."""
    done = threading.Event()

    def other() -> None:
        while not done.is_set():
            call()

    thread = threading.Thread(target=other)
    thread.start()
    elapsed_ns = []
    for _ in range(num_rounds):
        begin = time.perf_counter_ns()
        call()
        elapsed_ns.append(time.perf_counter_ns() - begin)
    done.set()
    thread.join()
    return statistics.median(elapsed_ns) / 1000


# --- memory -------------------------------------------------------------------------------------------


def installed_state(folder: Path, data: bytes) -> None:
    """A state folder as an agent leaves it that has committed this model."""
    inputs = samples(2)
    outputs = load_onnx(data).run(inputs)
    shapes = [[0, *inputs.shape[1:]], [0, *outputs.shape[1:]]]
    manifest = artifact.build_manifest(
        data,
        workload=WORKLOAD,
        profile=WORKLOAD,
        precision=artifact_pb2.PRECISION_FP32,
        inputs=[artifact_pb2.TensorSpec(name="x", datatype="FP32", shape=shapes[0])],
        outputs=[artifact_pb2.TensorSpec(name="y", datatype="FP32", shape=shapes[1])],
        golden=artifact.golden_set(inputs, outputs, absolute_tolerance=1e-3),
        accuracy=0.9,
    )
    raw = artifact.encode_manifest(manifest)
    digest = artifact.sha256_hex(raw)
    blobs = BlobStore(folder / "blobs", reserve_bytes=0)
    blobs.keep_manifest(digest, raw)
    for n, block in enumerate(artifact.split_blocks(data)):
        blobs.keep_block(manifest.digest, n, block)
    blobs.assemble(manifest)
    slot = Slot(
        generation=1,
        digest=manifest.digest,
        manifest_digest=digest,
        workload=WORKLOAD,
        profile=WORKLOAD,
        signed=b"-",
    )
    Journal(folder).save(UpdateState(state=State.ACTIVE, target=slot, committed=slot))


def measure_memory(data: bytes, words: Sequence[str], *, num_calls: int, settle_s: float) -> int:
    """Resident bytes of an agent without a cloud, after requests over each transport that it serves."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "state"
        folder.mkdir()
        installed_state(folder, data)
        settings = {
            "device-id": "bench-1",
            "state-dir": str(folder),
            "server": "127.0.0.1:1",
            "broker": "127.0.0.1:1",
            "director-key": "ab" * 32,
        }
        flags = [word for flag, value in settings.items() for word in (f"--{flag}", value)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGELOOP")}
        with (Path(name) / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "edge_agent.cli", "run", *flags, *words],
                stdout=log,
                stderr=log,
                env=environment,
            )
        try:
            status = wait_status(folder, process, with_api="off" not in words)
            if status["grpc_address"]:
                request = grpc_request(samples(1))
                with grpc.insecure_channel(status["grpc_address"]) as channel:
                    infer = infer_over(channel)
                    for _ in range(num_calls):
                        infer(request)
            if status["rest_address"]:
                call = http_caller(status["rest_address"], samples(1))
                for _ in range(num_calls):
                    call()
            time.sleep(settle_s)
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS"):
                    return int(line.split()[1]) * 1024
            return 0
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def wait_status(folder: Path, process: subprocess.Popen[bytes], *, with_api: bool) -> dict[str, Any]:
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s and process.poll() is None:
        path = folder / "status.json"
        if path.exists():
            status: dict[str, Any] = json.loads(path.read_text())
            served = bool(status["grpc_address"] and status["rest_address"])
            if status["pid"] == process.pid and status["serving_digest"] and served == with_api:
                return status
        time.sleep(0.05)
    raise RuntimeError("the agent did not come so far")


def main() -> None:
    """Measures and prints; ``--json`` for programs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000, help="calls of each kind in a repetition")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--settle-s", type=float, default=5.0, help="how long an agent rests before its memory"
    )
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    data = conv_graph(24, 2)
    found = measure_latency(data, num_rounds=args.rounds, num_repeats=args.repeats)
    if not args.skip_memory:
        off = ["--serve-grpc", "off", "--serve-rest", "off"]
        on = ["--serve-grpc", "127.0.0.1:0", "--serve-rest", "127.0.0.1:0"]
        found["rss_bytes"] = {
            name: measure_memory(data, words, num_calls=args.rounds, settle_s=args.settle_s)
            for name, words in (("API off", off), ("API on", on))
        }
    if args.json:
        print(json.dumps(found, indent=1))
        return
    for name, p50_us in found["p50_us"].items():
        print(f"{name:<32}{p50_us:>9.1f} us p50")
    print(f"{'ModelInfer, two clients':<32}{found['two_clients_p50_us']:>9.1f} us p50")
    print(
        f"ModelInfer over (echo + run): {found['ratio']:.3f} (goal {GOAL_RATIO}), "
        f"{found['ratio_min']:.3f} to {found['ratio_max']:.3f} over {args.repeats} repetitions"
    )
    for name, rss_bytes in found.get("rss_bytes", {}).items():
        print(f"agent RSS, {name:<21}{rss_bytes / 1e6:>9.1f} MB")


if __name__ == "__main__":
    main()
