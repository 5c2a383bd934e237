"""Agents and brokers that are killed at random moments, again and again.

CI takes as many kills as fit; EDGELOOP_KILLS=200 and EDGELOOP_BROKER_KILLS=100 take more.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_harness import AgentProcess, Cloud, Shipment, make_model, ship
from machine import wait_until

from cloud import publisher
from cloud.publisher import Publisher
from edge_agent.journal import Journal
from edge_agent.verify import check_state
from edgeloop import trust
from edgeloop.backoff import Backoff
from edgeloop.errors import RejectedError
from edgeloop.mqtt import MqttSession
from edgeloop.v1 import deployment_pb2

pytestmark = pytest.mark.mosquitto

NUM_KILLS = int(os.environ.get("EDGELOOP_KILLS", "12"))
NUM_BROKER_KILLS = int(os.environ.get("EDGELOOP_BROKER_KILLS", "6"))
TERMINAL = {"ACTIVE", "REJECTED", "ROLLED_BACK", "SUPERSEDED"}


@pytest.fixture
def cloud(mosquitto) -> Iterator[Cloud]:
    cloud = Cloud(mosquitto.host, mosquitto.port)
    yield cloud
    cloud.close()


@pytest.mark.slow  # each kill costs a start of the agent
@pytest.mark.timeout(max(120, 12 * NUM_KILLS))
def test_random_kills_of_the_agent_during_updates_brick_none(cloud: Cloud, tmp_path: Path) -> None:
    rng = random.Random(11)
    models = [ship(make_model(seed)) for seed in (1, 2, 3)]
    digests = {model.digest for model in models}
    for model in models:
        cloud.publish(model)
    agent = AgentProcess(cloud, tmp_path, rate_hz="200", trial_requests="20", log_level="warning")
    cloud.deploy("gw-1", models[0], 1)
    agent.start().wait_state("active", 1)
    seen, generation, states = 1, 1, set()
    for number in range(NUM_KILLS):
        if number % 2 == 0 or rng.random() < 0.3:
            generation += 1
            cloud.deploy("gw-1", models[generation % 3], generation)
        time.sleep(rng.uniform(0.0, 2.5))
        agent.kill()
        state = Journal(agent.state_dir).load()
        states.add(state.state.value)
        assert state.generation >= seen
        seen = state.generation
        assert state.committed is not None
        assert {check.good for check in check_state(agent.state_dir, (cloud.key.public_bytes,))} == {True}
        agent.start()
    # Longer than the minute after which an agent loads what may have ended it, when it has nothing else.
    status = agent.wait(
        lambda status: (
            status["generation"] == generation
            and status["state"] in ("active", "rejected", "rolled-back")
            and status["serving_digest"] != ""
        ),
        timeout_s=120,
    )
    # Many kills in one risky state, or soon after starts on a committed model, are a crash loop by the rules,
    # and its digest is quarantined; a good model serves either way.
    assert status["serving_digest"] in digests
    assert status["code"] in ("", "crash-loop", "digest-quarantined"), status
    generation += 1
    fresh = ship(make_model(9))
    cloud.publish(fresh)
    cloud.deploy("gw-1", fresh, generation)
    assert agent.wait_state("active", generation, timeout_s=60)["serving_digest"] == fresh.digest
    agent.stop()
    wait_until(lambda: "ACTIVE" in cloud.fleet.states(generation), what="the cloud to hear of the last one")
    for number in range(1, generation + 1):
        endings = TERMINAL & set(cloud.fleet.states(number))
        # A committed model that three starts in a row did not survive is taken back: the one second ending.
        assert len(endings) <= 1 or endings == {"ACTIVE", "ROLLED_BACK"}, (number, endings)


class Blobs:
    def __init__(self, *shipments: Shipment) -> None:
        self._blobs: dict[str, bytes] = {}
        for shipment in shipments:
            self._blobs |= {shipment.digest: shipment.data, shipment.manifest_digest: shipment.raw_manifest}

    def get(self, digest: str) -> bytes:
        if digest not in self._blobs:
            raise RejectedError(f"{digest} is missing", code="registry-missing")
        return self._blobs[digest]


@pytest.mark.slow  # each kill waits for agents to connect again
@pytest.mark.timeout(max(120, 30 * NUM_BROKER_KILLS))
def test_kills_of_the_broker_during_a_rollout_lose_no_desired_state_and_apply_none_twice(
    cloud: Cloud, mosquitto, tmp_path: Path
) -> None:
    rng = random.Random(12)
    models = [ship(make_model(seed)) for seed in (1, 2, 3)]
    session = MqttSession(mosquitto.host, mosquitto.port, "test-cloud", backoff=Backoff(0.05, 0.5))
    keeper = Publisher(bus=session, blobs=Blobs(*models), state_path=tmp_path / "published.json")
    session.on_state(keeper.on_connected)
    session.subscribe("edgeloop/v1/devices/+/requests", keeper.on_request)
    keeper.start()
    session.start()
    names = ("gw-1", "gw-2")
    agents = [
        AgentProcess(cloud, tmp_path, name, rate_hz="100", trial_requests="5", log_level="warning").start()
        for name in names
    ]
    generations = dict.fromkeys(names, 0)
    desired: dict[str, publisher.Shipment] = {}
    try:
        for number in range(NUM_BROKER_KILLS):
            # The rollout goes on, one device after the other, while the broker dies and comes back empty.
            name = names[number % 2]
            generations[name] += 1
            model = models[generations[name] % 3]
            desired[name] = publisher.Shipment(
                device_id=name,
                digest=model.digest,
                manifest_digest=model.manifest_digest,
                payload=trust.sign_deployment(
                    cloud.key,
                    deployment_pb2.Deployment(
                        device_id=name,
                        workload="tiny",
                        profile="small",
                        generation=generations[name],
                        digest=model.digest,
                        manifest_digest=model.manifest_digest,
                    ),
                ),
            )
            keeper.set_desired(desired)
            time.sleep(rng.uniform(0.0, 1.0))
            mosquitto.kill()
            time.sleep(rng.uniform(0.0, 0.5))
            mosquitto.start()
        for agent, name in zip(agents, names, strict=True):
            status = agent.wait_state("active", generations[name], timeout_s=90)
            assert status["serving_digest"] == desired[name].digest
            assert agent.stop() == 0
    finally:
        for agent in agents:
            if agent.process is not None and agent.process.poll() is None:
                agent.kill()
        session.close()
        keeper.stop()
    with cloud.fleet.lock:
        said = [(s.device_id, s.generation, s.state) for s in cloud.fleet.statuses]
    for name in names:
        active = [
            g
            for device, g, state in said
            if (device, state) == (name, deployment_pb2.DEPLOYMENT_STATE_ACTIVE)
        ]
        assert active == sorted(set(active)), f"{name} applied a generation twice or out of order"
        assert active[-1:] == [generations[name]]
