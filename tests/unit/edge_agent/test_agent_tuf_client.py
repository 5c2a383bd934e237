"""The cases of TUF's conformance suite that concern a client of top-level roles, over our fetcher.

Named as there. Left out: delegations (there are none), downloads and quoting (targets do not come by TUF),
and key types other than Ed25519 (none is made).
"""

from __future__ import annotations

import contextlib
import datetime
import shutil
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Key, Metadata, Root
from tuf_simulator import NOW, ROLES, Simulator

from edge_agent import tuf_client
from edgeloop import released
from edgeloop.errors import ConfigError, TransientError


@pytest.fixture
def repo(tmp_path: Path) -> Simulator:
    return Simulator(tmp_path / "tuf")


def test_what_killed_refreshes_left_goes_with_the_next(repo: Simulator) -> None:
    for number in range(3):
        (repo.folder / f".work-{number}" / "root_history").mkdir(parents=True)
        (repo.folder / f".work-{number}" / "targets.json").write_bytes(b"half")
    assert repo.refresh() == ""
    assert repo.version("targets") == 1
    assert not list(repo.folder.glob(".*"))


def test_basic_init_and_refresh(repo: Simulator) -> None:
    assert repo.refresh() == ""
    assert [repo.version(role) for role in ("root", *ROLES)] == [1, 1, 1, 1]


@pytest.mark.parametrize("damage", [b"{}", b"[" * 9000, b"\xff\x00"])
def test_invalid_initial_root(repo: Simulator, damage: bytes) -> None:
    repo.trusted = damage
    with pytest.raises(ConfigError, match="tuf_root"):
        repo.refresh()


def test_unsigned_initial_root(repo: Simulator) -> None:
    metadata: Metadata[Root] = Metadata.from_bytes(repo.trusted)
    metadata.signatures.clear()
    repo.trusted = metadata.to_bytes()
    with pytest.raises(ConfigError, match="tuf_root"):
        repo.refresh()


def test_timestamp_eq_versions_check(repo: Simulator) -> None:
    repo.refresh()
    before = (repo.folder / "timestamp.json").read_bytes()
    repo.timestamp.snapshot_meta.version = 100
    repo.publish_timestamp()
    assert repo.refresh() == ""
    assert (repo.folder / "timestamp.json").read_bytes() == before


def test_custom_fields(repo: Simulator) -> None:
    repo.refresh()
    repo.root.unrecognized_fields["custom-field"] = {"a": [1, 2]}
    repo.bump_root()
    repo.publish("timestamp")
    assert repo.refresh() == ""
    assert repo.version("root") == 2


def test_new_targets_hash_mismatch(repo: Simulator) -> None:
    repo.refresh()
    repo.publish("targets", "snapshot", "timestamp")
    repo.targets.unrecognized_fields["other"] = 1
    repo.received["2.targets.json"] = repo.signed("targets", repo.targets)
    assert repo.refresh() == "tuf-mixed"
    assert repo.version("targets") == 1


def test_new_targets_version_mismatch(repo: Simulator) -> None:
    repo.hashes = False
    repo.publish("snapshot", "timestamp")
    repo.refresh()
    repo.publish("targets", "snapshot", "timestamp")
    repo.targets.version = 5
    repo.received["2.targets.json"] = repo.signed("targets", repo.targets)
    assert repo.refresh() == "tuf-rollback"
    assert repo.version("targets") == 1


def test_new_timestamp_version_rollback(repo: Simulator) -> None:
    repo.publish("timestamp")
    repo.refresh()
    repo.timestamp.version = 1
    repo.publish_timestamp()
    assert repo.refresh() == "tuf-rollback"
    assert repo.version("timestamp") == 2


@pytest.mark.parametrize("hashes", [False, True], ids=["basic", "with hashes"])
def test_snapshot_rollback(repo: Simulator, hashes: bool) -> None:
    repo.hashes = hashes
    repo.publish("snapshot", "timestamp")
    repo.refresh()
    repo.snapshot.version = 1
    repo.publish("timestamp")
    assert repo.refresh() == "tuf-rollback"
    assert (repo.version("timestamp"), repo.version("snapshot")) == (2, 2)


@pytest.mark.parametrize("hashes", [False, True], ids=["basic", "with hashes"])
def test_targets_rollback(repo: Simulator, hashes: bool) -> None:
    repo.hashes = hashes
    repo.publish("targets", "snapshot", "timestamp")
    repo.refresh()
    repo.targets.version = 1
    repo.publish("snapshot", "timestamp")
    assert repo.refresh() == "tuf-rollback"
    assert repo.version("targets") == 2


def test_new_snapshot_version_mismatch(repo: Simulator) -> None:
    repo.hashes = False
    repo.publish("timestamp")
    repo.snapshot.version = 7
    repo.received["1.snapshot.json"] = repo.signed("snapshot", repo.snapshot)
    assert repo.refresh() == "tuf-rollback"


@pytest.mark.parametrize(
    ("ahead", "rotated"),
    [("timestamp", ["timestamp"]), ("snapshot", ["snapshot", "timestamp"]), ("targets", ["snapshot"])],
    ids=["timestamp", "snapshot", "targets"],
)
def test_new_fast_forward_recovery(repo: Simulator, ahead: str, rotated: list[str]) -> None:
    getattr(repo, ahead).version = 99_999
    repo.publish(*(role for role in ("snapshot", "timestamp") if role != ahead))
    assert repo.refresh() == ""
    assert repo.version(ahead) == 99_999
    for role in rotated:
        repo.rotate(role)
    getattr(repo, ahead).version = 1
    repo.root.version += 1
    repo.publish_root()
    repo.publish(*(role for role in ("snapshot", "timestamp") if role != ahead))
    assert repo.refresh() == ""
    assert repo.version(ahead) == 1


@pytest.mark.parametrize("role", ROLES)
def test_expired(repo: Simulator, role: str) -> None:
    """test_timestamp_expired, test_snapshot_expired, test_targets_expired"""
    repo.refresh()
    getattr(repo, role).expires = NOW - datetime.timedelta(days=5)
    repo.publish(*dict.fromkeys([role, "snapshot", "timestamp"]))
    assert repo.refresh() == "tuf-expired"
    assert repo.version("targets") == 1


def test_root_expired(repo: Simulator) -> None:
    repo.refresh()
    repo.root.expires = NOW - datetime.timedelta(days=1)
    repo.bump_root()
    repo.publish("targets", "snapshot", "timestamp")
    assert repo.refresh() == "tuf-expired"
    assert [repo.version(role) for role in ("root", *ROLES)] == [2, 1, 1, 1]


def test_expired_metadata(repo: Simulator) -> None:
    """What expired here still serves against rollback, and hinders no newer."""
    repo.timestamp.expires = NOW + datetime.timedelta(days=7)
    repo.publish()
    repo.refresh()
    assert repo.refresh(days=18) == "tuf-expired"
    repo.timestamp.expires = NOW + datetime.timedelta(days=21)
    repo.publish("targets", "snapshot", "timestamp")
    assert repo.refresh(days=18) == ""
    assert [repo.version(role) for role in ROLES] == [2, 2, 2]


def test_snapshot_threshold(repo: Simulator) -> None:
    repo.refresh()
    for _ in range(4):
        repo.signers["snapshot"].append(CryptoSigner.generate_ed25519())
        repo.root.add_key(repo.signers["snapshot"][-1].public_key, "snapshot")
    repo.root.roles["snapshot"].threshold = 6
    repo.bump_root()
    repo.publish("snapshot", "timestamp")
    assert repo.refresh() == "tuf-threshold"
    assert repo.version("snapshot") == 1


def test_duplicate_keys_root(repo: Simulator) -> None:
    """One key under many ids is one key."""
    repo.refresh()
    signer = repo.signers["snapshot"][0]
    facts = signer.public_key.to_dict()
    for number in range(8):
        repo.root.add_key(Key.from_dict(f"{number:064x}", {**facts, "x": number}), "snapshot")
    repo.root.roles["snapshot"].threshold = 3
    repo.bump_root()
    repo.publish("snapshot", "timestamp")
    assert repo.refresh() == "tuf-threshold"


# keys that the version names, threshold, keys that sign; the last version's success
ROOTS: dict[str, tuple[list[tuple[list[int], int, list[int]]], bool]] = {
    "1-of-1-key-rotation": ([([1], 1, [1]), ([2], 1, [2, 1]), ([2], 1, [2])], True),
    "1-of-1-key-rotation-unused-signatures": ([([1], 1, [3, 1, 4]), ([2], 1, [3, 2, 1, 4])], True),
    "3-of-5-one-key-rotated": ([([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 4, 1])], True),
    "1-of-3-threshold-increase-to-2-of-3": ([([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [1, 2])], True),
    "2-of-3-threshold-decrease-to-1-of-3": ([([1, 2, 3], 2, [1, 2]), ([1, 2, 3], 1, [1, 2])], True),
    "1-of-1-key-rotation-fail-not-signed-with-old-key": ([([1], 1, [1]), ([2], 1, [2, 3, 4])], False),
    "1-of-1-key-rotation-fail-not-signed-with-new-key": ([([1], 1, [1]), ([2], 1, [1, 3, 4])], False),
    "3-of-5-one-key-rotate-fails-not-signed-with-3-new-keys": (
        [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 2, 4])],
        False,
    ),
    "3-of-5-one-key-rotate-fails-not-signed-with-3-old-keys": (
        [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 4, 5])],
        False,
    ),
    "2-of-3-threshold-decr-to-1-of-3-fails-old-threshold-not-eached": (
        [([1, 2, 3], 2, [1, 2]), ([1, 2, 3], 1, [1])],
        False,
    ),
}


@pytest.mark.parametrize("case", ROOTS.values(), ids=ROOTS.keys())
def test_root_rotation(repo: Simulator, case: Any) -> None:
    versions, good = case
    signers = [CryptoSigner.generate_ed25519() for _ in range(6)]
    repo.received.clear()
    repo.root.version = 0
    for keys, threshold, signing in versions:
        repo.root.roles["root"].keyids.clear()
        repo.root.roles["root"].threshold = threshold
        for number in keys:
            repo.root.add_key(signers[number].public_key, "root")
        repo.signers["root"] = [signers[number] for number in signing]
        repo.root.version += 1
        repo.publish_root()
    repo.publish()
    repo.trusted = repo.received["1.root.json"]
    assert repo.refresh() == ("" if good else "tuf-threshold")
    assert repo.version("root") == len(versions) - (not good)


def test_what_has_not_come_is_named_one_after_the_other(repo: Simulator) -> None:
    repo.bump_root()
    there, repo.received = repo.received, {}
    for name in ("timestamp.json", "2.root.json", "1.snapshot.json", "1.targets.json"):
        with pytest.raises(tuf_client.NotReceivedError) as caught:
            repo.refresh()
        # Without a timestamp nobody knows whether there is a newer root.
        assert caught.value.name == ("2.root.json" if name == "timestamp.json" else name)
        repo.received[name] = there[name]
    assert repo.refresh() == ""


def test_no_file_is_longer_than_its_role_may_be(repo: Simulator) -> None:
    """Root, timestamp, snapshot and targets by the library's bounds, set from ours."""
    for name, change in {
        "timestamp.json": lambda: None,
        "2.root.json": lambda: repo.bump_root(),
    }.items():
        change()
        good = repo.received[name]
        repo.received[name] = good + b" " * released.max_bytes(name)
        assert repo.refresh() == "tuf-too-large"
        repo.received[name] = good
    assert repo.refresh() == ""


def test_a_damaged_folder_costs_a_refresh_and_nothing_else(repo: Simulator) -> None:
    repo.refresh()
    for path in (repo.folder / "timestamp.json", repo.folder / "root_history" / "1.root.json"):
        path.write_bytes(b"")
    assert repo.refresh() == ""
    assert repo.version("timestamp") == 1


@pytest.mark.parametrize("what", ["folder", "file", "loop"])
@pytest.mark.parametrize(
    "where", ["", "timestamp.json", "targets.json", "root_history", "root_history/1.root.json"]
)
def test_whatever_lies_where_metadata_is_kept_holds_up_one_refresh_at_most(
    repo: Simulator, where: str, what: str
) -> None:
    assert repo.refresh() == ""
    path = repo.folder / where
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if what == "folder":
        (path / "inside").mkdir(parents=True)
    elif what == "file":
        path.write_bytes(b"what")
    else:
        path.symlink_to(path)
    repo.publish("targets", "snapshot", "timestamp")
    for _ in range(3):
        with contextlib.suppress(TransientError):
            assert repo.refresh() == ""
            break
    assert repo.version("targets") == 2


def test_the_time_is_the_callers(repo: Simulator) -> None:
    """The clock of this test runs years before the repository's time, and nothing has expired by it."""
    assert repo.refresh(days=29) == ""
    assert repo.refresh(days=31) == "tuf-expired"
