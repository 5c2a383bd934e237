"""The real publisher, in a process that is killed right after each of its messages, on a real broker.

Whatever is retained then, nothing is half there: who reads a deployment finds every block of it, and the next
start completes what is missing. The two ways to lose this are a deployment before its blocks, and a message
that no file names, which nobody would ever clear.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from agent_harness import Shipment, make_model, ship

from cloud.registry import Registry
from edgeloop import artifact, topics
from edgeloop.mqtt import MqttSession

pytestmark = pytest.mark.mosquitto

DELTA = np.random.default_rng(5).bytes(artifact.BLOCK_SIZE_BYTES + 10)
#: Three blocks (1 to 3), manifest (4), the delta's two (5, 6), deployment (7), what clears the one before.
KILLED_AFTER = (1, 3, 4, 6, 7, 8)

CHILD = """
import json, os, signal, sys
from pathlib import Path
from cloud.publisher import Publisher
from cloud.shipment import Shipment
from cloud.registry import Registry
from edgeloop.mqtt import MqttSession

host, port, folder, shipment, kill_after = json.loads(sys.argv[1])

class Dying(MqttSession):
    num = 0
    def publish(self, topic, payload, *, qos=1, retain=False):
        sent = super().publish(topic, payload, qos=qos, retain=retain)
        Dying.num += 1
        if Dying.num == kill_after:
            sent.wait(60)  # it is out, and nothing after it ever will be
            os.kill(os.getpid(), signal.SIGKILL)
        return sent

session = Dying(host, port, "publisher")
registry = Registry(str(Path(folder) / "registry"))
publisher = Publisher(
    bus=session, blobs=registry, deltas=registry, state_path=Path(folder) / "published.json"
)
session.on_state(publisher.on_connected)
shipment["payload"] = shipment["payload"].encode()
publisher.set_desired({shipment["device_id"]: Shipment(**shipment)})
publisher.start()
session.start()
assert session.wait_connected(60)
assert publisher.wait_settled(60)
publisher.stop()
session.close()
"""


class Scene:
    def __init__(self, folder: Path, host: str, port: int) -> None:
        self.folder, self.host, self.port = folder, host, port
        self.registry = Registry(str(folder / "registry"))
        self.delta = self.registry.put(DELTA)

    def publish(self, device_id: str, shipment: Shipment, *, kill_after: int) -> int:
        told = {
            "device_id": device_id,
            "digest": shipment.digest,
            "manifest_digest": shipment.manifest_digest,
            "payload": f"signed for {device_id}",
            "delta": self.delta,
        }
        words = json.dumps([self.host, self.port, str(self.folder), told, kill_after])
        return subprocess.run([sys.executable, "-c", CHILD, words], timeout=120, check=False).returncode

    def retained(self, wanted: Iterable[str]) -> dict[str, bytes]:
        """What a device would find under these topics now."""
        found: dict[str, bytes] = {}
        answered = threading.Event()
        with MqttSession(self.host, self.port, "reader") as session:
            assert session.wait_connected(60)
            for topic in wanted:
                session.subscribe(topic, found.__setitem__)
            # Behind them in the broker's order: when it is heard, so were they.
            session.publish("edgeloop/v1/test-end", b"end", retain=True).wait(60)
            session.subscribe("edgeloop/v1/test-end", lambda *_: answered.set())
            assert answered.wait(60)
        return found


def test_a_publisher_that_is_killed_after_any_message_leaves_nothing_half_there(mosquitto, tmp_path) -> None:
    scene = Scene(tmp_path, mosquitto.host, mosquitto.port)
    num_with_deployment = 0
    for number in KILLED_AFTER:
        device_id = f"gw-{number}"
        shipment = ship(make_model(number, num_hidden=120))
        assert len(shipment.blocks) == 3
        assert {scene.registry.put(shipment.data), scene.registry.put(shipment.raw_manifest)} == {
            shipment.digest,
            shipment.manifest_digest,
        }
        whole = {topics.block(shipment.digest, n): block for n, block in enumerate(shipment.blocks)}
        whole |= {topics.block(scene.delta, n): block for n, block in enumerate(artifact.split_blocks(DELTA))}
        whole[topics.manifest(shipment.manifest_digest)] = shipment.raw_manifest
        deployment = topics.deployment(device_id)

        code = scene.publish(device_id, shipment, kill_after=number)
        assert code == -signal.SIGKILL
        found = scene.retained([*whole, deployment])
        if deployment in found:
            num_with_deployment += 1
            assert {topic: found[topic] for topic in whole} == whole
        assert all(found[topic] == whole[topic] for topic in whole if topic in found)
        # All that lies there is named where the next start looks for what to clear.
        said = json.loads((tmp_path / "published.json").read_bytes())
        for topic in found:
            if "/blocks/" in topic:
                assert topics.block_of(topic)[0] in said["artifacts"]

        assert scene.publish(device_id, shipment, kill_after=0) == 0
        assert scene.retained([*whole, deployment]) == {
            **whole,
            deployment: f"signed for {device_id}".encode(),
        }
    # The kills were spread over what comes before the deployment and what comes after it.
    assert 0 < num_with_deployment < len(KILLED_AFTER)
