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
import subprocess
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from agent_harness import Shipment
from killed_site import Site
from machine import dying_with_us, missing, wait_until
from test_serve import WAIT_S, await_that

from cloud.domain.devices import DeploymentState
from edgeloop.v1 import control_service_pb2 as pb

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow, pytest.mark.timeout(420)]
STATES = ("pending", "fetching", "verifying", "testing", "trial", "active")
KILLED = ("control plane", "broker")
SELF_TEST = "edge_agent.selftest"
#: Deployment and manifest pass, and about half of the blocks.
HALF_BYTES = 80_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, module_mosquitto: Any) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("killed"), module_mosquitto)
    yield made
    made.close()


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
