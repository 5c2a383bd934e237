"""Many subscribers of one artifact: through the broker by the product's own fetch, and from a bare sender.

Subscribers run in a few processes, each subscriber with an MQTT session of its own (``edgeloop.mqtt``) and
the agent's ``Fetcher``: it verifies the deployment's signature, the manifest and the digest of every block.
What an agent does besides, writing blocks to its own disk, is left out, since all subscribers share this one.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.delivery_broker import HOST, running_broker
from cloud.publisher import Publisher
from cloud.registry import Registry
from cloud.retained import Delivery
from cloud.shipment import Shipment
from edge_agent import fetch
from edge_agent.fetch import Fetcher, FetchSettings
from edge_agent.update_state import Slot
from edgeloop import artifact, topics, trust
from edgeloop.artifact import BlockAssembler
from edgeloop.mqtt import MqttSession
from edgeloop.v1 import artifact_pb2, deployment_pb2

WORKLOAD = PROFILE = "bench"
WAIT_S = 300.0
PIECE_BYTES = artifact.BLOCK_SIZE_BYTES


# --- the cloud's side -----------------------------------------------------------------------------------


def make_artifact(registry: Registry, size_bytes: int) -> artifact_pb2.Manifest:
    """Bytes that no compressor shortens, with a manifest; both are in the registry."""
    data = random.Random(7).randbytes(size_bytes)
    spec = artifact_pb2.TensorSpec(name="x", datatype="FP32", shape=[0, 2])
    manifest = artifact.build_manifest(
        data,
        workload=WORKLOAD,
        profile=PROFILE,
        precision=artifact_pb2.PRECISION_FP32,
        inputs=[spec],
        outputs=[spec],
        golden=artifact.golden_set(np.zeros((1, 2)), np.zeros((1, 2)), absolute_tolerance=1e-3),
        accuracy=0.9,
    )
    registry.put(data)
    return manifest


class CountingBus:
    """The publisher's session; counts what it publishes, topics and packet headers included."""

    def __init__(self, session: MqttSession) -> None:
        self._session = session
        self.artifact_bytes = self.other_bytes = 0
        self.subscribe, self.unsubscribe = session.subscribe, session.unsubscribe

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> Delivery:
        # Fixed header (1 + up to 3 of length), topic length and packet id.
        num_bytes = 8 + len(topic) + len(payload)
        if "/artifacts/" in topic or "/manifests/" in topic:
            self.artifact_bytes += num_bytes
        else:
            self.other_bytes += num_bytes
        return self._session.publish(topic, payload, qos=qos, retain=retain)


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivered:
    """One delivery to a whole fleet."""

    num_subscribers: int
    last_s: float
    retained_bytes: int
    idle_rss_bytes: int
    peak_rss_bytes: int
    broker_cpu_s: float
    subscribers_cpu_s: float
    artifact_bytes: int
    other_bytes: int


def deliver(
    folder: Path, registry: Registry, manifest: artifact_pb2.Manifest, *, num_subscribers: int, processes: int
) -> Delivered:
    """Through a fresh broker, by the publisher, until the last subscriber verified the last block."""
    raw = artifact.encode_manifest(manifest)
    manifest_digest = registry.put(raw)
    key = trust.DirectorKey.generate()
    names = [f"gw-{n:04d}" for n in range(num_subscribers)]
    desired = {
        name: Shipment(
            device_id=name,
            digest=manifest.digest,
            manifest_digest=manifest_digest,
            payload=trust.sign_deployment(
                key,
                deployment_pb2.Deployment(
                    device_id=name,
                    workload=WORKLOAD,
                    profile=PROFILE,
                    generation=1,
                    digest=manifest.digest,
                    manifest_digest=manifest_digest,
                    issue_time=trust.timestamp(time.time()),
                ),
            ),
        )
        for name in names
    }
    with running_broker(folder) as broker, MqttSession(HOST, broker.port, "bench-cloud") as session:
        bus = CountingBus(session)
        state_path = folder / f"published-{broker.port}.json"
        publisher = Publisher(bus=bus, blobs=registry, state_path=state_path)
        session.subscribe(topics.ALL_REQUESTS, publisher.on_request)
        publisher.start()
        if not session.wait_connected(10):
            raise RuntimeError("the publisher found no broker")
        publisher.on_connected(True)
        with workers(subscribe_fleet, names, processes, broker.port, key.public_bytes) as pipes:
            idle_rss_bytes, cpu_s = broker.peak_rss_bytes, broker.cpu_s
            start_s = time.monotonic()
            publisher.set_desired(desired)
            ends = [answer(pipe) for pipe in pipes]
            last_s = max(end_s for end_s, _ in ends) - start_s
            found = Delivered(
                num_subscribers=num_subscribers,
                last_s=last_s,
                retained_bytes=bus.artifact_bytes + bus.other_bytes,
                idle_rss_bytes=idle_rss_bytes,
                peak_rss_bytes=broker.peak_rss_bytes,
                broker_cpu_s=broker.cpu_s - cpu_s,
                subscribers_cpu_s=sum(used_s for _, used_s in ends),
                artifact_bytes=bus.artifact_bytes,
                other_bytes=bus.other_bytes,
            )
        publisher.stop()
    return found


# --- subscribers ------------------------------------------------------------------------------------------


@contextmanager
def workers(
    target: Callable[..., None], items: list[Any], num: int, *args: object
) -> Iterator[list[Connection]]:
    """Processes that share the items; yields once each of them said that it is ready."""
    context = multiprocessing.get_context("spawn")
    shares = [share for n in range(num) if (share := items[n::num])]
    pipes, processes = [], []
    try:
        for share in shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=target, args=(theirs, share, *args), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            answer(pipe)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(20)
            if process.is_alive():
                process.kill()


def answer(pipe: Connection) -> Any:
    """What a worker says next. Raises ``RuntimeError`` when it does not within WAIT_S."""
    if not pipe.poll(WAIT_S):
        raise RuntimeError(f"a process of the benchmark said nothing for {WAIT_S:g} s")
    return pipe.recv()


class Subscriber:
    """One device: its session, and the agent's fetch on the session's thread."""

    def __init__(
        self, port: int, device_id: str, director_key: bytes, on_complete: Callable[[], None]
    ) -> None:
        self._device_id = device_id
        self._ring = {trust.key_id(director_key): director_key}
        self._on_complete = on_complete
        self._lock = threading.Lock()  # the timer is on another thread
        self._fetcher: Fetcher | None = None
        self.session = MqttSession(HOST, port, device_id, max_inflight=20)
        self.session.subscribe(topics.deployment(device_id), self._on_deployment)

    def _on_deployment(self, _topic: str, payload: bytes) -> None:
        deployment = trust.open_deployment(payload, self._ring, device_id=self._device_id, now_s=time.time())
        slot = Slot(
            generation=deployment.generation,
            digest=deployment.digest,
            manifest_digest=deployment.manifest_digest,
            workload=deployment.workload,
            profile=deployment.profile,
            signed=payload,
        )
        with self._lock:
            self._fetcher = Fetcher(slot, FetchSettings(), random.Random(self._device_id))
            self._carry_out(self._fetcher.begin_manifest(time.monotonic()))

    def _on_message(self, topic: str, payload: bytes) -> None:
        with self._lock:
            if self._fetcher is not None:
                self._carry_out(self._fetcher.on_message(topic, payload, time.monotonic()))

    def on_tick(self) -> None:
        with self._lock:
            if self._fetcher is not None:
                self._carry_out(self._fetcher.on_tick(time.monotonic()))

    def _carry_out(self, effects: list[fetch.FetchEffect]) -> None:
        assert self._fetcher is not None
        for effect in effects:
            match effect:
                case fetch.Subscribe(topic=topic):
                    self.session.subscribe(topic, self._on_message)
                case fetch.Unsubscribe(topic=topic):
                    self.session.unsubscribe(topic)
                case fetch.KeepManifest(manifest=manifest):
                    self._carry_out(self._fetcher.begin_blocks(BlockAssembler(manifest), time.monotonic()))
                    return
                case fetch.Request(manifest=manifest_too, blocks=blocks):
                    slot = self._fetcher.slot
                    message = deployment_pb2.BlockRequest(
                        device_id=self._device_id,
                        digest=slot.digest,
                        manifest_digest=slot.manifest_digest,
                        manifest=manifest_too,
                        blocks=blocks,
                    )
                    self.session.publish(topics.requests(self._device_id), message.SerializeToString())
                case fetch.KeepBlock():
                    pass
                case fetch.Complete():
                    self._on_complete()
                case fetch.Refuse(code=code, message=text):
                    raise RuntimeError(f"{self._device_id}: {code}: {text}")


def subscribe_fleet(pipe: Connection, names: list[str], port: int, director_key: bytes) -> None:
    """A worker: connects its devices, says ready, and then when the last of them was complete."""
    lock, num_complete, done = threading.Lock(), 0, threading.Event()

    def on_complete() -> None:
        nonlocal num_complete
        with lock:
            num_complete += 1
            if num_complete == len(names):
                done.set()

    devices = [Subscriber(port, name, director_key, on_complete) for name in names]
    for device in devices:
        device.session.start()
    for device in devices:
        if not device.session.wait_connected(30):
            raise RuntimeError("a subscriber found no broker")
    used_s = time.process_time()
    pipe.send("ready")
    while not done.wait(0.5):
        for device in devices:
            device.on_tick()
    pipe.send((time.monotonic(), time.process_time() - used_s))
    for device in devices:
        device.session.close(1.0)


# --- the peer: a sender without any protocol --------------------------------------------------------


def send_raw(path: Path, *, num_subscribers: int, processes: int, hashing: bool) -> tuple[float, float]:
    """One thread serves the file to so many sockets at once with sendfile(2).

    Returns the seconds until the last receiver had it, and the CPU seconds of the sender.
    """
    size_bytes = path.stat().st_size
    with socket.create_server((HOST, 0), backlog=num_subscribers) as server, path.open("rb") as file:
        port = server.getsockname()[1]
        with workers(
            receive_raw, list(range(num_subscribers)), processes, port, size_bytes, hashing
        ) as pipes:
            sockets = [server.accept()[0] for _ in range(num_subscribers)]
            start_s, cpu_s = time.monotonic(), time.process_time()
            with selectors.DefaultSelector() as selector:
                offsets = dict.fromkeys(sockets, 0)
                for sock in sockets:
                    sock.setblocking(False)
                    selector.register(sock, selectors.EVENT_WRITE, sock)
                while offsets:
                    for key, _ in selector.select():
                        sock = key.data
                        offset = offsets[sock]
                        offsets[sock] += os.sendfile(sock.fileno(), file.fileno(), offset, PIECE_BYTES)
                        if offsets[sock] >= size_bytes:
                            selector.unregister(sock)
                            del offsets[sock]
            cpu_s = time.process_time() - cpu_s
            last_s = max(answer(pipe) for pipe in pipes) - start_s
            for sock in sockets:
                sock.close()
    return last_s, cpu_s


def receive_raw(pipe: Connection, share: list[int], port: int, size_bytes: int, hashing: bool) -> None:
    """A worker: takes what comes on its sockets and, where asked, hashes each piece as a block."""
    sockets = [socket.create_connection((HOST, port), timeout=30) for _ in share]
    pipe.send("ready")
    missing = dict.fromkeys(sockets, size_bytes)
    buffer = memoryview(bytearray(PIECE_BYTES))
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ, sock)
        while missing:
            for key, _ in selector.select():
                sock = key.data
                num_bytes = sock.recv_into(buffer)
                if hashing:
                    hashlib.sha256(buffer[:num_bytes]).digest()
                missing[sock] -= num_bytes
                if missing[sock] <= 0:
                    selector.unregister(sock)
                    del missing[sock]
    pipe.send(time.monotonic())
    for sock in sockets:
        sock.close()
