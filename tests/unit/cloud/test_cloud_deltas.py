"""When a deployment offers a delta, what lies on the broker then, and that the work stays bounded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from control_plane_fakes import PROFILE, World
from memory_registry import Memory

from cloud import deltas
from cloud.deltas import DeltaShelf
from cloud.deployer import Deployer
from cloud.domain.devices import DeploymentState
from cloud.domain.rollout import DeploymentIntent
from edgeloop import delta
from edgeloop.errors import RejectedError
from edgeloop.trust import DirectorKey
from edgeloop.v1 import artifact_pb2, deployment_pb2

OLD = np.random.default_rng(1).bytes(40_000)
#: A last layer changed.
NEW = OLD[:-2000] + np.random.default_rng(2).bytes(2000)
OTHER = np.random.default_rng(3).bytes(40_000)


class Sized(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.num_read = 0

    def get(self, digest: str) -> bytes:
        self.num_read += 1
        return super().get(digest)

    def size(self, digest: str) -> int:
        if digest not in self.blobs:
            raise RejectedError("missing", code="registry-missing")
        return len(self.blobs[digest])


@dataclass
class Scene:
    folder: Path
    world: World
    blobs: Sized

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.shelf = DeltaShelf(self.folder, self.blobs)
        self.deployer = Deployer(
            self.world.store, lambda: self.world.director, self.world.ship, deltas=self.shelf
        )

    def serves(self, device_id: str, digest: str) -> None:
        """As the device itself reports it."""
        self.world.register(device_id)
        self.deploy(device_id, digest)
        self.world.obey([device_id])

    def deploy(self, device_id: str, digest: str) -> deployment_pb2.Deployment:
        intent = DeploymentIntent(
            device_id=device_id,
            workload="w",
            profile=PROFILE.name,
            digest=digest,
            manifest_digest="ab" * 32,
            rollout_id=f"r{digest[:6]}",
            decision_id="",
        )
        self.deployer.issue([intent], self.world.now_s)
        self.deployer.ship(self.world.now_s)
        return self.opened(device_id)

    def opened(self, device_id: str) -> deployment_pb2.Deployment:
        return self.world.opened(self.world.shipped[device_id].payload, device_id)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "deltas", World(tmp_path), Sized())


def test_a_device_that_serves_the_base_is_offered_a_delta_that_makes_the_artifact(scene: Scene) -> None:
    old, new = scene.blobs.put(OLD), scene.blobs.put(NEW)
    scene.serves("gw-1", old)
    told = scene.deploy("gw-1", new)
    assert told.delta.base_digest == old
    assert scene.world.shipped["gw-1"].delta == told.delta.digest
    data = scene.shelf.get(told.delta.digest)
    assert len(data) < 0.1 * len(NEW)
    manifest = artifact_pb2.Manifest(digest=new, size_bytes=len(NEW))
    assert delta.apply_delta(told.delta, data, OLD, manifest) == NEW


def test_none_is_offered_where_it_saves_little_or_the_base_is_unknown(scene: Scene) -> None:
    old, other = scene.blobs.put(OLD), scene.blobs.put(OTHER)
    scene.serves("gw-1", old)
    assert not scene.deploy("gw-1", other).HasField("delta")
    # Whatever a device says that it serves.
    scene.serves("gw-2", "cd" * 32)
    assert not scene.deploy("gw-2", old).HasField("delta")
    # A device's first.
    scene.world.register("gw-3")
    assert not scene.deploy("gw-3", old).HasField("delta")
    assert [scene.world.shipped[name].delta for name in ("gw-1", "gw-2", "gw-3")] == ["", "", ""]
    # And nothing is read for the same pair again.
    before = scene.blobs.num_read
    assert scene.shelf.offer(old, other) is None
    assert scene.blobs.num_read == before


def test_nothing_large_is_read(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = scene.blobs.put(OLD), scene.blobs.put(NEW)
    monkeypatch.setattr(delta, "MAX_SIDE_BYTES", 1000)
    scene.shelf.begin_round()
    assert scene.shelf.offer(old, new) is None
    assert scene.blobs.num_read == 0


def test_so_many_are_made_a_round_and_so_many_kept(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "MAX_KEPT", 3)
    new = scene.blobs.put(NEW)
    bases = [scene.blobs.put(bytes([n]) + OLD) for n in range(6)]
    made = []
    for _ in range(4):
        scene.shelf.begin_round()
        made.append(sum(scene.shelf.offer(base, new) is not None for base in bases))
    assert made == [deltas.MAX_MADE_A_ROUND, 3, 3, 3]
    scene.shelf.keep_only([])
    scene.shelf.begin_round()
    assert scene.shelf.offer(bases[5], new) is not None


def test_bases_that_share_a_delta_are_each_offered_it_and_forgotten_together(scene: Scene) -> None:
    new = scene.blobs.put(NEW)
    one, two = (scene.blobs.put(OLD[:-1] + bytes([n])) for n in (1, 2))
    for _ in range(2):
        scene.shelf.begin_round()
        first, second = scene.shelf.offer(one, new), scene.shelf.offer(two, new)
        assert first is not None
        assert second is not None
        assert (first.base_digest, second.base_digest) == (one, two)
        assert first.digest == second.digest
        assert scene.shelf.get(first.digest)
        scene.shelf.keep_only([])


def test_one_delta_serves_every_device_and_goes_when_no_deployment_offers_it(scene: Scene) -> None:
    old, new = scene.blobs.put(OLD), scene.blobs.put(NEW)
    for name in ("gw-1", "gw-2"):
        scene.serves(name, old)
    first, second = scene.deploy("gw-1", new), scene.deploy("gw-2", new)
    assert first.delta == second.delta
    assert [path.name for path in scene.folder.iterdir()] == [first.delta.digest]
    for name in ("gw-1", "gw-2"):
        scene.world.obey([name])
        scene.deploy(name, scene.blobs.put(OTHER))
    assert list(scene.folder.iterdir()) == []
    with pytest.raises(RejectedError) as caught:
        scene.shelf.get(first.delta.digest)
    assert caught.value.code == "delta-missing"


def test_a_restart_that_finds_its_files_gone_or_damaged_makes_the_same_again(scene: Scene) -> None:
    old, new = scene.blobs.put(OLD), scene.blobs.put(NEW)
    scene.serves("gw-1", old)
    digest = scene.deploy("gw-1", new).delta.digest
    wanted = scene.shelf.get(digest)
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"torn")):
        damage(scene.folder / digest)
        scene.restart()
        scene.deployer.ship(scene.world.now_s)
        assert scene.world.shipped["gw-1"].delta == digest
        assert scene.shelf.get(digest) == wanted


def test_signed_again_it_is_offered_until_the_device_has_ended_it(scene: Scene) -> None:
    old, new = scene.blobs.put(OLD), scene.blobs.put(NEW)
    scene.serves("gw-1", old)
    first = scene.deploy("gw-1", new)
    scene.world.director = DirectorKey.generate()
    scene.deployer.ship(scene.world.now_s)
    assert scene.opened("gw-1").delta == first.delta
    scene.world.obey(["gw-1"], DeploymentState.ACTIVE)
    scene.world.director = DirectorKey.generate()
    scene.deployer.ship(scene.world.now_s)
    assert not scene.opened("gw-1").HasField("delta")
    assert list(scene.folder.iterdir()) == []
