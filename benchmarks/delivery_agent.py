"""One device: how fast it receives, and what a real agent costs when it is killed, restarted, updated."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from onnx import TensorProto, helper, numpy_helper

from benchmarks.delivery_broker import HOST, Broker, memory_bytes, running_broker
from benchmarks.delivery_fleet import Subscriber
from benchmarks.gateway import DEVICE_ID, WORKLOAD, Fleet, Gateway, publish
from benchmarks.networks import SIZE, conv_graph, samples
from benchmarks.serving import grpc_request, infer_over
from edgeloop import topics, trust
from edgeloop.mqtt import MqttSession
from edgeloop.v1 import artifact_pb2, fleet_service_pb2_grpc

PACE_BYTES_S = 4_000_000
LISTEN = "127.0.0.1:0"


def dense_graph(num_bytes: int) -> bytes:
    """A network of two matrices with so many bytes of weights: large on the wire, cheap to run."""
    rng = np.random.default_rng(3)
    num_hidden = num_bytes // (4 * (SIZE * SIZE + 8))
    shapes = {"first": (SIZE * SIZE, num_hidden), "second": (num_hidden, 8)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) / 30 for name, shape in shapes.items()}
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("MatMul", ["flat", "first"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("MatMul", ["active", "second"], ["y"]),
        ],
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


# --- receiving -----------------------------------------------------------------------------------------


def receive_by_fetch(broker: Broker, device_id: str, director_key: bytes) -> float:
    """Seconds from connecting to the last verified block, for a device whose deployment is retained."""
    done = threading.Event()
    device = Subscriber(broker.port, device_id, director_key, done.set)
    start_s = time.monotonic()
    device.session.start()
    if not done.wait(60):
        raise RuntimeError("the artifact did not come")
    took_s = time.monotonic() - start_s
    device.session.close(1.0)
    return took_s


def receive_at_once(broker: Broker, manifest: artifact_pb2.Manifest) -> float:
    """Seconds of a session that takes all blocks at once and throws them away, as the peer does."""
    done = threading.Event()
    waiting = {topics.block(manifest.digest, n) for n in range(len(manifest.block_digests))}

    def take(topic: str, _payload: bytes) -> None:
        waiting.discard(topic)
        if not waiting:
            done.set()

    session = MqttSession(HOST, broker.port, "gw-at-once")
    for topic in sorted(waiting):
        session.subscribe(topic, take)
    start_s = time.monotonic()
    session.start()
    if not done.wait(60):
        raise RuntimeError("the blocks did not come")
    took_s = time.monotonic() - start_s
    session.close(1.0)
    return took_s


def receive_by_mosquitto_sub(broker: Broker, manifest: artifact_pb2.Manifest) -> float:
    """Seconds of a mosquitto_sub that takes the same blocks, all topics at once, and throws them away."""
    num_blocks = len(manifest.block_digests)
    words = ["mosquitto_sub", "-h", HOST, "-p", str(broker.port), "-q", "1", "-C", str(num_blocks)]
    words += [word for n in range(num_blocks) for word in ("-t", topics.block(manifest.digest, n))]
    start_s = time.monotonic()
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True, timeout=60)
    return time.monotonic() - start_s


# --- a real agent ----------------------------------------------------------------------------------------


class Link:
    """A paced TCP relay between an agent and the broker that counts what goes towards the agent."""

    def __init__(self, broker_port: int) -> None:
        self.num_bytes = 0
        self._broker_port = broker_port
        self._server = socket.create_server((HOST, 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, name="link", daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection((HOST, self._broker_port))
                # Small buffers: what the relay holds for an agent that died would count, and never arrive.
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768)
                threading.Thread(target=self._copy, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._copy, args=(far, near, True), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(32_768):
                sink.sendall(data)
                if down:
                    self.num_bytes += len(data)
                    time.sleep(len(data) / PACE_BYTES_S)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@dataclass(kw_only=True, slots=True)
class Site:
    """A broker, a cloud that accepts everything, and one agent that is not started yet."""

    session: MqttSession
    key: trust.DirectorKey
    link: Link
    gateway: Gateway
    state_dir: Path

    def kill(self) -> None:
        assert self.gateway.process is not None
        self.gateway.process.send_signal(signal.SIGKILL)
        self.gateway.process.wait(10)


@contextmanager
def site(folder: Path, *, listen: str) -> Iterator[Site]:
    np.savez(folder / "replay.npz", inputs=samples(64))
    server = grpc.server(futures.ThreadPoolExecutor(4))
    fleet_service_pb2_grpc.add_FleetServiceServicer_to_server(Fleet(), server)
    port = server.add_insecure_port(LISTEN)
    server.start()
    with running_broker(folder) as broker, MqttSession(HOST, broker.port, "bench-publisher") as session:
        session.wait_connected(10)
        link, key = Link(broker.port), trust.DirectorKey.generate()
        settings = {
            "device-id": DEVICE_ID,
            "state-dir": str(folder / "state"),
            "server": f"127.0.0.1:{port}",
            "broker": f"127.0.0.1:{link.port}",
            "director-key": key.public_bytes.hex(),
            "replay": str(folder / "replay.npz"),
            "rate-hz": "100",
            "report-interval-s": "1",
            "trial-requests": "20",
            "serve-grpc": listen,
            "serve-rest": listen,
        }
        words = [word for flag, value in settings.items() for word in (f"--{flag}", value)]
        gateway = Gateway(folder, words)
        try:
            yield Site(session=session, key=key, link=link, gateway=gateway, state_dir=folder / "state")
        finally:
            gateway.stop()
            link.close()
            server.stop(0).wait()


def bytes_after_a_kill(folder: Path, size_bytes: int) -> tuple[int, int]:
    """All bytes that came to an agent killed with SIGKILL at half of its fetch, and the artifact's size."""
    data = dense_graph(size_bytes)
    with site(folder, listen="off") as place:
        digest = publish(place.session, place.key, data)
        place.gateway.start()
        partial = place.state_dir / "blobs" / "partial" / digest
        num_blocks = -(-len(data) // (256 * 1024))
        until_s = time.monotonic() + 60
        while not partial.exists() or len(list(partial.iterdir())) < num_blocks // 2:
            if time.monotonic() > until_s:
                raise RuntimeError("the agent never had half of the artifact")
            time.sleep(0.005)
        place.kill()
        if len(list(partial.iterdir())) >= num_blocks:
            raise RuntimeError("the kill came too late: the fetch was over")
        place.gateway.start()
        place.gateway.wait(lambda status: status["committed_digest"] == digest)
        return place.link.num_bytes, len(data)


def restarts_after_a_kill(folder: Path, data: bytes, num_starts: int) -> tuple[list[float], list[float]]:
    """Seconds from a start that follows a SIGKILL to the first answer: within it, and over gRPC."""
    within_s, over_grpc_s = [], []
    request = grpc_request(samples(1))
    with site(folder, listen=LISTEN) as place:
        digest = publish(place.session, place.key, data)
        place.gateway.start()
        place.gateway.wait(lambda status: status["committed_digest"] == digest)
        for _ in range(num_starts):
            place.kill()
            start_s = time.monotonic()
            place.gateway.start()
            # Its port is in the status file, which a dead process has left behind: `wait` looks at the pid.
            status = place.gateway.wait(lambda status: bool(status["grpc_address"]))
            with grpc.insecure_channel(status["grpc_address"]) as channel:
                infer_over(channel)(request, timeout=10, wait_for_ready=True)
            over_grpc_s.append(time.monotonic() - start_s)
            within_s.append(
                place.gateway.wait(lambda status: status["first_inference_s"] > 0)["first_inference_s"]
            )
    return within_s, over_grpc_s


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateMemory:
    """Peaks while a student serves and the next one is fetched, tested and tried."""

    agent_bytes: int
    #: Of the short-lived process that tests it; 0 when none was seen.
    self_test_bytes: int


def memory_of_an_update(folder: Path) -> UpdateMemory:
    """An agent with both local APIs on, whose applications ask it a hundred times a second."""
    with site(folder, listen=LISTEN) as place:
        first = publish(place.session, place.key, conv_graph(24, 2))
        place.gateway.start()
        place.gateway.wait(lambda status: status["committed_digest"] == first)
        # A fresh process, as after any restart: what it peaks at is serving and one update.
        place.kill()
        place.gateway.start()
        status = place.gateway.wait(
            lambda status: bool(status["server_connected"] and status["grpc_address"])
        )
        with grpc.insecure_channel(status["grpc_address"]) as channel:
            for _ in range(500):
                infer_over(channel)(grpc_request(samples(1)), timeout=10)
        second = publish(place.session, place.key, conv_graph(25, 2), generation=2)
        process = place.gateway.process
        assert process is not None
        peak_child, until_s = 0, time.monotonic() + 60
        agent = psutil.Process(process.pid)
        while place.gateway.wait(lambda status: True)["committed_digest"] != second:
            with contextlib.suppress(psutil.Error):
                peak_child = max([peak_child, *(memory_bytes(c.pid, "VmHWM") for c in agent.children(True))])
            if time.monotonic() > until_s:
                raise RuntimeError("the update did not end")
            time.sleep(0.01)
        return UpdateMemory(agent_bytes=memory_bytes(process.pid, "VmHWM"), self_test_bytes=peak_child)


def has_committed(status: dict[str, Any], *, digest: str, generation: int) -> bool:
    return bool(status["committed_digest"] == digest and status["generation"] == generation)


def waits_in_swaps(folder: Path, num_swaps: int) -> dict[str, float]:
    """What tritonclient waits for an answer while models are swapped under it, in ms, and before.

    ``worst_ms`` counts from each deployment to its commit, the self-test in a process beside it included.
    """
    graphs = [conv_graph(24, 2), conv_graph(25, 2)]
    stop = folder / "stop"
    with site(folder, listen=LISTEN) as place:
        first = publish(place.session, place.key, graphs[0])
        place.gateway.start()
        status = place.gateway.wait(lambda status: status["committed_digest"] == first)
        words = [sys.executable, "-m", "benchmarks.triton_load", status["grpc_address"], WORKLOAD]
        asking = subprocess.Popen([*words, str(SIZE), str(stop)], stdout=subprocess.PIPE)
        time.sleep(5)
        swapping_s = time.monotonic()
        for number in range(num_swaps):
            digest = publish(place.session, place.key, graphs[(number + 1) % 2], generation=number + 2)
            place.gateway.wait(partial(has_committed, digest=digest, generation=number + 2))
        stop.touch()
        said = json.loads(asking.communicate(timeout=30)[0])
    before = [wait_s for at_s, wait_s in said["waits"] if at_s < swapping_s]
    during = [wait_s for at_s, wait_s in said["waits"] if at_s >= swapping_s]
    return {
        "num_swaps": num_swaps,
        "num_failed": len(said["failures"]),
        "num_during": len(during),
        "steady_p99_ms": 1000 * float(np.quantile(before, 0.99)),
        # The first calls open the connection.
        "steady_worst_ms": 1000 * max(before[100:], default=0.0),
        "p99_ms": 1000 * float(np.quantile(during, 0.99)),
        "worst_ms": 1000 * max(during),
    }


if __name__ == "__main__":
    sys.exit("run: python -m benchmarks delivery")
