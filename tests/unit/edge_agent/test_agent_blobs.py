"""The store under damage, full disks and deaths half-way."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_agent_fetch import BLOCK, BLOCKS, DATA, MANIFEST, NUM_BLOCKS, RAW, SLOT, manifest_for

from edge_agent import blobs as blobs_module
from edge_agent.blobs import BlobStore
from edgeloop import artifact
from edgeloop.artifact import BlockAssembler
from edgeloop.errors import RejectedError

MEMORY = """
import sys, tracemalloc
from pathlib import Path
from edge_agent.blobs import BlobStore
store = BlobStore(Path(sys.argv[1]), reserve_bytes=0)
manifest = store.read_manifest(sys.argv[2])
tracemalloc.start()
store.assemble(manifest)
assert store.has_artifact(manifest)
store.check_artifact(manifest)
print(tracemalloc.get_traced_memory()[1])
"""


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path, reserve_bytes=1000)


def fill(store: BlobStore, blocks: range = range(NUM_BLOCKS)) -> None:
    for n in blocks:
        store.keep_block(SLOT.digest, n, BLOCKS[n])


def survivors(store: BlobStore) -> list[int]:
    assembler = BlockAssembler(MANIFEST)
    store.kept_blocks(MANIFEST, assembler)
    return sorted(set(range(NUM_BLOCKS)) - set(assembler.missing()))


def code_of(call) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(RejectedError) as caught:
        call()
    return caught.value.code


def test_blocks_become_an_artifact_and_leave_no_trace(store: BlobStore, tmp_path: Path) -> None:
    fill(store)
    assert not store.has_artifact(MANIFEST)
    store.assemble(MANIFEST)
    assert store.read_artifact(MANIFEST) == DATA
    assert list((tmp_path / "partial").iterdir()) == []
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == [MANIFEST.digest]


def test_only_whole_blocks_survive_a_restart(store: BlobStore, tmp_path: Path) -> None:
    fill(store, range(5))
    folder = tmp_path / "partial" / SLOT.digest
    (folder / "1").write_bytes(BLOCKS[1][:100])
    (folder / "2").write_bytes(BLOCKS[3])
    (folder / "99").write_bytes(b"x")
    (folder / "note.txt").write_bytes(b"x")
    again = BlobStore(tmp_path, reserve_bytes=0)
    assert survivors(again) == [0, 3, 4]
    assert sorted(path.name for path in folder.iterdir()) == ["0", "3", "4", "note.txt"]


def test_an_artifact_that_was_damaged_is_deleted_and_never_handed_out(store: BlobStore) -> None:
    fill(store)
    store.assemble(MANIFEST)
    path = store.artifact_path(MANIFEST.digest)
    data = bytearray(path.read_bytes())
    data[1234] ^= 1
    path.write_bytes(data)
    assert code_of(lambda: store.read_artifact(MANIFEST)) == "artifact-altered"
    assert not path.exists()
    assert code_of(lambda: store.read_artifact(MANIFEST)) == "artifact-missing"


def test_a_manifest_that_was_damaged_is_deleted_and_never_handed_out(store: BlobStore) -> None:
    store.keep_manifest(SLOT.manifest_digest, RAW)
    assert store.read_manifest(SLOT.manifest_digest) == MANIFEST
    store.manifest_path(SLOT.manifest_digest).write_bytes(RAW[:-1])
    assert code_of(lambda: store.read_manifest(SLOT.manifest_digest)) == "manifest-altered"
    assert code_of(lambda: store.read_manifest(SLOT.manifest_digest)) == "manifest-missing"


def test_a_large_artifact_is_put_together_and_verified_in_the_memory_of_a_few_blocks(
    store: BlobStore, tmp_path: Path
) -> None:
    data = np.random.default_rng(2).bytes(4 << 20)
    manifest = manifest_for(data=data)
    folder = tmp_path / "partial" / manifest.digest
    folder.mkdir()
    for n, block in enumerate(artifact.split_blocks(data, BLOCK)):
        (folder / str(n)).write_bytes(block)
    raw = artifact.encode_manifest(manifest)
    store.keep_manifest(artifact.sha256_hex(raw), raw)
    # In a process of its own, where no other thread allocates.
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), artifact.sha256_hex(raw)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) < len(data) / 4
    assert store.read_artifact(manifest) == data


def test_blocks_that_together_are_not_the_artifact_leave_nothing_of_it(
    store: BlobStore, tmp_path: Path
) -> None:
    fill(store)
    (tmp_path / "partial" / SLOT.digest / "3").write_bytes(bytes(BLOCK))
    assert code_of(lambda: store.assemble(MANIFEST)) == "artifact-altered"
    assert list((tmp_path / "artifacts").iterdir()) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "a" * 63, ""])
def test_no_name_leads_out_of_the_store(store: BlobStore, name: str) -> None:
    with pytest.raises(RejectedError):
        store.artifact_path(name)
    with pytest.raises(RejectedError):
        store.keep_block(name, 0, b"x")


def test_room_for_twice_the_artifact_and_the_reserve_is_asked_for(tmp_path: Path) -> None:
    free = [2 * len(DATA) + 1000]
    store = BlobStore(tmp_path, reserve_bytes=1000, free_bytes=lambda path: free[0])
    store.check_room(MANIFEST)
    free[0] -= 1
    assert code_of(lambda: store.check_room(MANIFEST)) == "storage-full"
    # What is there already does not have to fit again.
    store.keep_block(SLOT.digest, 0, BLOCKS[0])
    free[0] -= BLOCK - 1
    store.check_room(MANIFEST)


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "storage-full"), (errno.EIO, "storage-failed")],
    ids=["full", "broken"],
)
@pytest.mark.parametrize("num_before", range(3))
def test_a_disk_that_fails_at_any_step_leaves_what_was_there(
    store: BlobStore, monkeypatch, num_before: int, number: int, code: str
) -> None:
    fill(store)
    calls = [num_before]

    def failing(real):  # type: ignore[no-untyped-def]
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            calls[0] -= 1
            if calls[0] < 0:
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(blobs_module.os, name, failing(getattr(os, name)))
    assert code_of(lambda: store.assemble(MANIFEST)) == code
    monkeypatch.undo()
    # Either the artifact is there whole, or all its blocks still are: nothing has to come again.
    assert store.has_artifact(MANIFEST) or survivors(store) == list(range(NUM_BLOCKS))
    store.assemble(MANIFEST)
    assert store.read_artifact(MANIFEST) == DATA


def test_collection_leaves_only_what_is_kept_and_takes_torn_files(store: BlobStore, tmp_path: Path) -> None:
    other = manifest_for(b"other" * 2000)
    for manifest in (MANIFEST, other):
        data = DATA if manifest is MANIFEST else b"other" * 2000
        for n in range(len(manifest.block_digests)):
            store.keep_block(manifest.digest, n, data[n * BLOCK : (n + 1) * BLOCK])
        store.assemble(manifest)
    store.keep_manifest(SLOT.manifest_digest, RAW)
    store.keep_block("1" * 64, 0, b"x")
    (tmp_path / "artifacts" / f".{'2' * 64}.new").write_bytes(b"torn")
    assert store.collect(keep_artifacts={MANIFEST.digest}, keep_manifests=set()) == 4
    assert store.has_artifact(MANIFEST)
    assert not store.has_artifact(other)
    assert store.find_manifest(SLOT.manifest_digest) is None
    assert list((tmp_path / "partial").iterdir()) == []
