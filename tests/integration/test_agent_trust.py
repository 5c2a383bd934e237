"""Who a running agent obeys: keys that rotate under it, and lies that the cloud hears about."""

from __future__ import annotations

import time

import pytest
from agent_harness import AgentProcess, Cloud, make_model, ship
from machine import wait_until

from cloud.director_keys import CHAIN_FILE, KEY_FILE, retire, rotate
from edgeloop import topics, trust
from edgeloop.v1 import deployment_pb2

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def good(cloud: Cloud, agent: AgentProcess):
    """The model of generation 1, which the running agent serves."""
    shipment = ship(make_model(1))
    cloud.publish(shipment)
    cloud.deploy("gw-1", shipment, 1)
    agent.start().wait_state("active", 1)
    return shipment


def test_a_drill_of_key_rotation_with_an_agent_that_is_never_touched(cloud, agent, good, tmp_path) -> None:
    first, folder = cloud.key, tmp_path / "control-plane"
    folder.mkdir()
    first.save(folder / KEY_FILE)
    second_model = ship(make_model(2))
    cloud.publish(second_model)

    # The overlap: the new key's word counts, whichever topic is heard first, and the old key's still does.
    rotate(folder, now_s=time.time())
    cloud.key = trust.DirectorKey.load(folder / KEY_FILE)
    cloud.deploy("gw-1", second_model, 2)
    wait_until(lambda: "signature-unknown-key" in agent.log, what="the new key to be unknown at first")
    cloud.put(topics.DIRECTOR_KEYS, (folder / CHAIN_FILE).read_bytes())
    agent.wait_state("active", 2)
    new, cloud.key = cloud.key, first
    cloud.deploy("gw-1", good, 3)
    agent.wait_state("active", 3)

    # The end: while the agent is away the old key is retired, and a thief of it is not obeyed.
    agent.kill()
    retire(folder, now_s=time.time())
    cloud.put(topics.DIRECTOR_KEYS, (folder / CHAIN_FILE).read_bytes())
    agent.start()
    wait_until(lambda: "director keys version=2" in agent.log, what="the retired key to be known")
    cloud.deploy("gw-1", second_model, 4)
    wait_until(lambda: "signature-unknown-key" in cloud.fleet.codes(0), what="the cloud to hear of the thief")
    assert agent.status()["serving_digest"] == good.digest
    cloud.key = new
    cloud.deploy("gw-1", second_model, 5)
    assert agent.wait_state("active", 5)["serving_digest"] == second_model.digest


def test_each_refusal_has_its_code_in_the_cloud_and_the_old_model_serves(cloud, agent, good) -> None:
    other = ship(make_model(2))
    cloud.publish(other)
    cloud.deploy("gw-1", good, 2)
    agent.wait_state("active", 2)

    def said(key: trust.DirectorKey = cloud.key, *, device_id: str = "gw-1", **fields: object) -> bytes:
        values = {
            "device_id": device_id,
            "workload": "tiny",
            "profile": "small",
            "generation": 9,
            "digest": other.digest,
            "manifest_digest": other.manifest_digest,
            **fields,
        }
        return trust.sign_deployment(key, deployment_pb2.Deployment(**values))

    where = topics.deployment("gw-1")
    genuine = said()
    for payload, generation, code in (
        (said(trust.DirectorKey.generate()), 0, "signature-unknown-key"),
        (genuine[:-1] + bytes([genuine[-1] ^ 1]), 0, "signature-invalid"),
        (said(device_id="gw-2"), 0, "deployment-wrong-device"),
        (b"\xff" * 100, 0, "deployment-field"),
        (said(expire_time=trust.timestamp(time.time() - 1)), 9, "deployment-expired"),
        (said(generation=1), 1, "generation-old"),
        (said(generation=2), 2, "generation-old"),
    ):
        cloud.put(where, payload)
        if code == "generation-old" and generation == 2:
            continue  # within the quiet time after the one before
        wait_until(
            lambda code=code, generation=generation: code in cloud.fleet.codes(generation),
            what=code,
        )
        assert "REFUSED" in cloud.fleet.states(generation)
    status = agent.status()
    assert (status["state"], status["generation"], status["serving_digest"]) == ("active", 2, good.digest)
    # The device is not stuck either.
    cloud.deploy("gw-1", other, 10)
    agent.wait_state("active", 10)
