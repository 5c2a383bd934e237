"""A state folder in which something is not what it should be, and failures that nobody foresaw: it serves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from updater_device import FIRST, SECOND, Device, slot

from edge_agent.blobs import BlobStore
from edge_agent.selftest import SelfTestJob, SelfTestProcess, SelfTestResult
from edge_agent.update_events import INTERNAL, DeploymentSeen
from edge_agent.update_state import State
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


@pytest.mark.parametrize("quota_bytes", [None, 10_000_000], ids=["no-quota", "quota"])
@pytest.mark.parametrize("where", ["", "partial", "artifacts", "manifests"])
def test_folders_that_are_cleared_away_while_it_runs_cost_no_restart(
    device: Device, where: str, quota_bytes: int | None
) -> None:
    device.quota_bytes = quota_bytes
    device.restart()
    remove(device.folder / "blobs" / where)
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 3)))
    device.fetch(SECOND)
    device.pass_test()
    device.serve()
    assert (device.serving, device.updater.state.state) == (SECOND.digest, State.ACTIVE)


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


@pytest.mark.parametrize("step", ["keep_block", "assemble"])
def test_a_message_that_fails_in_an_unforeseen_way_ends_the_fetch_and_leaves_no_state_waiting(
    device: Device, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*given: object) -> Any:
        raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, step, fail)
        device.fetch(SECOND)
    assert (device.updater.state.state, device.updater.state.code) == (State.REJECTED, INTERNAL)
    assert device.subscribed == set()
    assert device.serving == FIRST.digest
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 3)))
    device.fetch(SECOND)
    assert device.updater.state.state is State.TESTING


WITHOUT_DESCRIPTORS = """
import resource, sys
from pathlib import Path
from edge_agent.blobs import BlobStore
from edgeloop.artifact import BlockAssembler
from edgeloop.errors import RejectedError
blobs = BlobStore(Path(sys.argv[1]), reserve_bytes=0)
first, second = map(blobs.read_manifest, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
for read in (lambda: blobs.read_manifest(sys.argv[2]), lambda: blobs.read_artifact(first)):
    try:
        read()
    except RejectedError as error:
        print(error.code, error.message)
blobs.kept_blocks(second, BlockAssembler(second))
"""


def test_a_process_without_descriptors_loses_no_model(device: Device) -> None:
    folder = device.folder / "blobs"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(before) == 5  # two manifests, an artifact and two blocks
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_DESCRIPTORS,
            str(folder),
            FIRST.manifest_digest,
            SECOND.manifest_digest,
        ],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.count("Too many open files") == 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    device.restart()
    assert device.serving == FIRST.digest


def test_a_self_test_that_cannot_be_followed_has_an_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **named: object) -> Any:
        raise MemoryError("no more")

    monkeypatch.setattr(subprocess.Popen, "communicate", fail)
    ended: SimpleQueue[SelfTestResult] = SimpleQueue()
    job = SelfTestJob(artifact_path=tmp_path / "a", manifest_path=tmp_path / "m", manifest_digest="0" * 64)
    process = SelfTestProcess(job, ended.put)
    process.start()
    assert ended.get(timeout=60).code == "self-test-crash"
    process.stop()
