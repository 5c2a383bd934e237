"""What TUF is there for, against one agent: what was never released, lying metadata, keys that change.

Every deployment here is signed by the genuine director: the second signature is what is attacked.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agent_harness import AgentProcess, Cloud, Shipment, make_model, ship
from machine import wait_until
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile, TargetFile
from tuf_harness import Repository

from cloud import tuf_root
from edgeloop import topics
from edgeloop.released import MAX_TIMESTAMP_BYTES, TIMESTAMP_FILE, target_path

pytestmark = pytest.mark.mosquitto


def small(seed: int) -> Shipment:
    return ship(make_model(seed, num_hidden=256))


@dataclass
class Scene:
    cloud: Cloud
    agent: AgentProcess
    repository: Repository
    good: Shipment
    generation: int = 1
    there: set[str] = field(default_factory=set)

    def publish_tuf(self, files: dict[str, bytes] | None = None) -> None:
        """In the control plane's order; what is not among it any more is cleared."""
        files = self.repository.files if files is None else files
        for name, raw in files.items():
            self.cloud.put(topics.tuf(name), raw)
        for name in self.there - files.keys():
            self.cloud.put(topics.tuf(name), b"")
        self.there = set(files)

    def release(self, shipment: Shipment) -> None:
        self.cloud.publish(shipment)
        self.repository.release(shipment.digest, shipment.manifest_digest, len(shipment.data))
        self.publish_tuf()

    def deploy(self, shipment: Shipment) -> int:
        self.generation += 1
        self.cloud.publish(shipment)
        self.cloud.deploy("gw-1", shipment, self.generation)
        return self.generation

    def heals(self) -> None:
        """Honest metadata comes, and the device takes what it is told."""
        shipment = small(1000 + self.generation)
        self.repository.refresh()
        self.release(shipment)
        self.agent.wait_state("active", self.deploy(shipment))
        self.good = shipment


@pytest.fixture(scope="module")
def scene(module_mosquitto, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("tuf")
    cloud = Cloud(module_mosquitto.host, module_mosquitto.port)
    repository = Repository(folder / "control-plane")
    root = folder / "root.json"
    root.write_bytes(repository.root)
    agent = AgentProcess(cloud, folder, tuf_root=str(root))
    scene = Scene(cloud, agent, repository, small(1))
    scene.release(scene.good)
    scene.deploy(scene.good)
    agent.start().wait_state("active", scene.generation)
    yield scene
    agent.kill()
    cloud.close()


# --- lies: each says what it puts on the broker before a deployment of something new is signed ------------


def never_released(scene: Scene, new: Shipment) -> None:
    """A stolen director key deploys what nobody released."""
    scene.repository.refresh()
    scene.publish_tuf()


def other_manifest(scene: Scene, new: Shipment) -> None:
    """A released artifact, under a manifest that was not."""
    scene.repository.release(new.digest, "0" * 64, len(new.data))
    scene.publish_tuf()


def other_length(scene: Scene, new: Shipment) -> None:
    scene.repository.release(new.digest, new.manifest_digest, len(new.data) + 1)
    scene.publish_tuf()


def rolled_back(scene: Scene, new: Shipment) -> None:
    """Genuine metadata of before what this device has seen."""
    old = dict(scene.repository.files)
    scene.repository.refresh(later_s=2 * 86_400.0)  # a new timestamp
    scene.publish_tuf()
    scene.agent.wait_state("rejected", scene.deploy(small(900)))  # by which it is seen
    scene.publish_tuf(old)


def frozen(scene: Scene, new: Shipment) -> None:
    """The newest that the device is given has run out."""
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)

    def change(signed: Any) -> None:
        signed.version += 1
        signed.expires = past

    scene.publish_tuf(
        {
            **scene.repository.files,
            TIMESTAMP_FILE: scene.repository.bent(
                TIMESTAMP_FILE, change, scene.repository.signer("timestamp")
            ),
        }
    )


def mixed(scene: Scene, new: Shipment) -> None:
    """A targets file that never went with this snapshot, signed by the genuine key."""
    repository = scene.repository
    repository.release(new.digest, "1" * 64, len(new.data))
    name = repository.name("targets")

    def change(signed: Any) -> None:
        signed.targets.clear()

    scene.publish_tuf({**repository.files, name: repository.bent(name, change, repository.signer("targets"))})


def too_few(scene: Scene, new: Shipment) -> None:
    """A next root that names the attacker's keys, signed by one of the two that it takes."""
    repository = scene.repository
    mine = CryptoSigner.generate_ed25519()
    root = tuf_root.DirectorKey.load(repository.disk.root_keys / "root-1.pem")
    newest = repository.name("root")
    following = int(newest.split(".")[0]) + 1

    def grab(signed: Any) -> None:
        signed.version += 1
        signed.add_key(mine.public_key, "timestamp")

    def hint(signed: Any) -> None:
        signed.version += 1
        signed.unrecognized_fields["x-edgeloop-root-version"] = following

    scene.publish_tuf(
        {
            **repository.files,
            f"{following}.root.json": repository.bent(newest, grab, CryptoSigner(root.private)),
            TIMESTAMP_FILE: repository.bent(TIMESTAMP_FILE, hint, mine),
        }
    )


def strangers_timestamp(scene: Scene, new: Shipment) -> None:
    def change(signed: Any) -> None:
        signed.version += 1

    stranger = CryptoSigner.generate_ed25519()
    scene.publish_tuf(
        {
            **scene.repository.files,
            TIMESTAMP_FILE: scene.repository.bent(TIMESTAMP_FILE, change, stranger),
        }
    )


def endless(scene: Scene, new: Shipment) -> None:
    scene.publish_tuf({**scene.repository.files, TIMESTAMP_FILE: b"{" + b" " * MAX_TIMESTAMP_BYTES})


def nonsense(scene: Scene, new: Shipment) -> None:
    scene.publish_tuf({**scene.repository.files, TIMESTAMP_FILE: b"[" * 10_000})


LIES: dict[Callable[[Scene, Shipment], None], tuple[str, str]] = {
    never_released: ("tuf-unsigned-target", "rejected"),
    other_manifest: ("tuf-unsigned-target", "rejected"),
    other_length: ("tuf-unsigned-target", "rejected"),
    rolled_back: ("tuf-rollback", "fetching"),
    frozen: ("tuf-expired", "fetching"),
    mixed: ("tuf-mixed", "fetching"),
    too_few: ("tuf-threshold", "fetching"),
    strangers_timestamp: ("tuf-threshold", "fetching"),
    endless: ("tuf-too-large", "fetching"),
    nonsense: ("tuf-invalid", "fetching"),
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__.replace("_", "-"))
def test_the_old_model_serves_and_the_cloud_hears_why(scene: Scene, lie) -> None:
    code, state = LIES[lie]
    new = small(100 + list(LIES).index(lie))
    lie(scene, new)
    before = len(scene.agent.log)
    generation = scene.deploy(new)
    wait_until(
        lambda: f"code={code} " in scene.agent.log[before:],
        what=lambda: f"{code}: {scene.agent.log[before:][-1500:]}",
    )
    # The same reason is told once in ten seconds.
    wait_until(lambda: code in scene.cloud.fleet.codes(generation), what=f"the cloud to hear {code}")
    status = scene.agent.wait_state(state, generation)
    assert status["serving_digest"] == scene.good.digest
    assert status["num_errors"] == 0
    scene.heals()


# --- keys ------------------------------------------------------------------------------------------------


def test_a_drill_stolen_online_keys_are_replaced_and_the_device_is_never_touched(scene: Scene) -> None:
    repository = scene.repository
    stolen = {role: repository.signer(role) for role in ("targets", "snapshot", "timestamp")}
    evil = small(500)
    scene.cloud.publish(evil)

    def forge(files: dict[str, bytes], version: int) -> dict[str, bytes]:
        """All that the stolen keys can say, with versions far ahead."""

        def targets(signed: Any) -> None:
            signed.version = version
            signed.targets[target_path(evil.digest)] = TargetFile(
                length=len(evil.data),
                hashes={"sha256": evil.digest},
                path=target_path(evil.digest),
                unrecognized_fields={"custom": {"manifests": [evil.manifest_digest]}},
            )

        raw_targets = repository.bent(repository.name("targets"), targets, stolen["targets"])

        def snapshot(signed: Any) -> None:
            signed.version = version
            signed.meta["targets.json"] = MetaFile.from_data(version, raw_targets, ["sha256"])

        raw_snapshot = repository.bent(repository.name("snapshot"), snapshot, stolen["snapshot"])

        def timestamp(signed: Any) -> None:
            signed.version = version
            signed.snapshot_meta = MetaFile.from_data(version, raw_snapshot, ["sha256"])

        return {
            **files,
            f"{version}.targets.json": raw_targets,
            f"{version}.snapshot.json": raw_snapshot,
            TIMESTAMP_FILE: repository.bent(TIMESTAMP_FILE, timestamp, stolen["timestamp"]),
        }

    # The thief has the director's key too, and versions that nothing honest will reach for 100 years.
    ahead = 5_000_000_000
    scene.publish_tuf(forge(repository.files, ahead))
    scene.agent.wait_state("active", scene.deploy(evil))
    scene.good = evil

    # While honest metadata has lower versions, the device refuses it.
    honest = small(501)
    scene.release(honest)
    generation = scene.deploy(honest)
    wait_until(lambda: "tuf-rollback" in scene.cloud.fleet.codes(generation), what="rollback")

    # One root key is not enough; two replace all that was stolen, and the same deployment goes on by itself.
    draft = repository.rotate("targets", "snapshot", "timestamp", sign_with=(2,))
    assert not draft.complete
    assert repository.rotate("targets", "snapshot", "timestamp", sign_with=(1, 3)).complete
    scene.publish_tuf()
    assert scene.agent.wait_state("active", generation)["serving_digest"] == honest.digest
    scene.good = honest

    # What the thief signs counts no more.
    scene.publish_tuf(forge(repository.files, ahead + 1))
    generation = scene.deploy(small(502))
    wait_until(lambda: "tuf-threshold" in scene.cloud.fleet.codes(generation), what="threshold")
    scene.heals()


def test_a_device_that_was_away_follows_several_roots_and_keeps_what_it_trusts(scene: Scene) -> None:
    scene.agent.kill()
    first = scene.repository.disk.root_version()
    for role in ("timestamp", "targets", "snapshot"):
        assert scene.repository.rotate(role).complete
    new = small(600)
    scene.release(new)
    generation = scene.deploy(new)
    scene.agent.start()
    assert scene.agent.wait_state("active", generation)["serving_digest"] == new.digest
    scene.good = new
    history = scene.agent.state_dir / "tuf" / "root_history"
    assert {path.name for path in history.iterdir()} >= {
        f"{version}.root.json" for version in range(1, first + 4)
    }
    assert not list((scene.agent.state_dir / "tuf").glob(".work*"))


def test_without_metadata_it_waits_asks_and_goes_on_when_it_comes(scene: Scene) -> None:
    new = small(700)
    scene.cloud.publish(new)
    scene.repository.release(new.digest, new.manifest_digest, len(new.data))
    for name in scene.there:
        scene.cloud.put(topics.tuf(name), b"")
    asked = len(scene.cloud.requests)
    generation = scene.deploy(new)
    wait_until(
        lambda: any(request.tuf for request in scene.cloud.requests[asked:]),
        what="the metadata to be asked for",
    )
    assert scene.agent.status()["serving_digest"] == scene.good.digest
    scene.publish_tuf()
    assert scene.agent.wait_state("active", generation)["serving_digest"] == new.digest
    scene.good = new


def test_what_serves_goes_on_serving_after_its_metadata_has_run_out(scene: Scene) -> None:
    """Also over a restart: nothing that was once verified is asked about again."""
    frozen(scene, scene.good)
    scene.agent.kill()
    scene.agent.start()
    status = scene.agent.wait(lambda status: bool(status["serving_digest"]))
    assert status["serving_digest"] == scene.good.digest
    scene.heals()


def test_an_agent_without_a_root_says_that_it_checks_none(scene: Scene, tmp_path: Path) -> None:
    agent = AgentProcess(scene.cloud, tmp_path, device_id="gw-2")
    try:
        free = small(800)
        scene.cloud.publish(free)
        scene.cloud.deploy("gw-2", free, 1)
        agent.start().wait_state("active", 1)
        assert "no TUF root is configured" in agent.log
        assert not (agent.state_dir / "tuf").exists()
    finally:
        agent.kill()
