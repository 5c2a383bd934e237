"""What updates leave on the disk stays within its quota."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "integration"))

from agent_harness import make_model, ship
from updater_device import FIRST, SECOND, Device, slot

from edge_agent.update_events import DeploymentSeen
from edge_agent.update_state import State
from edgeloop import topics


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(tmp_path, monkeypatch)


def used_bytes(device: Device) -> int:
    return sum(path.stat().st_size for path in (device.folder / "blobs").rglob("*") if path.is_file())


def test_many_updates_finished_and_given_up_stay_within_the_quota(device: Device) -> None:
    """Every other one is superseded with half of its blocks on the disk."""
    size = FIRST.manifest.size_bytes
    device.quota_bytes = 4 * size + 64 * 1024
    device.restart()
    for generation in range(1, 31):
        shipment = ship(make_model(100 + generation))
        if generation % 2:
            device.install(shipment, generation)
        else:
            device.updater.handle(DeploymentSeen(slot=slot(shipment, generation)))
            device.updater.on_message(topics.manifest(shipment.manifest_digest), shipment.raw_manifest)
            for n in range(len(shipment.blocks) // 2):
                device.updater.on_message(topics.block(shipment.digest, n), shipment.blocks[n])
        assert device.updater.state.code == ""
        assert used_bytes(device) <= device.quota_bytes
    device.install(FIRST, 31)
    kept = device.updater.state.kept
    assert {path.name for path in (device.folder / "blobs" / "artifacts").iterdir()} == {
        each.digest for each in kept
    }
    assert list((device.folder / "blobs" / "partial").iterdir()) == []


def test_what_was_given_up_goes_oldest_first_and_only_where_there_is_no_room(device: Device) -> None:
    size = FIRST.manifest.size_bytes
    device.quota_bytes = 3 * size + size // 2
    device.restart()
    device.install(FIRST, 1)
    partial = device.folder / "blobs" / "partial"
    for age, name in ((50, "a"), (30, "b")):
        folder = partial / (name * 64)
        folder.mkdir()
        (folder / "0").write_bytes(bytes(size // 3))
        os.utime(folder, (1000 - age, 1000 - age))
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.updater.on_message(topics.manifest(SECOND.manifest_digest), SECOND.raw_manifest)
    assert {path.name[0] for path in partial.iterdir() if path.name != SECOND.digest} == {"b"}
    device.fetch(SECOND)
    device.pass_test()
    device.serve()
    assert device.serving == SECOND.digest


def test_a_quota_without_room_for_a_second_model_is_said_and_the_first_serves(device: Device) -> None:
    size = FIRST.manifest.size_bytes
    device.quota_bytes = 2 * size + size // 2
    device.restart()
    device.install(FIRST, 1)
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.updater.on_message(topics.manifest(SECOND.manifest_digest), SECOND.raw_manifest)
    state = device.updater.state
    assert (state.state, state.code) == (State.REJECTED, "storage-quota")
    assert "blob_quota_bytes" in state.message
    assert device.serving == FIRST.digest
    assert (device.folder / "blobs" / "artifacts" / FIRST.digest).exists()
