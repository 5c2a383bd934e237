"""Agents and brokers that are killed at random moments, again and again.

CI takes as many kills as fit; EDGELOOP_KILLS=200 and EDGELOOP_BROKER_KILLS=100 take more.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from agent_harness import NUM_INPUTS, AgentProcess, Cloud, Shipment, make_model, ship
from machine import wait_until

from cloud import shipment
from cloud.publisher import Publisher
from edge_agent.journal import Journal
from edge_agent.update_state import UpdateState
from edge_agent.verify import check_state
from edgeloop import artifact, delta, topics, trust
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


class Stock:
    """Models that share two fifths of their bytes, and deltas between them, published when they are made."""

    NUM_HIDDEN = 8192

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._offers: dict[tuple[str, str], deployment_pb2.Delta] = {}
        self.models: dict[str, Shipment] = {}

    def make(self) -> Shipment:
        """Some 20 blocks; a delta to another one has two blocks of its own."""
        data = make_model(1, num_hidden=self.NUM_HIDDEN)
        weights = np.random.default_rng(1).normal(size=(NUM_INPUTS, self.NUM_HIDDEN)).astype(np.float32)
        start = data.index(weights.tobytes())
        other = np.random.default_rng(2 + len(self.models)).normal(size=weights.size * 3 // 4)
        changed = other.astype(np.float32).tobytes()
        model = ship(data[:start] + changed + data[start + len(changed) :], block_size_bytes=32 * 1024)
        self._cloud.publish(model)
        self.models[model.digest] = model
        return model

    def to_be_fetched(self, state: UpdateState) -> Shipment:
        """One that the device neither has nor refuses: three are enough until it quarantines one."""
        known = {slot.digest for slot in state.kept} | set(state.quarantine)
        return (
            next((model for digest, model in self.models.items() if digest not in known), None) or self.make()
        )

    def offer(self, base_digest: str, target: Shipment) -> deployment_pb2.Delta:
        pair = (base_digest, target.digest)
        if pair not in self._offers:
            data = delta.make_delta(self.models[base_digest].data, target.data)
            self._offers[pair] = offer = delta.make_offer(base_digest, data)
            assert len(offer.block_digests) > 1
            for n, block in enumerate(artifact.split_blocks(data)):
                self._cloud.put(topics.block(offer.digest, n), block)
        return self._offers[pair]


@pytest.mark.slow  # each kill costs a start of the agent
@pytest.mark.timeout(max(420, 20 * NUM_KILLS))
def test_random_kills_of_the_agent_during_updates_brick_none(cloud: Cloud, tmp_path: Path) -> None:
    """Most updates offer a delta as well. Every fourth kill waits until blocks of one are on the disk."""
    rng = random.Random(11)
    stock = Stock(cloud)
    first = stock.make()
    agent = AgentProcess(cloud, tmp_path, rate_hz="200", trial_requests="20", log_level="info")
    cloud.deploy("gw-1", first, 1)
    agent.start().wait_state("active", 1)
    state = Journal(agent.state_dir).load()
    seen, generation, num_offered, num_in_delta = 1, 1, 0, 0
    for number in range(NUM_KILLS):
        is_aimed = number % 4 == 2
        partial: Path | None = None
        if number % 2 == 0 or rng.random() < 0.3:
            generation += 1
            target = stock.to_be_fetched(state)
            assert state.committed is not None
            offer = None
            if is_aimed or rng.random() < 0.5:
                offer = stock.offer(state.committed.digest, target)
                partial = agent.state_dir / "blobs" / "partial" / offer.digest
                num_offered += 1
            cloud.deploy("gw-1", target, generation, delta=offer)
        if is_aimed and partial is not None:
            until_s = time.monotonic() + 20
            while time.monotonic() < until_s and not partial.exists():
                time.sleep(0.001)
            # At its first block, or somewhat later: between two, or while it is applied.
            time.sleep(rng.choice((0.0, rng.uniform(0.0, 0.03))))
        else:
            time.sleep(rng.uniform(0.0, 2.3))
        agent.kill()
        num_in_delta += partial is not None and partial.exists()
        state = Journal(agent.state_dir).load()
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
    assert status["serving_digest"] in stock.models
    assert status["code"] in ("", "crash-loop", "digest-quarantined"), status
    # And both ways are gone to the end, once more without a kill.
    base = status["serving_digest"]
    for by_delta in (False, True):
        generation += 1
        fresh = stock.make()
        cloud.deploy("gw-1", fresh, generation, delta=stock.offer(base, fresh) if by_delta else None)
        base = agent.wait_state("active", generation)["serving_digest"]
        assert base == fresh.digest
    num_offered += 1
    log = agent.log
    num_whole, num_deltas = log.count("made of its blocks"), log.count("made of a delta")
    num_given_up = log.count("code=delta-interrupted")
    print(
        f"{generation} updates, {num_offered} offer a delta: {num_whole} came whole, {num_deltas} by it; "
        f"{num_in_delta} kills in a delta, {num_given_up} while it was applied; {len(stock.models)} models"
    )
    # On a busy machine most starts are killed before they have fetched anything.
    assert num_whole >= 2
    assert num_deltas >= 1
    assert num_in_delta >= max(1, NUM_KILLS // 20)
    agent.stop()
    wait_until(lambda: "ACTIVE" in cloud.fleet.states(generation), what="the cloud to hear of the last one")
    for number in range(1, generation + 1):
        endings = TERMINAL & set(cloud.fleet.states(number))
        # A committed model that three starts in a row did not survive is taken back: the one second ending.
        assert len(endings) <= 1 or endings == {"ACTIVE", "ROLLED_BACK"}, (number, endings)


class Blobs:
    def __init__(self, *shipments: Shipment) -> None:
        self._blobs: dict[str, bytes] = {}
        for each in shipments:
            self._blobs |= {each.digest: each.data, each.manifest_digest: each.raw_manifest}

    def get(self, digest: str) -> bytes:
        if digest not in self._blobs:
            raise RejectedError(f"{digest} is missing", code="registry-missing")
        return self._blobs[digest]


@pytest.mark.slow  # each kill waits for agents to connect again
@pytest.mark.timeout(max(420, 30 * NUM_BROKER_KILLS))
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
    desired: dict[str, shipment.Shipment] = {}
    try:
        for number in range(NUM_BROKER_KILLS):
            # The rollout goes on, one device after the other, while the broker dies and comes back empty.
            name = names[number % 2]
            generations[name] += 1
            model = models[generations[name] % 3]
            desired[name] = shipment.Shipment(
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
        # What was not answered in time is sent again as it was; what happened again has a time of its own.
        once = {s.SerializeToString(deterministic=True): s for s in cloud.fleet.statuses}
        said = [(s.device_id, s.generation, s.state) for s in once.values()]
    for name in names:
        active = [
            g
            for device, g, state in said
            if (device, state) == (name, deployment_pb2.DEPLOYMENT_STATE_ACTIVE)
        ]
        assert active == sorted(set(active)), f"{name} applied a generation twice or out of order"
        assert active[-1:] == [generations[name]]
