"""A control plane, a broker and a real agent between gates, to be killed in a known state."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agent_harness import AgentProcess, Shipment, make_model, ship
from machine import free_port, wait_until
from test_serve import DIGITS, FLEET, WAIT_S, Served, await_that

from cloud.domain.candidates import Candidate, CandidateMetrics
from cloud.domain.devices import Deployment, DeploymentState
from cloud.domain.specs import CompressionSpec, Precision
from cloud.registry import Registry
from cloud.store import Store
from edge_agent.journal import Journal
from edgeloop import topics
from edgeloop.backoff import Backoff
from edgeloop.mqtt import MqttSession
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1 import deployment_pb2

DEVICE = "gw-1"
TERMINAL = {
    DeploymentState.ACTIVE,
    DeploymentState.REJECTED,
    DeploymentState.ROLLED_BACK,
    DeploymentState.SUPERSEDED,
}


class Gate:
    """A TCP relay in front of the broker that stops what goes to the agent after so many bytes."""

    def __init__(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._room = threading.Condition()
        self._left: float = float("inf")
        threading.Thread(target=self._accept, name="gate", daemon=True).start()

    def hold_after(self, num_bytes: float) -> None:
        with self._room:
            self._left = num_bytes
            self._room.notify_all()

    def open(self) -> None:
        self.hold_after(float("inf"))

    def close(self) -> None:
        self.open()
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._broker_port))
                except OSError:
                    near.close()
                    continue
                threading.Thread(target=self._copy, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._copy, args=(far, near, True), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                if down:
                    with self._room:
                        self._room.wait_for(lambda: self._left > 0)
                        self._left -= len(data)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Site:
    def __init__(self, folder: Path, mosquitto: Any) -> None:
        self.folder, self.mosquitto = folder, mosquitto
        flags = ("--broker", f"127.0.0.1:{mosquitto.port}", "--fleet-port", str(free_port()))
        self.plane = Served(folder / "plane", *flags)
        self.plane.start()
        self.plane.apply(DIGITS, FLEET)
        self.gate = Gate(mosquitto.port)
        cloud: Any = SimpleNamespace(
            server=self.plane.info["fleet"],
            broker=f"127.0.0.1:{self.gate.port}",
            key=SimpleNamespace(public_bytes=bytes.fromhex(self.plane.info["director_public_key"])),
        )
        # A trial of a second and a half, long enough to be killed in.
        self.agent = AgentProcess(
            cloud,
            folder,
            DEVICE,
            label="class=gateway",
            rate_hz="100",
            trial_requests="150",
            block_timeout_s="1",
        )
        self.store = Store(f"sqlite:///{self.plane.state_dir / 'edgeloop.db'}")
        self.heard: list[bytes] = []
        self.listener = MqttSession("127.0.0.1", mosquitto.port, "listener", backoff=Backoff(0.05, 0.3))
        self.listener.subscribe(topics.deployment(DEVICE), lambda _, payload: self.heard.append(payload))
        self.listener.start()
        self.agent.start()
        wait_until(self._is_connected, what="the agent to register")
        self._num_models = 0
        self.rollout_id = ""
        self.roll_out(self.new_model())
        self.settled(1)
        # Else there would be nothing to go back to, whichever test is the first.
        assert await_that(lambda: self.rollout_state == "succeeded"), self.rollout_state

    def _is_connected(self) -> bool:
        devices = self.plane.control.ListDevices(pb.ListDevicesRequest(), timeout=WAIT_S).devices
        return bool(devices) and devices[0].connected

    def close(self) -> None:
        self.gate.close()
        self.listener.close()
        with contextlib.suppress(AssertionError):
            self.agent.kill()
        self.store.close()
        if self.plane.process is not None and self.plane.process.poll() is None:
            self.plane.end(signal.SIGKILL)

    # --- what is rolled out -----------------------------------------------------------------------

    def new_model(self, *, golden_offset: float = 0.0) -> Shipment:
        """A student in the registry and the database, as if it had been built."""
        self._num_models += 1
        shipment = ship(
            make_model(100 + self._num_models),
            workload="digits",
            profile="gateway",
            golden_offset=golden_offset,
        )
        registry = Registry(str(self.plane.state_dir / "registry"))
        assert registry.put(shipment.data) == shipment.digest
        registry.put(shipment.raw_manifest)
        metrics = CandidateMetrics(
            accuracy=0.9,
            test_accuracy=0.9,
            latency_p50_ms=1.0,
            latency_p95_ms=1.1,
            reference_p50_ms=0.1,
            artifact_bytes=len(shipment.data),
            peak_rss_bytes=1 << 26,
            macs=1,
            num_parameters=1,
        )
        candidate = Candidate(
            digest=shipment.digest,
            manifest_digest=shipment.manifest_digest,
            workload="digits",
            profile="gateway",
            parent_digest="",
            spec=CompressionSpec(),
            precision=Precision.FP32,
            metrics=metrics,
        )
        self.store.save_candidate(candidate, time.time())
        return shipment

    def roll_out(self, shipment: Shipment) -> None:
        request = pb.StartRolloutRequest(
            profile="gateway", digest=shipment.digest, request_id=f"r{self._num_models}"
        )
        self.rollout_id = self.plane.control.StartRollout(request, timeout=WAIT_S).rollout.rollout_id

    @property
    def rollout_state(self) -> str:
        answer = self.plane.control.ListRollouts(pb.ListRolloutsRequest(), timeout=WAIT_S)
        (found,) = [rollout for rollout in answer.rollouts if rollout.rollout_id == self.rollout_id]
        return str(pb.RolloutState.Name(found.state)).removeprefix("ROLLOUT_STATE_").lower()

    # --- what is killed ---------------------------------------------------------------------------

    def kill(self, what: str) -> None:
        if what == "broker":
            self.mosquitto.kill()
        else:
            self.plane.end(signal.SIGKILL)

    def restart(self, what: str) -> None:
        if what == "broker":
            self.mosquitto.start()
        else:
            self.plane.start()

    # --- where it stands --------------------------------------------------------------------------

    @property
    def journal(self) -> tuple[str, int]:
        """State and generation that the agent holds itself to."""
        state = Journal(self.agent.state_dir).load()
        return state.state.value, state.generation

    @property
    def newest(self) -> Deployment:
        found = self.store.deployment(DEVICE)
        assert found is not None
        return found

    def settled(self, generation: int, state: str = "active") -> None:
        """The device ended this generation, and the cloud heard so."""
        self.agent.wait_state(state, generation, timeout_s=90)
        assert await_that(lambda: (self.newest.generation, self.newest.state) == (generation, state))

    def endings(self, generation: int) -> list[DeploymentState]:
        """The terminal states of which the cloud was told, each time that was news to it."""
        return [
            status.state
            for status in self.store.history(DEVICE)
            if status.generation == generation and status.state in TERMINAL
        ]

    def check_told_once(self) -> None:
        """Of each generation one signed document was ever heard, and none of a generation twice."""
        said: dict[int, set[bytes]] = {}
        for payload in filter(None, self.heard):
            signed = deployment_pb2.SignedDeployment.FromString(payload)
            generation = deployment_pb2.Deployment.FromString(signed.deployment).generation
            said.setdefault(generation, set()).add(signed.deployment)
        assert max(said) == self.newest.generation
        assert {generation: len(documents) for generation, documents in said.items()} == dict.fromkeys(
            said, 1
        )
