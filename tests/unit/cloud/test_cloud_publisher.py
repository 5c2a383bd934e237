"""What the publisher puts on a broker, in which order, and what it refuses to be made to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from memory_registry import Memory

from cloud.block_requests import RequestSettings
from cloud.publisher import Publisher
from cloud.shipment import Shipment
from edgeloop import topics
from edgeloop.artifact import MIN_BLOCK_SIZE_BYTES, build_manifest, encode_manifest, golden_set, sha256_hex
from edgeloop.errors import TransientError
from edgeloop.v1 import artifact_pb2, deployment_pb2

WAIT_S = 60.0


class Sent:
    def __init__(self, fails: bool) -> None:
        self._fails = fails

    def wait(self, timeout_s: float) -> None:
        if self._fails:
            raise TransientError("no answer", code="mqtt-lost")


class FakeBus:
    """A broker that keeps retained messages, counts everything, and can forget or stop answering."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.log: list[tuple[str, int]] = []
        self.fails_after: int | None = None
        self._lock = threading.Lock()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> Sent:
        assert (qos, retain) == (1, True)
        with self._lock:
            if self.fails_after is not None:
                if self.fails_after <= 0:
                    return Sent(fails=True)
                self.fails_after -= 1
            self.log.append((topic, len(payload)))
            if payload:
                self.retained[topic] = payload
            else:
                self.retained.pop(topic, None)
        return Sent(fails=False)

    def subscribe(self, topic: str, handler: Callable[[str, bytes], None], *, qos: int = 1) -> None:
        if topic in self.retained:
            handler(topic, self.retained[topic])

    def unsubscribe(self, topic: str) -> None:
        pass

    def topics(self) -> list[str]:
        return [topic for topic, _ in self.log]


def make_artifact(blobs: Memory, seed: int, *, num_blocks: int = 3) -> tuple[str, str]:
    """Digest and manifest digest of random bytes."""
    data = np.random.default_rng(seed).bytes(MIN_BLOCK_SIZE_BYTES * num_blocks - 7)
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
        block_size_bytes=MIN_BLOCK_SIZE_BYTES,
    )
    return blobs.put(data), blobs.put(encode_manifest(manifest))


def shipment(device_id: str, artifact: tuple[str, str], payload: bytes = b"signed") -> Shipment:
    return Shipment(device_id=device_id, digest=artifact[0], manifest_digest=artifact[1], payload=payload)


def request(device_id: str, artifact: tuple[str, str], blocks: list[int], *, manifest: bool = False) -> bytes:
    return deployment_pb2.BlockRequest(
        device_id=device_id,
        digest=artifact[0],
        manifest_digest=artifact[1],
        manifest=manifest,
        blocks=blocks,
    ).SerializeToString()


class Scene:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bus = FakeBus()
        self.blobs = Memory()
        self.now_s = 100.0
        self.publisher = self._new()

    def _new(self) -> Publisher:
        publisher = Publisher(
            bus=self.bus,
            blobs=self.blobs,
            state_path=self.folder / "published.json",
            settings=RequestSettings(requests_a_minute=60.0, request_burst=3, block_quiet_s=1.0),
            monotonic_s=lambda: self.now_s,
        )
        publisher.start()
        return publisher

    def restart(self) -> None:
        self.publisher.stop()
        self.publisher = self._new()

    def settle(self) -> None:
        assert self.publisher.wait_settled(WAIT_S)

    def ship(self, *shipments: Shipment) -> None:
        self.publisher.set_desired({item.device_id: item for item in shipments})
        self.settle()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    scene.publisher.on_connected(True)
    yield scene
    scene.publisher.stop()


def test_blocks_and_manifest_come_before_the_deployment_and_the_sentinel_last(scene: Scene) -> None:
    digest, manifest_digest = artifact = make_artifact(scene.blobs, 1)
    scene.ship(shipment("gw-1", artifact))
    sent = [topic for topic in scene.bus.topics() if topic != topics.SENTINEL]
    assert sent == [
        *(topics.block(digest, n) for n in range(3)),
        topics.manifest(manifest_digest),
        topics.deployment("gw-1"),
    ]
    assert scene.bus.topics()[-1] == topics.SENTINEL
    whole = b"".join(scene.bus.retained[topics.block(digest, n)] for n in range(3))
    assert sha256_hex(whole) == digest


def test_an_artifact_is_published_once_however_many_devices_run_it(scene: Scene) -> None:
    artifact = make_artifact(scene.blobs, 1)
    scene.ship(*(shipment(f"gw-{n}", artifact) for n in range(20)))
    scene.ship(*(shipment(f"gw-{n}", artifact) for n in range(40)))
    assert scene.bus.topics().count(topics.block(artifact[0], 0)) == 1
    assert scene.bus.topics().count(topics.deployment("gw-0")) == 1


def test_changed_director_keys_come_before_what_the_new_key_signed_and_again_when_the_broker_forgot(
    scene: Scene,
) -> None:
    artifact = make_artifact(scene.blobs, 1)
    scene.publisher.set_director_keys(b"chain")
    scene.ship(shipment("gw-1", artifact))
    sent = scene.bus.topics()
    assert sent.index(topics.DIRECTOR_KEYS) < sent.index(topics.deployment("gw-1"))
    scene.bus.retained.clear()
    scene.publisher.on_connected(True)
    scene.settle()
    assert scene.bus.retained[topics.DIRECTOR_KEYS] == b"chain"
    assert sent.count(topics.DIRECTOR_KEYS) == 1


def test_saying_the_same_again_publishes_nothing(scene: Scene) -> None:
    artifact = make_artifact(scene.blobs, 1)
    scene.ship(shipment("gw-1", artifact))
    before = list(scene.bus.log)
    scene.ship(shipment("gw-1", artifact))
    assert scene.bus.log == before


def test_a_deployment_is_held_back_while_its_artifact_cannot_be_read_and_others_go_on(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    good, gone = make_artifact(scene.blobs, 1), make_artifact(scene.blobs, 2)
    kept = scene.blobs.blobs.pop(gone[0])
    scene.ship(shipment("gw-1", good), shipment("gw-2", gone))
    assert topics.deployment("gw-1") in scene.bus.retained
    assert topics.deployment("gw-2") not in scene.bus.retained
    assert gone[0][:12] in caplog.text
    scene.blobs.put(kept)
    scene.now_s += 60.0
    scene.ship(shipment("gw-1", good), shipment("gw-2", gone))
    assert topics.deployment("gw-2") in scene.bus.retained


def test_a_deployment_is_held_back_until_the_broker_acknowledged_every_block(scene: Scene) -> None:
    artifact = make_artifact(scene.blobs, 1)
    scene.bus.fails_after = 2
    scene.publisher.set_desired({"gw-1": shipment("gw-1", artifact)})
    assert not scene.publisher.wait_settled(0.5)
    assert topics.deployment("gw-1") not in scene.bus.retained
    scene.bus.fails_after = None
    scene.now_s += 60.0
    scene.settle()
    assert topics.deployment("gw-1") in scene.bus.retained


def test_a_broker_that_forgot_gets_everything_again(scene: Scene) -> None:
    artifact = make_artifact(scene.blobs, 1)
    scene.ship(shipment("gw-1", artifact))
    before = dict(scene.bus.retained)
    scene.publisher.on_connected(False)
    scene.bus.retained.clear()
    scene.publisher.on_connected(True)
    scene.settle()
    assert set(scene.bus.retained) == set(before)


def test_a_broker_that_came_back_from_an_old_backup_gets_everything_again(scene: Scene) -> None:
    first, second = make_artifact(scene.blobs, 1), make_artifact(scene.blobs, 2)
    scene.ship(shipment("gw-1", first))
    backup = dict(scene.bus.retained)
    scene.ship(shipment("gw-1", second, b"newer"))
    scene.publisher.on_connected(False)
    scene.bus.retained = backup
    scene.publisher.on_connected(True)
    scene.settle()
    assert scene.bus.retained[topics.deployment("gw-1")] == b"newer"
    assert topics.block(second[0], 2) in scene.bus.retained


def test_a_connection_that_only_broke_costs_no_second_transfer(scene: Scene) -> None:
    artifact = make_artifact(scene.blobs, 1)
    scene.ship(shipment("gw-1", artifact))
    before = list(scene.bus.log)
    scene.publisher.on_connected(False)
    scene.publisher.on_connected(True)
    scene.settle()
    assert scene.bus.log == before


def test_nothing_is_published_while_there_is_no_connection(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.publisher.set_desired({"gw-1": shipment("gw-1", make_artifact(scene.blobs, 1))})
    assert not scene.publisher.wait_settled(0.3)
    assert scene.bus.log == []
    scene.publisher.stop()


def test_an_artifact_that_nobody_should_run_any_more_is_cleared(scene: Scene) -> None:
    old, new = make_artifact(scene.blobs, 1), make_artifact(scene.blobs, 2)
    scene.ship(shipment("gw-1", old), shipment("gw-2", old))
    scene.ship(shipment("gw-1", new), shipment("gw-2", old))
    assert topics.block(old[0], 0) in scene.bus.retained
    scene.ship(shipment("gw-1", new), shipment("gw-2", new))
    assert not [topic for topic in scene.bus.retained if old[0] in topic or old[1] in topic]
    assert topics.block(new[0], 0) in scene.bus.retained


def test_what_an_earlier_process_left_is_cleared_too(scene: Scene) -> None:
    old, new = make_artifact(scene.blobs, 1), make_artifact(scene.blobs, 2)
    scene.ship(shipment("gw-1", old))
    scene.restart()
    scene.publisher.on_connected(True)
    scene.ship(shipment("gw-1", new))
    assert not [topic for topic in scene.bus.retained if old[0] in topic]


def test_a_damaged_state_file_is_no_reason_not_to_start(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    (scene.folder / "published.json").write_text('{"artifacts": 3}')
    scene.restart()
    scene.publisher.on_connected(True)
    scene.ship(shipment("gw-1", make_artifact(scene.blobs, 1)))
    assert topics.deployment("gw-1") in scene.bus.retained
    assert "published.json" in caplog.text


# -- requests


def ask(scene: Scene, device_id: str, payload: bytes) -> list[str]:
    """What one request makes the publisher send."""
    scene.settle()
    before = len(scene.bus.log)
    scene.publisher.on_request(topics.requests(device_id), payload)
    scene.settle()
    return scene.bus.topics()[before:]


def test_a_request_is_answered_with_what_was_asked_for(scene: Scene) -> None:
    digest, manifest_digest = artifact = make_artifact(scene.blobs, 1)
    scene.ship(shipment("gw-1", artifact))
    assert ask(scene, "gw-1", request("gw-1", artifact, [2, 0, 2], manifest=True)) == [
        topics.manifest(manifest_digest),
        topics.block(digest, 0),
        topics.block(digest, 2),
    ]


def test_one_answer_serves_all_who_ask_at_the_same_time(scene: Scene) -> None:
    artifact = make_artifact(scene.blobs, 1)
    scene.ship(*(shipment(f"gw-{n}", artifact) for n in range(9)))
    sent = [topic for n in range(9) for topic in ask(scene, f"gw-{n}", request(f"gw-{n}", artifact, [1]))]
    assert sent == [topics.block(artifact[0], 1)]
    scene.now_s += 2.0
    assert ask(scene, "gw-0", request("gw-0", artifact, [1])) == [topics.block(artifact[0], 1)]


def test_a_device_cannot_make_the_cloud_publish_without_end(scene: Scene) -> None:
    artifact = make_artifact(scene.blobs, 1, num_blocks=60)
    scene.ship(shipment("gw-1", artifact), shipment("gw-2", artifact))
    answered = [bool(ask(scene, "gw-1", request("gw-1", artifact, [n]))) for n in range(30)]
    assert sum(answered) == 3
    assert ask(scene, "gw-2", request("gw-2", artifact, [59]))
    scene.now_s += 1.0
    assert ask(scene, "gw-1", request("gw-1", artifact, [40]))


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xff garbage",
        b"x" * 100_000,
        deployment_pb2.BlockRequest(device_id="gw-2", digest="a" * 64, blocks=[0]).SerializeToString(),
        deployment_pb2.BlockRequest(device_id="gw-1", digest="../..", blocks=[0]).SerializeToString(),
        deployment_pb2.BlockRequest(device_id="gw-1", digest="a" * 64, blocks=range(65)).SerializeToString(),
    ],
    ids=["garbage", "huge", "for-another-device", "no-digest", "too-many"],
)
def test_a_request_that_is_not_one_is_ignored(scene: Scene, payload: bytes) -> None:
    scene.ship(shipment("gw-1", make_artifact(scene.blobs, 1)))
    assert ask(scene, "gw-1", payload) == []


def test_blocks_that_do_not_exist_are_left_out(scene: Scene) -> None:
    artifact = make_artifact(scene.blobs, 1)
    scene.ship(shipment("gw-1", artifact))
    assert ask(scene, "gw-1", request("gw-1", artifact, [1, 900])) == [topics.block(artifact[0], 1)]


def test_who_asks_for_an_artifact_that_it_should_not_run_is_told_again_what_it_should(scene: Scene) -> None:
    old, new = make_artifact(scene.blobs, 1), make_artifact(scene.blobs, 2)
    scene.ship(shipment("gw-1", new))
    assert ask(scene, "gw-1", request("gw-1", old, [0])) == [topics.deployment("gw-1")]


def test_a_stranger_gets_no_answer(scene: Scene) -> None:
    artifact = make_artifact(scene.blobs, 1)
    scene.ship(shipment("gw-1", artifact))
    assert ask(scene, "gw-9", request("gw-9", artifact, [0])) == []


def test_a_delta_is_there_before_who_offers_it_is_answered_for_and_goes_with_it(tmp_path: Path) -> None:
    scene, deltas = Scene(tmp_path), Memory()
    scene.publisher.stop()
    scene.publisher = Publisher(
        bus=scene.bus, blobs=scene.blobs, state_path=tmp_path / "published.json", deltas=deltas
    )
    scene.publisher.start()
    scene.publisher.on_connected(True)
    artifact, digest = make_artifact(scene.blobs, 1), deltas.put(b"a delta")
    offered = Shipment(
        device_id="gw-1", digest=artifact[0], manifest_digest=artifact[1], payload=b"signed", delta=digest
    )
    scene.ship(offered)
    where = topics.block(digest, 0)
    assert scene.bus.retained[where] == b"a delta"
    assert scene.bus.topics().index(where) < scene.bus.topics().index(topics.deployment("gw-1"))
    # The broker lost it, and the device asks.
    del scene.bus.retained[where]
    scene.publisher.on_request(topics.requests("gw-1"), request("gw-1", (digest, artifact[1]), [0, 7]))
    scene.settle()
    assert scene.bus.retained[where] == b"a delta"
    scene.ship(shipment("gw-1", artifact))
    assert where not in scene.bus.retained
    assert topics.block(artifact[0], 0) in scene.bus.retained
    scene.publisher.stop()


def test_a_delta_that_cannot_be_had_holds_no_deployment_up(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.publisher.on_connected(True)
    artifact = make_artifact(scene.blobs, 1)
    scene.ship(
        Shipment(
            device_id="gw-1",
            digest=artifact[0],
            manifest_digest=artifact[1],
            payload=b"signed",
            delta="ab" * 32,
        )
    )
    assert scene.bus.retained[topics.deployment("gw-1")] == b"signed"
    scene.publisher.stop()
