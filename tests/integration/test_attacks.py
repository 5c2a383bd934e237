"""Everything that somebody between the director and a device may try, against one running agent.

Each attack is a row: what is published, and the code with which it must be blocked. After each the agent
still serves the model that it served before, and nothing of the attack is left on its disk. Attacks that last
for hours (endless and slow senders) run in virtual time against the same fetcher.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import pytest
from agent_harness import NUM_INPUTS, NUM_OUTPUTS, AgentProcess, Cloud, Shipment, make_model, ship
from machine import wait_until
from onnx import TensorProto, helper, numpy_helper

from edge_agent.fetch import Fetcher, FetchSettings, Refuse
from edge_agent.update_state import Slot
from edgeloop import artifact, topics, trust
from edgeloop.artifact import BlockAssembler
from edgeloop.director_keys import add_change
from edgeloop.v1 import artifact_pb2, deployment_pb2

pytestmark = pytest.mark.mosquitto


@dataclass
class Scene:
    cloud: Cloud
    agent: AgentProcess
    good: Shipment
    generation: int = 5
    deployed: list[bytes] = field(default_factory=list)

    def next(self) -> int:
        self.generation += 1
        return self.generation

    def signed(self, shipment: Shipment, *, key: trust.DirectorKey | None = None, **fields: Any) -> bytes:
        values = {
            "device_id": "gw-1",
            "workload": "tiny",
            "profile": "small",
            "digest": shipment.digest,
            "manifest_digest": shipment.manifest_digest,
            **fields,
        }
        if "generation" not in values:
            values["generation"] = self.next()
        raw = deployment_pb2.Deployment(**values).SerializeToString(deterministic=True)
        key = key or self.cloud.key
        # Not by `sign_deployment`, which would refuse to sign some of these.
        return deployment_pb2.SignedDeployment(
            deployment=raw, key_id=key.key_id, signature=key.sign(trust.SIGNING_PREFIX + raw)
        ).SerializeToString()

    def put(self, payload: bytes) -> None:
        self.cloud.put(topics.deployment("gw-1"), payload)


@pytest.fixture(scope="module")
def scene(module_mosquitto, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    cloud = Cloud(module_mosquitto.host, module_mosquitto.port)
    agent = AgentProcess(cloud, tmp_path_factory.mktemp("attacked"))
    scene = Scene(cloud, agent, ship(make_model(1, num_hidden=256)))
    cloud.publish(scene.good)
    scene.deployed.append(cloud.deploy("gw-1", scene.good, 4))
    agent.start().wait_state("active", 4)
    scene.deployed.append(cloud.deploy("gw-1", scene.good, 5))
    agent.wait_state("active", 5)
    yield scene
    agent.kill()
    cloud.close()


def other(seed: int) -> Shipment:
    return ship(make_model(seed, num_hidden=256))


def as_shipment(data: bytes, manifest: artifact_pb2.Manifest) -> Shipment:
    """Whatever the manifest says, checked or not."""
    return Shipment(data=data, manifest=manifest, raw_manifest=manifest.SerializeToString(deterministic=True))


def relabelled(model: bytes) -> Shipment:
    """A model of an attacker under an otherwise fitting manifest."""
    manifest = artifact_pb2.Manifest()
    manifest.CopyFrom(other(2).manifest)
    blocks = artifact.split_blocks(model, manifest.block_size_bytes)
    manifest.digest = artifact.sha256_hex(model)
    manifest.size_bytes = len(model)
    del manifest.block_digests[:]
    manifest.block_digests.extend(bytes.fromhex(artifact.sha256_hex(block)) for block in blocks)
    return as_shipment(model, manifest)


# --- the attacks ------------------------------------------------------------------------------------


def arbitrary(scene: Scene) -> None:
    """Other bytes than were signed for, by whoever may publish blocks."""
    wanted, evil = other(10), other(11)
    scene.cloud.publish(wanted)
    for n, block in enumerate(evil.blocks[: len(wanted.blocks)]):
        scene.cloud.put(topics.block(wanted.digest, n), block)
    # Whoever asks again gets the same again.
    scene.cloud.session.subscribe(
        topics.requests("gw-1"),
        lambda topic, payload: (
            [
                scene.cloud.session.publish(topics.block(wanted.digest, n), block, retain=True)
                for n, block in enumerate(evil.blocks[: len(wanted.blocks)])
            ]
            and None
        ),
    )
    scene.put(scene.signed(wanted))


def replaced_manifest(scene: Scene) -> None:
    wanted, evil = other(12), other(13)
    topic = topics.manifest(wanted.manifest_digest)
    scene.cloud.session.subscribe(
        topics.requests("gw-1"),
        lambda _, payload: scene.cloud.session.publish(topic, evil.raw_manifest, retain=True) and None,
    )
    scene.cloud.put(topic, evil.raw_manifest)
    scene.put(scene.signed(wanted))


def rolled_back(scene: Scene) -> None:
    scene.put(scene.signed(other(14), generation=3))


def replayed(scene: Scene) -> None:
    """Genuine, and said before."""
    scene.put(scene.deployed[0])


def frozen(scene: Scene) -> None:
    scene.put(scene.signed(other(15), expire_time=trust.timestamp(time.time() - 60)))


def mixed(scene: Scene) -> None:
    """The manifest of one artifact with the digest of another, both genuine."""
    one, two = other(16), other(17)
    scene.cloud.publish(one)
    scene.cloud.publish(two)
    scene.put(scene.signed(one, manifest_digest=two.manifest_digest))


def for_another_profile(scene: Scene) -> None:
    model = ship(make_model(18, num_hidden=256), profile="large")
    scene.cloud.publish(model)
    scene.put(scene.signed(model))


def oversized_manifest(scene: Scene) -> None:
    raw = other(19).raw_manifest + b"\0" * artifact.MAX_MANIFEST_BYTES
    scene.cloud.put(topics.manifest(artifact.sha256_hex(raw)), raw)
    scene.put(scene.signed(other(19), manifest_digest=artifact.sha256_hex(raw)))


def oversized_artifact(scene: Scene) -> None:
    manifest = artifact_pb2.Manifest()
    manifest.CopyFrom(other(20).manifest)
    manifest.size_bytes = 2**60
    shipment = as_shipment(b"", manifest)
    scene.cloud.put(topics.manifest(shipment.manifest_digest), shipment.raw_manifest)
    scene.put(scene.signed(shipment))


def oversized_deployment(scene: Scene) -> None:
    scene.put(scene.signed(other(21)) + b"\0" * trust.MAX_SIGNED_BYTES)


def bit_flipped(scene: Scene) -> None:
    genuine = scene.signed(other(22))
    scene.put(genuine[:-1] + bytes([genuine[-1] ^ 1]))


def foreign(scene: Scene) -> None:
    scene.put(scene.signed(other(23), device_id="gw-2"))


def impersonated(scene: Scene) -> None:
    scene.put(scene.signed(other(24), key=trust.DirectorKey.generate()))


def impersonated_key_id(scene: Scene) -> None:
    """A stranger's signature under the name of the director's key."""
    signed = deployment_pb2.SignedDeployment.FromString(
        scene.signed(other(25), key=trust.DirectorKey.generate())
    )
    signed.key_id = scene.cloud.key.key_id
    scene.put(signed.SerializeToString())


def forged_keys(scene: Scene) -> None:
    stranger = trust.DirectorKey.generate()
    scene.cloud.put(
        topics.DIRECTOR_KEYS, add_change(b"", stranger, [stranger.public_bytes], now_s=time.time())
    )


def path_as_digest(scene: Scene) -> None:
    scene.put(scene.signed(other(26), digest="../../../../etc/passwd"))


def path_as_workload(scene: Scene) -> None:
    scene.put(scene.signed(other(27), workload="../../state.json"))


def external_data(scene: Scene) -> None:
    """A model whose weights are a file of the device."""
    model = onnx.load_from_string(make_model(28, num_hidden=256))
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../../../../../etc/passwd"), ("offset", "0"), ("length", "64")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    shipment = relabelled(model.SerializeToString())
    scene.cloud.publish(shipment)
    scene.put(scene.signed(shipment))


def no_model_at_all(scene: Scene) -> None:
    shipment = relabelled(np.random.default_rng(0).bytes(9000))
    scene.cloud.publish(shipment)
    scene.put(scene.signed(shipment))


def expansion_bomb(scene: Scene) -> None:
    """A few hundred bytes that unfold to terabytes when they run."""
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["nothing"], keepdims=0),
            helper.make_node("MatMul", ["x", "weights"], ["scores"]),
            helper.make_node("Add", ["scores", "nothing"], ["y"]),
        ],
        "bomb",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", NUM_INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", NUM_OUTPUTS])],
        [
            numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "huge"),
            numpy_helper.from_array(np.zeros((NUM_INPUTS, NUM_OUTPUTS), np.float32), "weights"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    shipment = relabelled(model.SerializeToString())
    scene.cloud.publish(shipment)
    scene.put(scene.signed(shipment))


def wrong_answers(scene: Scene) -> None:
    """A model that loads and answers, and not as it did where it was built."""
    shipment = relabelled(make_model(29, num_hidden=256))
    scene.cloud.publish(shipment)
    scene.put(scene.signed(shipment))


ATTACKS: dict[Callable[[Scene], None], str] = {
    arbitrary: "block-altered",
    replaced_manifest: "manifest-altered",
    rolled_back: "generation-old",
    replayed: "generation-old",
    frozen: "deployment-expired",
    mixed: "manifest-wrong-artifact",
    for_another_profile: "manifest-wrong-profile",
    oversized_manifest: "manifest-field",
    oversized_artifact: "manifest-field",
    oversized_deployment: "deployment-field",
    bit_flipped: "signature-invalid",
    foreign: "deployment-wrong-device",
    impersonated: "signature-unknown-key",
    impersonated_key_id: "signature-invalid",
    forged_keys: "keys-unknown-key",
    path_as_digest: "deployment-field",
    path_as_workload: "deployment-field",
    external_data: "self-test-load",
    no_model_at_all: "self-test-load",
    expansion_bomb: "self-test-output",
    wrong_answers: "self-test-output",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__.replace("_", "-"))
def test_it_is_blocked_with_its_code_and_the_old_model_serves(scene: Scene, attack) -> None:
    before = len(scene.agent.log)
    attack(scene)
    code = ATTACKS[attack]
    wait_until(
        lambda: f" code={code} " in scene.agent.log[before:],
        what=lambda: f"{code}: {scene.agent.log[before:][-1500:]}",
    )
    said = [
        line.split(" code=")[1].split()[0]
        for line in scene.agent.log[before:].splitlines()
        if " code=" in line
    ]
    assert set(said) == {code}
    scene.cloud.session.unsubscribe(topics.requests("gw-1"))
    status = scene.agent.wait(lambda status: status["state"] in ("active", "rejected"))
    assert status["serving_digest"] == scene.good.digest
    assert status["num_errors"] == 0
    blobs = scene.agent.state_dir / "blobs"
    wait_until(
        lambda: (
            {path.name for path in blobs.glob("artifacts/*")} == {scene.good.digest}
            and not list(blobs.glob("partial/*"))
        ),
        what=lambda: f"nothing of it on the disk: {sorted(blobs.rglob('*'))}",
    )


def test_after_all_of_them_the_device_takes_a_genuine_deployment(scene: Scene) -> None:
    genuine = ship(make_model(99, num_hidden=256))
    scene.cloud.publish(genuine)
    scene.put(scene.signed(genuine))
    status = scene.agent.wait_state("active", scene.generation)
    assert status["serving_digest"] == genuine.digest
    # Through all of them it answered every request.
    assert status["num_requests"] > 50
    assert status["num_errors"] == 0


# --- what takes hours, in virtual time --------------------------------------------------------------


def _endless(fetcher: Fetcher, shipment: Shipment) -> Iterator[list[object]]:
    """A genuine block, again and again."""
    while True:
        yield list(fetcher.on_message(topics.block(shipment.digest, 0), shipment.blocks[0], 1.0))


def _slow(fetcher: Fetcher, shipment: Shipment) -> Iterator[list[object]]:
    """One genuine block a day."""
    for day, block in enumerate(shipment.blocks):
        for hour in range(24):
            yield list(fetcher.on_tick((day * 24 + hour) * 3600.0))
        yield list(fetcher.on_message(topics.block(shipment.digest, day), block, (day + 1) * 86_400.0))


@pytest.mark.parametrize(
    ("attack", "code"), [(_endless, "fetch-too-much"), (_slow, "fetch-too-slow")], ids=["endless", "slow"]
)
def test_a_sender_that_does_not_end_is_cut_off(attack, code: str) -> None:
    shipment = ship(make_model(1))
    slot = Slot(
        generation=1,
        digest=shipment.digest,
        manifest_digest=shipment.manifest_digest,
        workload="tiny",
        profile="small",
        signed=b"",
    )
    fetcher = Fetcher(slot, replace(FetchSettings(), window=4), random.Random(0))
    fetcher.begin_manifest(0.0)
    fetcher.on_message(topics.manifest(shipment.manifest_digest), shipment.raw_manifest, 0.0)
    fetcher.begin_blocks(BlockAssembler(shipment.manifest), 0.0)
    for number, effects in enumerate(attack(fetcher, shipment)):
        refused = [effect for effect in effects if isinstance(effect, Refuse)]
        if refused:
            assert refused[0].code == code
            assert fetcher.topics == ()
            return
        assert number < 10_000
    raise AssertionError("it arrived")
