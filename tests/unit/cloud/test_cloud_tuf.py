"""The TUF repository of a control plane: what it releases, and that no version ever goes down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloud import tuf_root
from cloud.tuf_files import TufFiles
from cloud.tuf_repository import TufRepository
from edge_agent import tuf_client
from edgeloop import released
from edgeloop.errors import ConfigError
from edgeloop.released import TIMESTAMP_FILE, target_path

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0


def digest(number: int) -> str:
    return f"{number:064x}"


class Plane:
    def __init__(self, base: Path) -> None:
        self.files: dict[str, bytes] = {}
        self.disk = TufFiles(base)
        tuf_root.ensure(self.disk, now_s=NOW_S)
        self.repository = TufRepository(base, size_of=lambda _: 7, on_files=self._take)

    def _take(self, files: dict[str, bytes]) -> None:
        self.files = files

    def release(self, *numbers: int, now_s: float = NOW_S) -> dict[str, bytes]:
        self.repository.release([(digest(n), digest(n + 1000)) for n in numbers], now_s)
        return self.files

    def keys(self, *numbers: int) -> list[Path]:
        return [self.disk.root_keys / f"root-{number}.pem" for number in numbers]


def versions(files: dict[str, bytes]) -> tuple[int, ...]:
    """Of targets, snapshot and timestamp."""
    parsed = {
        json.loads(raw)["signed"]["_type"]: json.loads(raw)["signed"]["version"] for raw in files.values()
    }
    return parsed["targets"], parsed["snapshot"], parsed["timestamp"]


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    return Plane(tmp_path / "plane")


def test_a_device_finds_what_was_released_and_nothing_else(plane: Plane, tmp_path: Path) -> None:
    files = plane.release(1)
    root = plane.disk.root_bytes()

    def found(number: int) -> object:
        return tuf_client.lookup(tmp_path / "d", root, files, target_path(digest(number)), now_s=NOW_S)

    assert found(1)
    assert found(2) is None
    files = plane.release(2)
    assert found(1)
    assert found(2)
    assert list(files)[-1] == TIMESTAMP_FILE


def test_nothing_is_signed_while_nothing_changes_and_the_timestamp_is_renewed_in_time(plane: Plane) -> None:
    first = dict(plane.release(1))
    assert plane.release(1, now_s=NOW_S + DAY_S) == first
    renewed = plane.release(1, now_s=NOW_S + 2 * DAY_S)
    assert versions(renewed)[:2] == versions(first)[:2]
    assert versions(renewed)[2] > versions(first)[2]


def test_killed_at_every_write_no_version_goes_down_and_the_next_start_releases(
    tmp_path, monkeypatch
) -> None:
    """A device that saw anything that was published is never shown less."""
    for killed_at in range(1, 4):
        base = tmp_path / str(killed_at)
        plane = Plane(base)
        before = dict(plane.release(1))
        write, count = TufFiles.write, 0

        def dying(self, name, raw, *, write=write, killed_at=killed_at):
            nonlocal count
            count += 1
            if count == killed_at:
                raise KeyboardInterrupt
            write(self, name, raw)

        monkeypatch.setattr(TufFiles, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            plane.release(1, 2, now_s=NOW_S + 5)
        monkeypatch.setattr(TufFiles, "write", write)
        assert plane.files == before  # nothing of it was published
        after = Plane(base).release(1, 2, now_s=NOW_S + 6)
        assert all(new > old for new, old in zip(versions(after), versions(before), strict=True))
        device = tmp_path / f"device-{killed_at}"
        for files in (before, after):
            tuf_client.lookup(device, plane.disk.root_bytes(), files, target_path(digest(1)), now_s=NOW_S + 6)


def test_restored_from_an_old_backup_it_begins_above_all_that_devices_saw(
    plane: Plane, tmp_path: Path
) -> None:
    plane.release(1)
    kept = {path: path.read_bytes() for path in plane.disk.metadata.iterdir()}
    for number in range(2, 6):
        last = dict(plane.release(*range(1, number + 1), now_s=NOW_S + number))
    for path in plane.disk.metadata.iterdir():
        path.unlink()
    for path, raw in kept.items():
        path.write_bytes(raw)
    again = Plane(plane.disk.base).release(7, now_s=NOW_S + 60)
    assert all(new > old for new, old in zip(versions(again), versions(last), strict=True))


def test_restored_with_nothing_new_to_release_devices_still_believe_it(plane: Plane, tmp_path: Path) -> None:
    plane.release(1)
    backup = {path: path.read_bytes() for path in plane.disk.metadata.iterdir()}
    seen = dict(plane.release(1, 2, now_s=NOW_S + 60))
    device, root = tmp_path / "device", plane.disk.root_bytes()
    tuf_client.lookup(device, root, seen, target_path(digest(2)), now_s=NOW_S + 60)

    for path in plane.disk.metadata.iterdir():
        path.unlink()
    for path, raw in backup.items():
        path.write_bytes(raw)
    files = Plane(tmp_path / "plane").release(1, now_s=NOW_S + 3600)
    assert tuf_client.lookup(device, root, files, target_path(digest(1)), now_s=NOW_S + 3600)
    assert tuf_client.lookup(device, root, files, target_path(digest(2)), now_s=NOW_S + 3600) is None


def test_the_oldest_that_nothing_runs_make_room(plane: Plane, monkeypatch) -> None:
    monkeypatch.setattr(released, "MAX_TARGETS", 3)
    for number in range(1, 6):
        plane.release(1, number, now_s=NOW_S + number)
    raw = next(raw for name, raw in plane.files.items() if name.endswith(".targets.json"))
    assert set(json.loads(raw)["signed"]["targets"]) == {target_path(digest(n)) for n in (1, 4, 5)}
    with pytest.raises(ConfigError, match="at most 3"):
        plane.release(1, 2, 3, 4)


def test_a_root_takes_two_signatures_wherever_its_keys_are(plane: Plane, tmp_path: Path) -> None:
    plane.release(1)
    old = plane.disk.signer("timestamp", plane.disk.root().signed).public_key.keyid
    tuf_root.propose(plane.disk, now_s=NOW_S, roles=["timestamp"])
    elsewhere = tmp_path / "carried.json"
    elsewhere.write_bytes(plane.disk.draft.read_bytes())
    tuf_root.sign(elsewhere, plane.keys(3))
    assert not tuf_root.apply(plane.disk, elsewhere).complete
    assert plane.disk.root_version() == 1
    tuf_root.sign(elsewhere, plane.keys(3))  # the same again is no second signature
    assert not tuf_root.apply(plane.disk, elsewhere).complete
    tuf_root.sign(elsewhere, plane.keys(1))
    assert tuf_root.apply(plane.disk, elsewhere).complete
    assert plane.disk.root_version() == 2
    plane.release(1, now_s=NOW_S + 1)
    assert plane.disk.signer("timestamp", plane.disk.root().signed).public_key.keyid != old


def test_a_lost_root_key_is_replaced_by_the_others(plane: Plane, tmp_path: Path) -> None:
    lost = plane.disk.root().signed.roles["root"].keyids[1]
    new = tmp_path / "new.pem"
    tuf_root.propose(plane.disk, now_s=NOW_S, retired=[lost[:12]], added=[new])
    tuf_root.sign(plane.disk.draft, plane.keys(1, 3))
    assert tuf_root.apply(plane.disk).complete
    root = plane.disk.root().signed
    assert lost not in root.roles["root"].keyids
    assert (root.roles["root"].threshold, len(root.roles["root"].keyids)) == (2, 3)
    with pytest.raises(ConfigError, match="could sign"):
        tuf_root.propose(plane.disk, now_s=NOW_S, threshold=4)


def test_running_needs_no_root_key_and_no_key_is_readable_by_others(plane: Plane) -> None:
    for path in plane.disk.root_keys.iterdir():
        assert path.stat().st_mode & 0o077 == 0
        path.unlink()
    plane.disk.root_keys.rmdir()
    assert Plane(plane.disk.base).release(1)
    assert all(path.stat().st_mode & 0o077 == 0 for path in plane.disk.keys.iterdir())


def test_a_damaged_repository_says_what_to_do_and_releases_nothing(plane: Plane) -> None:
    plane.release(1)
    (plane.disk.metadata / TIMESTAMP_FILE).write_bytes(b"{")
    with pytest.raises(ConfigError, match="restore it from a backup"):
        Plane(plane.disk.base).release(1, 2)
