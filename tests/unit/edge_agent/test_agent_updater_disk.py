"""The updater on a disk that does not save, damages, or loses what it holds."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from updater_device import FIRST, SECOND, Device, slot

from edge_agent.journal import Journal
from edge_agent.selftest import SelfTestResult
from edge_agent.update_events import DeploymentSeen
from edge_agent.update_state import State
from edge_agent.updater import RETRY_S
from edgeloop import topics


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(tmp_path, monkeypatch)


def test_while_the_state_cannot_be_saved_nothing_is_done_and_then_it_is(device: Device, monkeypatch) -> None:
    device.install(FIRST, 1)

    def full(journal: Journal, state: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", full)
        device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
        device.tick(RETRY_S)
        assert (device.updater.state.generation, device.subscribed) == (1, set())
        assert device.serving == FIRST.digest
        # A start in this situation serves too.
        device.restart()
        assert device.serving == FIRST.digest
        device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.tick(RETRY_S)
    assert device.updater.state.generation == 2
    assert device.subscribed == {topics.manifest(SECOND.manifest_digest)}


def test_a_start_on_trial_that_cannot_be_saved_serves_the_last_good_model(
    device: Device, monkeypatch
) -> None:
    device.install(FIRST, 1)
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.fetch(SECOND)
    device.pass_test()
    assert device.serving == SECOND.digest

    def full(journal: Journal, state: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Journal, "save", full)
    device.restart()
    assert device.serving == FIRST.digest


def test_a_damaged_model_and_a_state_that_cannot_be_saved_leave_the_one_before_it(
    device: Device, monkeypatch
) -> None:
    device.install(FIRST, 1)
    device.install(SECOND, 2)

    def full(journal: Journal, state: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = device.folder / "blobs" / "artifacts" / SECOND.digest
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", full)
        device.restart()
        assert device.serving == FIRST.digest
    device.tick(RETRY_S)
    assert (device.serving, device.updater.state.state) == (FIRST.digest, State.FETCHING)
    device.fetch(SECOND)
    device.pass_test()
    assert device.serving == SECOND.digest


def test_what_does_not_verify_and_cannot_be_deleted_is_not_served(device: Device, monkeypatch) -> None:
    device.install(FIRST, 1)
    device.install(SECOND, 2)
    path = device.folder / "blobs" / "artifacts" / SECOND.digest
    path.write_bytes(b"\0")

    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    device.restart()
    assert device.serving == FIRST.digest


def test_a_file_that_vanishes_before_its_test_is_fetched_again(device: Device) -> None:
    device.updater.handle(DeploymentSeen(slot=slot(FIRST, 1)))
    device.fetch(FIRST)
    (device.folder / "blobs" / "artifacts" / FIRST.digest).unlink()
    device.updater.on_self_test(device.tests[-1], SelfTestResult(code="artifact-missing", message="m"))
    assert device.updater.state.state is State.FETCHING
    device.fetch(FIRST)
    device.pass_test()
    assert device.serving == FIRST.digest


@pytest.mark.parametrize("damage", ["deleted", "altered"])
def test_a_block_that_the_disk_loses_before_the_last_has_come_is_fetched_again_alone(
    device: Device, damage: str
) -> None:
    device.install(FIRST, 1)
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.updater.on_message(topics.manifest(SECOND.manifest_digest), SECOND.raw_manifest)
    topic = min(device.subscribed)
    lost = topics.block_of(topic)[1]
    device.updater.on_message(topic, SECOND.blocks[lost])
    path = device.folder / "blobs" / "partial" / SECOND.digest / str(lost)
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(bytes(len(SECOND.blocks[lost])))
    came = []
    while device.updater.state.state is State.FETCHING and device.subscribed:
        topic = min(device.subscribed)
        came.append(topics.block_of(topic)[1])
        device.updater.on_message(topic, SECOND.blocks[came[-1]])
    assert sorted(came) == sorted(range(len(SECOND.blocks)))
    device.pass_test()
    assert device.serving == SECOND.digest


def test_a_trial_that_fails_where_nothing_can_be_saved_gives_way_to_the_good_model(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.install(FIRST, 1)
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.fetch(SECOND)
    device.pass_test()
    assert device.serving == SECOND.digest

    def read_only(journal: Journal, state: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", read_only)
        for _ in range(3):
            device.meter.record_error(device.engine.serving.key, 0.0)
        device.tick()
        assert device.serving == FIRST.digest
        device.tick(RETRY_S)
        assert (device.serving, device.updater.state.state) == (FIRST.digest, State.TRIAL)
    device.tick(RETRY_S)
    assert (device.serving, device.updater.state.state) == (FIRST.digest, State.ROLLED_BACK)
    assert device.updater.state.quarantine == (SECOND.digest,)
    device.restart()
    assert device.serving == FIRST.digest
