"""The control plane and the broker, killed while a real agent or its rollout is in each of its states.

One site for all cases: ``edgeloop serve``, Mosquitto with persistence off and ``edgeloop-agent run``, each a
process. A case brings the update into a state and holds it there, kills with SIGKILL, looks that the state
was really hit, starts again, lets go, and then wants one generation, one terminal state and one report of it.
(The agent itself, killed in each state: tests/unit/edge_agent/test_agent_update.py.)
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from agent_harness import AgentProcess, Shipment, make_model, ship
from machine import dying_with_us, free_port, missing, wait_until
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

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow, pytest.mark.timeout(420)]

DEVICE = "gw-1"
STATES = ("pending", "fetching", "verifying", "testing", "trial", "active")
KILLED = ("control plane", "broker")
SELF_TEST = "edge_agent.selftest"
TERMINAL = {
    DeploymentState.ACTIVE,
    DeploymentState.REJECTED,
    DeploymentState.ROLLED_BACK,
    DeploymentState.SUPERSEDED,
}
#: Deployment and manifest pass, and about half of the blocks.
HALF_BYTES = 80_000


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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, module_mosquitto: Any) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("killed"), module_mosquitto)
    yield made
    made.close()


# --- holds: each brings the update into a state, and returns what lets it go on -----


def hold_pending(site: Site, shipment: Shipment, generation: int) -> Callable[[], None]:
    """The device hears nothing: its processor stands still."""
    let_go = stand_still(site)
    site.roll_out(shipment)
    assert await_that(lambda: site.newest.generation == generation)
    assert site.newest.state == "pending"
    return let_go


def stand_still(site: Site) -> Callable[[], None]:
    assert site.agent.process is not None
    site.agent.process.send_signal(signal.SIGSTOP)
    return lambda: site.agent.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]


def hold_fetching(site: Site, shipment: Shipment, generation: int) -> Callable[[], None]:
    site.gate.hold_after(HALF_BYTES)
    site.roll_out(shipment)
    partial = site.agent.state_dir / "blobs" / "partial" / shipment.digest
    wait_until(lambda: partial.exists() and len(list(partial.iterdir())) > 4, what="the first blocks")
    assert len(list(partial.iterdir())) < len(shipment.blocks)
    return site.gate.open


def hold_verifying(site: Site, shipment: Shipment, generation: int) -> Callable[[], None]:
    """The disk is slow: the second open of the artifact, which reads what was assembled, takes seconds."""
    strace = shutil.which("strace")
    if strace is None:
        missing("strace")
    assert strace is not None
    site.agent.stop()
    path = site.agent.state_dir / "blobs" / "artifacts" / shipment.digest
    slow = ("-e", "trace=openat", "-P", str(path), "-e", "inject=openat:delay_enter=5s:when=2")
    words = [strace, "-f", "-qq", *slow, "-o", "/dev/null", *dying_with_us(site.agent.command())]
    tracer = subprocess.Popen(dying_with_us(words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: list[psutil.Process] = []

    def has_agent() -> bool:
        with contextlib.suppress(psutil.Error):  # strace starts children of its own, which end at once
            found[:] = [
                child
                for child in psutil.Process(tracer.pid).children()
                if "edge_agent.cli" in child.cmdline() and "strace" not in child.name()
            ]
        return bool(found)

    wait_until(has_agent, what="the agent to start")
    agent = found[0]
    site.agent.process = SimpleNamespace(  # type: ignore[assignment]
        pid=agent.pid,
        poll=tracer.poll,
        wait=tracer.wait,
        kill=agent.kill,
        send_signal=agent.send_signal,
    )
    site.agent.wait(lambda status: status["server_connected"] and status["broker_connected"])
    site.roll_out(shipment)

    def let_go() -> None:
        """It ends by itself; from then on without the slow disk."""
        site.agent.wait_state("active", generation, timeout_s=90)
        site.agent.stop()
        site.agent.start()

    return let_go


def hold_testing(site: Site, shipment: Shipment, generation: int) -> Callable[[], None]:
    """The process that tries the model stands still, and for so long as it does nothing is tried."""
    assert site.agent.process is not None
    agent, children = psutil.Process(site.agent.process.pid), []
    site.roll_out(shipment)

    def has_child() -> bool:
        with contextlib.suppress(psutil.Error):
            children[:] = [child for child in agent.children() if SELF_TEST in " ".join(child.cmdline())]
        return bool(children)

    wait_until(has_child, what=lambda: f"the self-test: {site.journal}")
    children[0].suspend()
    return children[0].resume


def hold_nothing(site: Site, shipment: Shipment, generation: int) -> Callable[[], None]:
    site.roll_out(shipment)
    return lambda: None


HOLDS = {
    "pending": hold_pending,
    "fetching": hold_fetching,
    "verifying": hold_verifying,
    "testing": hold_testing,
    "trial": hold_nothing,  # it lasts a second and a half: time enough to stop the device in it
    "active": hold_nothing,
}


@pytest.mark.parametrize("killed", KILLED)
@pytest.mark.parametrize("state", STATES)
def test_killed_in_a_state_of_the_device(site: Site, state: str, killed: str) -> None:
    generation = site.newest.generation + 1
    shipment = site.new_model()
    let_go = HOLDS[state](site, shipment, generation)
    hit = ("active", generation - 1) if state == "pending" else (state, generation)
    until_s = time.monotonic() + 60
    while site.journal != hit:
        assert time.monotonic() < until_s, f"never {hit}, but {site.journal}\n{site.agent.log[-3000:]}"
        time.sleep(0.002)
    if state == "trial":
        let_go = stand_still(site)
    site.kill(killed)
    # The device was in that state when the other died, and is so still.
    assert site.journal == hit
    if state == "pending":
        assert site.newest.state == "pending"
    site.restart(killed)
    let_go()

    site.settled(generation)
    assert site.agent.status()["serving_digest"] == shipment.digest
    assert site.agent.status()["num_errors"] == 0
    assert await_that(lambda: site.rollout_state == "succeeded"), site.rollout_state
    assert site.newest.generation == generation
    assert site.endings(generation) == [DeploymentState.ACTIVE]
    site.check_told_once()


@pytest.mark.parametrize("killed", KILLED)
def test_killed_while_a_rollout_is_paused(site: Site, killed: str) -> None:
    generation = site.newest.generation + 1
    let_go = hold_fetching(site, site.new_model(), generation)
    site.plane.control.PauseRollout(pb.PauseRolloutRequest(rollout_id=site.rollout_id), timeout=WAIT_S)
    site.kill(killed)
    assert site.journal == ("fetching", generation)
    site.restart(killed)
    assert site.rollout_state == "paused"
    let_go()
    # What the device was told goes on; what the rollout does next waits for a person.
    site.settled(generation)
    assert site.rollout_state == "paused"
    site.plane.control.ResumeRollout(pb.ResumeRolloutRequest(rollout_id=site.rollout_id), timeout=WAIT_S)
    assert await_that(lambda: site.rollout_state == "succeeded"), site.rollout_state
    assert site.endings(generation) == [DeploymentState.ACTIVE]
    site.check_told_once()


@pytest.mark.parametrize("killed", KILLED)
def test_killed_as_a_rollout_is_aborted(site: Site, killed: str) -> None:
    generation = site.newest.generation + 1
    before = site.newest.digest
    let_go = hold_fetching(site, site.new_model(), generation)
    site.plane.control.AbortRollout(pb.AbortRolloutRequest(rollout_id=site.rollout_id), timeout=WAIT_S)
    site.kill(killed)
    assert site.journal == ("fetching", generation)
    site.restart(killed)
    assert site.rollout_state == "aborted"
    let_go()
    # The old content under a new generation, once.
    site.settled(generation + 1)
    assert site.newest.digest == before
    assert site.agent.status()["serving_digest"] == before
    assert await_that(lambda: len(site.endings(generation)) == 1)
    assert site.endings(generation) == [DeploymentState.SUPERSEDED]
    assert site.endings(generation + 1) == [DeploymentState.ACTIVE]
    site.check_told_once()


@pytest.mark.parametrize("killed", KILLED)
def test_killed_as_a_rollout_fails(site: Site, killed: str) -> None:
    generation = site.newest.generation + 1
    before = site.newest.digest
    site.roll_out(site.new_model(golden_offset=1.0))
    assert await_that(lambda: site.rollout_state == "failed"), site.rollout_state
    site.kill(killed)
    site.restart(killed)
    site.settled(generation + 1)
    assert site.newest.digest == before
    assert site.agent.status()["serving_digest"] == before
    assert site.endings(generation) == [DeploymentState.REJECTED]
    assert site.endings(generation + 1) == [DeploymentState.ACTIVE]
    assert site.rollout_state == "failed"
    site.check_told_once()


@pytest.mark.parametrize("killed", KILLED)
def test_killed_after_a_rollout_succeeded(site: Site, killed: str) -> None:
    generation = site.newest.generation + 1
    site.roll_out(site.new_model())
    assert await_that(lambda: site.rollout_state == "succeeded"), site.rollout_state
    num_heard = len(site.heard)
    site.kill(killed)
    site.restart(killed)
    # Either is told anew what holds; nothing else comes of it.
    if killed == "broker":
        wait_until(lambda: len(site.heard) > num_heard, what="the deployment on the emptied broker")
    site.agent.wait(lambda status: status["server_connected"] and status["broker_connected"])
    time.sleep(1.0)  # five steps of the control plane
    assert (site.newest.generation, site.newest.state) == (generation, "active")
    assert site.journal == ("active", generation)
    assert site.endings(generation) == [DeploymentState.ACTIVE]
    assert site.rollout_state == "succeeded"
    site.check_told_once()
