"""The publisher on real brokers: whatever they forget comes back."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from machine import free_port, wait_until
from mosquitto_server import Mosquitto

from cloud.broker import EmbeddedBroker
from cloud.publisher import Publisher
from cloud.registry import Registry
from cloud.shipment import Shipment
from edgeloop import topics
from edgeloop.artifact import build_manifest, encode_manifest, golden_set
from edgeloop.backoff import Backoff
from edgeloop.mqtt import MqttSession
from edgeloop.v1 import artifact_pb2, deployment_pb2

WAIT_S = 60.0


@dataclass
class AnyBroker:
    """A broker that can be made to lose everything."""

    port: int
    wipe: Callable[[], None]


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyBroker]:
    if request.param == "mosquitto":
        mosquitto: Mosquitto = request.getfixturevalue("mosquitto")

        def wipe_mosquitto() -> None:
            mosquitto.kill()
            mosquitto.start()

        yield AnyBroker(mosquitto.port, wipe_mosquitto)
        return
    embedded = EmbeddedBroker(
        host="127.0.0.1", port=free_port(), work_dir=tmp_path, backoff=Backoff(0.05, 0.2)
    )
    embedded.start()

    def wipe_embedded() -> None:
        pid = embedded.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    yield AnyBroker(embedded.port, wipe_embedded)
    embedded.stop()


@dataclass
class Cloud:
    session: MqttSession
    publisher: Publisher
    registry: Registry

    def ship(self, *shipments: Shipment) -> None:
        self.publisher.set_desired({item.device_id: item for item in shipments})
        assert self.publisher.wait_settled(WAIT_S)

    def make(self, seed: int, size_bytes: int = 700_000) -> tuple[str, str]:
        data = np.random.default_rng(seed).bytes(size_bytes)
        tensor = artifact_pb2.TensorSpec(name="x", datatype="FP32", shape=[0, 2])
        manifest = build_manifest(
            data,
            workload="digits",
            profile="gateway",
            precision=artifact_pb2.PRECISION_INT8,
            inputs=[tensor],
            outputs=[tensor],
            golden=golden_set(np.zeros((1, 2)), np.zeros((1, 2)), absolute_tolerance=0.1),
            accuracy=0.9,
        )
        return self.registry.put(data), self.registry.put(encode_manifest(manifest))


@pytest.fixture
def cloud(broker: AnyBroker, tmp_path: Path) -> Iterator[Cloud]:
    session = MqttSession("127.0.0.1", broker.port, "cloud", backoff=Backoff(0.05, 0.3))
    registry = Registry(str(tmp_path / "registry"))
    publisher = Publisher(bus=session, blobs=registry, state_path=tmp_path / "published.json")
    session.on_state(publisher.on_connected)
    session.subscribe(topics.ALL_REQUESTS, publisher.on_request)
    publisher.start()
    session.start()
    assert session.wait_connected(WAIT_S)
    yield Cloud(session, publisher, registry)
    session.close()
    publisher.stop()


def fetch(broker: AnyBroker, names: list[str], *, gone: Iterable[str] = ()) -> dict[str, bytes]:
    """What a device gets that subscribes to exactly these topics, once all are there but those that are gone.

    For what is gone it listens for half a second more.
    """
    heard: dict[str, bytes] = {}
    with MqttSession("127.0.0.1", broker.port, "reader", backoff=Backoff(0.05, 0.3)) as session:
        assert session.wait_connected(WAIT_S), session.last_error
        for name in sorted(names, key=lambda name: name not in gone):
            session.subscribe(name, lambda topic, payload: heard.update({topic: payload}))
        wanted = set(names) - set(gone)
        wait_until(lambda: wanted <= set(heard), what=lambda: f"{wanted - set(heard)}")
        if gone:
            time.sleep(0.5)
    return heard


def everything_of(artifact: tuple[str, str], device_id: str) -> list[str]:
    digest, manifest_digest = artifact
    blocks = [topics.block(digest, number) for number in range(3)]
    return [*blocks, topics.manifest(manifest_digest), topics.deployment(device_id)]


def check_whole(broker: AnyBroker, artifact: tuple[str, str]) -> None:
    found = fetch(broker, everything_of(artifact, "gw-1"))
    whole = b"".join(found[topics.block(artifact[0], number)] for number in range(3))
    assert hashlib.sha256(whole).hexdigest() == artifact[0]
    assert hashlib.sha256(found[topics.manifest(artifact[1])]).hexdigest() == artifact[1]
    assert found[topics.deployment("gw-1")] == b"signed"


def shipment(artifact: tuple[str, str]) -> Shipment:
    return Shipment(device_id="gw-1", digest=artifact[0], manifest_digest=artifact[1], payload=b"signed")


def test_a_device_can_fetch_what_was_shipped(cloud: Cloud, broker: AnyBroker) -> None:
    artifact = cloud.make(1)
    cloud.ship(shipment(artifact))
    check_whole(broker, artifact)


def test_what_a_deleted_device_left_is_gone_from_the_broker(cloud: Cloud, broker: AnyBroker) -> None:
    artifact = cloud.make(1)
    gone = [replace(shipment(artifact), device_id="gone", workload=name) for name in ("digits", "sounds")]
    cloud.publisher.set_desired({item.topic: item for item in [shipment(artifact), *gone]})
    assert cloud.publisher.wait_settled(WAIT_S)
    left = [item.topic for item in gone]
    assert set(fetch(broker, left)) == set(left)
    cleared: list[str] = []
    cloud.publisher.clear(left, lambda: cleared.append("cleared"))
    cloud.ship(shipment(artifact))
    assert cleared == ["cleared"]
    found = fetch(broker, [*left, shipment(artifact).topic], gone=left)
    assert set(found) == {shipment(artifact).topic}


def test_a_broker_that_loses_everything_gets_it_again(cloud: Cloud, broker: AnyBroker) -> None:
    artifact = cloud.make(1)
    cloud.ship(shipment(artifact))
    broker.wipe()
    check_whole(broker, artifact)


def test_a_broker_that_dies_in_the_middle_of_a_transfer_has_all_in_the_end(
    cloud: Cloud, broker: AnyBroker
) -> None:
    artifact = cloud.make(1)
    big = cloud.make(2, 20_000_000)
    cloud.publisher.set_desired(
        {
            "gw-1": shipment(artifact),
            "gw-2": Shipment(device_id="gw-2", digest=big[0], manifest_digest=big[1], payload=b"big"),
        }
    )
    time.sleep(0.05)
    broker.wipe()
    assert cloud.publisher.wait_settled(WAIT_S)
    check_whole(broker, artifact)
    last = topics.block(big[0], 20_000_000 // (256 * 1024))
    assert set(fetch(broker, [last, topics.deployment("gw-2")])) == {last, topics.deployment("gw-2")}


def test_what_nobody_should_run_is_gone_from_the_broker(cloud: Cloud, broker: AnyBroker) -> None:
    old, new = cloud.make(1), cloud.make(2)
    cloud.ship(shipment(old))
    cloud.ship(shipment(new))
    cleared = [name for name in everything_of(old, "gw-1") if name != topics.deployment("gw-1")]
    left = fetch(broker, everything_of(old, "gw-1"), gone=cleared)
    assert set(left) == {topics.deployment("gw-1")}
    check_whole(broker, new)


def test_a_block_that_vanished_is_there_again_when_a_device_asks(cloud: Cloud, broker: AnyBroker) -> None:
    artifact = cloud.make(1)
    cloud.ship(shipment(artifact))
    lost = topics.block(artifact[0], 1)
    with MqttSession("127.0.0.1", broker.port, "gw-1", backoff=Backoff(0.05, 0.3)) as device:
        assert device.wait_connected(WAIT_S)
        device.publish(lost, b"", retain=True).wait(WAIT_S)
        assert fetch(broker, [lost], gone=[lost]) == {}
        ask = deployment_pb2.BlockRequest(device_id="gw-1", digest=artifact[0], blocks=[1])
        device.publish(topics.requests("gw-1"), ask.SerializeToString()).wait(WAIT_S)
        check_whole(broker, artifact)
