"""A state folder in which something is not what it should be, and failures that nobody foresaw: it serves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_agent_updater import FIRST, SECOND, Device, slot

from edge_agent.update_events import DeploymentSeen
from edge_agent.update_state import State
from edge_agent.updater import INTERNAL
from edgeloop import topics


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """It serves the first model, and has two blocks of the second."""
    device = Device(tmp_path, monkeypatch)
    device.install(FIRST, 1)
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.updater.on_message(topics.manifest(SECOND.manifest_digest), SECOND.raw_manifest)
    for topic in sorted(device.subscribed)[:2]:
        device.updater.on_message(topic, SECOND.blocks[topics.block_of(topic)[1]])
    return device


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def as_folder(path: Path) -> None:
    remove(path)
    (path / "inside").mkdir(parents=True)


def as_file(path: Path) -> None:
    remove(path)
    path.write_bytes(b"what")


def as_loop(path: Path) -> None:
    remove(path)
    os.symlink(path, path)


@pytest.mark.parametrize("change", [as_folder, as_file, as_loop, remove])
@pytest.mark.parametrize("where", ["partial", "partial/DIGEST", "partial/DIGEST/BLOCK", "artifacts/OTHER"])
def test_whatever_lies_where_blocks_are_fetched_to_it_serves_and_fetches(
    device: Device, where: str, change: Callable[[Path], None]
) -> None:
    partial = device.folder / "blobs" / "partial" / SECOND.digest
    block = min(path.name for path in partial.iterdir())
    names = where.replace("OTHER", SECOND.digest).replace("DIGEST", SECOND.digest).replace("BLOCK", block)
    path = device.folder / "blobs" / names
    if not path.exists():
        path.write_bytes(b"")
    change(path)
    device.restart()
    assert device.serving == FIRST.digest
    device.fetch(SECOND)
    device.pass_test()
    device.serve()
    assert device.serving == SECOND.digest


def test_a_disk_that_does_not_even_list_what_it_has_ends_the_fetch_alone(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **named: object) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    monkeypatch.setattr(Path, "iterdir", fail)
    device.restart()
    assert device.serving == FIRST.digest
    assert (device.updater.state.state, device.updater.state.code) == (State.REJECTED, "storage-failed")


@pytest.mark.parametrize("step", ["verify", "self_test", "load"])
def test_a_failure_that_nobody_foresaw_ends_the_update_and_not_the_agent(
    device: Device, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*given: object) -> Any:
        raise MemoryError("no more")

    monkeypatch.setattr(device.updater._loader, step, fail)
    device.fetch(SECOND)
    if step == "load":
        device.pass_test()
    ending = State.ROLLED_BACK if step == "load" else State.REJECTED
    assert (device.updater.state.state, device.updater.state.code) == (ending, INTERNAL)
    assert "MemoryError" in device.updater.state.message
    assert device.serving == FIRST.digest
    # Neither a pending event nor a state is stuck: the next deployment is followed.
    monkeypatch.undo()
    device.updater.handle(DeploymentSeen(slot=slot(FIRST, 3)))
    device.fetch(FIRST)
    assert (device.updater.state.state, device.updater.state.generation) == (State.ACTIVE, 3)
