"""What was backed up comes back whole, and nothing else is let in."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import tarfile
from pathlib import Path
from typing import IO

import pytest
from cloud_store_values import fill

from cloud import backup as backup_module
from cloud.backup import back_up, restore
from cloud.director_keys import rotate
from cloud.registry import Registry
from cloud.settings import ServeSettings
from cloud.state_folder import locked
from cloud.store import Store
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.trust import DirectorKey


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    """Of a control plane that has worked."""
    settings = ServeSettings(state_dir=tmp_path / "state")
    settings.state_dir.mkdir()
    store = Store(settings.database)
    store.migrate()
    fill(store)
    store.close()
    DirectorKey.generate().save(settings.director / "director.key")
    rotate(settings.director, now_s=1.0)
    registry = Registry(settings.registry)
    registry.put(b"an artifact")
    registry.put(b"its manifest")
    return settings


def rewritten(archive: Path, **changes: bytes) -> Path:
    """The archive with some members' bytes changed, or added."""
    target = archive.with_suffix(".changed")
    with tarfile.open(archive) as old, tarfile.open(target, "w") as new:
        names = {member.name: member.size for member in old}
        for name in [*names, *(name for name in changes if name not in names)]:
            found = old.extractfile(name) if name in names else None
            data = changes.get(name, found.read() if found else b"")
            member = tarfile.TarInfo(name)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return target


def test_what_was_backed_up_beside_a_running_writer_comes_back(
    settings: ServeSettings, tmp_path: Path
) -> None:
    archive = tmp_path / "backup.tar"
    store = Store(settings.database)
    with store.transaction():
        store.set_meta("note", "not committed yet")
        summary = back_up(settings, archive)
    store.close()
    assert (summary.has_database, summary.num_artifacts) == (True, 2)
    assert archive.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    again = ServeSettings(state_dir=tmp_path / "again")
    assert restore(archive, again.state_dir) == summary
    restored = Store(again.database)
    restored.migrate()
    assert restored.get_meta("note") == ""
    assert [device.device_id for device in restored.devices()] == ["gw-1"]
    assert restored.deployment("gw-1") is not None
    restored.close()
    for name in ("director.key", "director.key.old", "director-keys.bin"):
        assert (again.director / name).read_bytes() == (settings.director / name).read_bytes()
        assert (again.director / name).stat().st_mode & 0o777 == 0o600
    registry = Registry(again.registry)
    assert registry.get(Registry(settings.registry).put(b"an artifact")) == b"an artifact"


def test_nothing_is_restored_over_a_control_plane(settings: ServeSettings, tmp_path: Path) -> None:
    archive = tmp_path / "backup.tar"
    back_up(settings, archive)
    before = (settings.director / "director.key").read_bytes()
    with pytest.raises(ConfigError) as caught:
        restore(archive, settings.state_dir)
    assert caught.value.code == "restore-not-empty"
    assert (settings.director / "director.key").read_bytes() == before


def test_a_damaged_artifact_is_refused_and_nothing_stays(settings: ServeSettings, tmp_path: Path) -> None:
    archive = tmp_path / "backup.tar"
    back_up(settings, archive)
    with tarfile.open(archive) as opened:
        blob = next(name for name in opened.getnames() if name.startswith("registry/"))
    with pytest.raises(RejectedError) as caught:
        restore(rewritten(archive, **{blob: b"something else"}), tmp_path / "again")
    assert caught.value.code == "restore-altered"
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "serve.lock", "registry/sha256/aa/short"])
def test_what_no_backup_holds_is_refused(settings: ServeSettings, tmp_path: Path, name: str) -> None:
    archive = tmp_path / "backup.tar"
    back_up(settings, archive)
    with pytest.raises(RejectedError) as caught:
        restore(rewritten(archive, **{name: b"x"}), tmp_path / "again")
    assert caught.value.code == "restore-foreign"
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "again").exists()


def test_an_archive_that_breaks_off_is_refused(settings: ServeSettings, tmp_path: Path) -> None:
    archive = tmp_path / "backup.tar"
    back_up(settings, archive)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises((ConfigError, RejectedError)) as caught:
        restore(archive, tmp_path / "again")
    assert caught.value.code in ("restore-read", "restore-truncated")
    assert not (tmp_path / "again").exists()


def test_a_folder_without_a_database_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--state-dir"):
        back_up(ServeSettings(state_dir=tmp_path / "nothing"), tmp_path / "backup.tar")
    assert not (tmp_path / "backup.tar").exists()


def test_a_disk_that_is_full_is_named_and_nothing_is_left(
    settings: ServeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, target = tmp_path / "backup.tar", tmp_path / "again"
    back_up(settings, archive)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_room(stream: object, path: Path) -> str:
        path.write_bytes(b"half")
        raise full

    monkeypatch.setattr(backup_module, "_copy", no_room)
    with pytest.raises(ConfigError, match=r"again cannot be written \(No space left on device\)"):
        restore(archive, target)
    assert not target.exists()

    def no_write(descriptor: int, data: bytes) -> int:
        raise full

    monkeypatch.setattr("cloud.state_folder.os.write", no_write)
    with pytest.raises(ConfigError, match="other: it cannot be written to"), locked(tmp_path / "other"):
        pass
    assert not list((tmp_path / "other").iterdir())
    with pytest.raises(ConfigError, match="deep/er: it cannot be written to"):
        restore(archive, tmp_path / "deep" / "er")
    assert not (tmp_path / "deep").exists()


def test_a_refused_restore_takes_away_what_it_made_and_nothing_else(
    settings: ServeSettings, tmp_path: Path
) -> None:
    archive, target = tmp_path / "backup.tar", tmp_path / "again"
    back_up(settings, archive)
    whole = Registry(str(target / "registry")).put(b"an artifact")
    (target / "notes.txt").write_text("mine")
    (target / "serve.lock").write_text("1\n")
    before = sorted(target.rglob("*"))
    with pytest.raises(RejectedError) as caught:
        restore(rewritten(archive, outside=b"x"), target)
    assert caught.value.code == "restore-foreign"
    assert sorted(target.rglob("*")) == before
    assert Registry(str(target / "registry")).get(whole) == b"an artifact"

    other = Registry(settings.registry).put(b"its manifest")
    altered = target / "registry" / "sha256" / other[:2] / other
    altered.parent.mkdir(exist_ok=True)
    altered.write_bytes(b"something else")
    with pytest.raises(ConfigError, match=rf"{other} is there already: move it away"):
        restore(archive, target)
    assert altered.read_bytes() == b"something else"
    altered.unlink()
    assert restore(archive, target).num_artifacts == 2
    assert Registry(str(target / "registry")).get(whole) == b"an artifact"


def test_a_folder_in_use_is_left_alone(settings: ServeSettings, tmp_path: Path) -> None:
    archive, target = tmp_path / "backup.tar", tmp_path / "again"
    back_up(settings, archive)
    with locked(target):
        with pytest.raises(ConfigError, match="another control plane"):
            restore(archive, target)
        assert (target / "serve.lock").read_text().strip() == str(os.getpid())


def test_a_lock_on_a_file_that_was_removed_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a refused restore takes its folder away while another process is about to lock it."""
    real, removed = fcntl.flock, []

    def flock(lock: IO[str], operation: int) -> None:
        if not removed:
            removed.append(lock.name)
            (tmp_path / "state" / "serve.lock").unlink()
            (tmp_path / "state").rmdir()
        real(lock, operation)

    monkeypatch.setattr("cloud.state_folder.fcntl.flock", flock)
    with locked(tmp_path / "state"):
        assert removed
        with pytest.raises(ConfigError, match="another control plane"), locked(tmp_path / "state"):
            pass
