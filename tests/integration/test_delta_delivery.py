"""A real agent, a real broker: an artifact made of a delta, and a delta that is a bomb."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard
from agent_harness import AgentProcess, Cloud, Shipment, make_model, ship

from edgeloop import artifact, delta, topics, trust
from edgeloop.v1 import deployment_pb2

pytestmark = pytest.mark.mosquitto


def deploy_with(cloud: Cloud, shipment: Shipment, generation: int, base: Shipment, data: bytes) -> None:
    offer = delta.make_offer(base.digest, data)
    for n, block in enumerate(artifact.split_blocks(data)):
        cloud.put(topics.block(offer.digest, n), block)
    deployment = deployment_pb2.Deployment(
        device_id="gw-1",
        workload="tiny",
        profile="small",
        generation=generation,
        digest=shipment.digest,
        manifest_digest=shipment.manifest_digest,
        delta=offer,
    )
    cloud.put(topics.deployment("gw-1"), trust.sign_deployment(cloud.key, deployment))


def test_a_delta_brings_a_model_and_a_bomb_costs_only_the_saving(cloud: Cloud, tmp_path: Path) -> None:
    first = ship(make_model(1, num_hidden=256))
    data = bytearray(first.data)
    data[-200:-196] = b"\0\0\0\0"  # one number of the last tensor
    second, third = ship(bytes(data)), ship(make_model(3, num_hidden=256))
    agent = AgentProcess(cloud, tmp_path)
    cloud.publish(first)
    cloud.deploy("gw-1", first, 1)
    agent.start().wait_state("active", 1)
    try:
        # None of its own blocks is anywhere.
        cloud.publish(second, without=frozenset(range(len(second.blocks))))
        deploy_with(cloud, second, 2, first, delta.make_delta(first.data, second.data))
        status = agent.wait_state("active", 2)
        assert status["serving_digest"] == second.digest
        assert (status["num_deltas"], status["num_deltas_given_up"]) == (1, 0)
        prefix = zstandard.ZstdCompressionDict(second.data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        bomb = zstandard.ZstdCompressor(dict_data=prefix).compress(bytes(1 << 27))
        cloud.publish(third)
        deploy_with(cloud, third, 3, second, bomb)
        status = agent.wait_state("active", 3)
        assert status["serving_digest"] == third.digest
        assert (status["num_deltas"], status["num_deltas_given_up"]) == (1, 1)
        assert "code=delta-size" in agent.log
    finally:
        agent.kill()
