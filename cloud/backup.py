"""A copy of what a control plane cannot make again: database, artifacts, and the keys that sign deployments.

Rules that this module keeps:

* It may run beside a control plane that works: SQLite is copied by its online backup, as of one moment. The
  database comes first, so that every artifact that it names is in the registry when that is copied.
* The archive appears whole or not at all, and only its owner may read it: the director's keys are in it.
* Restoring goes into an empty state folder that nobody uses, and writes over nothing. Names in an archive are
  checked against a list of patterns, and each artifact against its digest. A restore that is refused takes
  away what it made, to the folder itself, and nothing else.
* PostgreSQL is left to ``pg_dump`` and ``pg_restore``, which know it better; the archive then holds the rest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import sqlalchemy as sa

from cloud.director_keys import CHAIN_FILE, KEY_FILE, NEW_KEY_FILE, OLD_KEY_FILE
from cloud.settings import ServeSettings
from cloud.state_folder import LOCK_FILE, locked
from cloud.tuf_files import TufFiles
from edgeloop import __version__
from edgeloop.errors import ConfigError, RejectedError

FORMAT = 1
_INFO = "backup.json"
_DATABASE = "edgeloop.db"
#: The newest of the director's keys, those of a change under way, and what vouches for them.
_DIRECTOR = (KEY_FILE, NEW_KEY_FILE, OLD_KEY_FILE, CHAIN_FILE)
#: TUF's metadata and online keys. The root's keys are kept elsewhere, and apart.
_TUF = re.compile(
    r"tuf/(metadata/([1-9][0-9]{0,9}\.(root|targets|snapshot)|timestamp)\.json"
    r"|keys/(targets|snapshot|timestamp)\.pem(\.new)?)"
)
_BLOB = re.compile(r"registry/sha256/([0-9a-f]{2})/([0-9a-f]{64})")
_MAX_MEMBER_BYTES = 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class BackupSummary:
    """What an archive holds."""

    has_database: bool
    num_artifacts: int
    num_bytes: int
    create_time_s: float
    version: str


class _Made:
    """What a restore has put on the disk: that and nothing else goes when it is refused."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self._folders: list[Path] = []

    def folder(self, path: Path) -> None:
        """With those above it that are wanting. Raises OSError."""
        missing = [path, *path.parents]
        missing = missing[: next(place for place, folder in enumerate(missing) if folder.exists())]
        for folder in reversed(missing):
            folder.mkdir()
            self._folders.append(folder)

    def remove_files(self) -> None:
        for path in self.files:
            path.unlink(missing_ok=True)

    def remove_folders(self) -> None:
        """But one in which somebody else has put something since."""
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):
                folder.rmdir()


def back_up(settings: ServeSettings, target: Path) -> BackupSummary:
    """Write the archive. Raises ``ConfigError`` for what cannot be read or written."""
    registry = Path(settings.registry)
    if "://" in settings.registry:
        raise ConfigError(
            f"registry_url is {settings.registry}: copy an object store by its own means; 'edgeloop backup' "
            "copies a folder",
            code="backup-registry",
        )
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with _private_file(temporary) as raw, tarfile.open(fileobj=raw, mode="w") as archive:
            has_database = _add_database(archive, settings, temporary.with_suffix(".db"))
            for name in _DIRECTOR:
                if (settings.director / name).exists():
                    archive.add(settings.director / name, name)
            tuf = settings.director / "tuf"
            with TufFiles(settings.director).locked():  # what belongs together
                for path in sorted((*tuf.glob("metadata/*.json"), *tuf.glob("keys/*.pem*"))):
                    archive.add(path, f"tuf/{path.relative_to(tuf)}")
            blobs = sorted(path for path in registry.glob("sha256/??/*") if path.is_file())
            for path in blobs:
                archive.add(path, f"registry/{path.relative_to(registry)}")
            summary = BackupSummary(
                has_database=has_database,
                num_artifacts=len(blobs),
                num_bytes=raw.tell(),
                create_time_s=time.time(),
                version=__version__,
            )
            _add_text(archive, _INFO, json.dumps({"format": FORMAT, **_fields(summary)}))
        temporary.replace(target)
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be written: {error.strerror or error}", code="backup-write"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return summary


def restore(source: Path, state_dir: Path) -> BackupSummary:
    """Make a state folder from an archive. Raises ConfigError or RejectedError, and then leaves nothing."""
    if (state_dir / _DATABASE).exists() or (state_dir / KEY_FILE).exists():
        raise ConfigError(
            f"{state_dir} holds a control plane already: restore into an empty folder, and start from that",
            code="restore-not-empty",
        )
    if not source.is_file():
        raise ConfigError(
            f"there is no file {source}: give an archive of 'edgeloop backup'", code="restore-read"
        )
    made = _Made()
    had_lock = (state_dir / LOCK_FILE).exists()
    try:
        _make_room(made, state_dir)
        with locked(state_dir):
            try:
                with tarfile.open(source, mode="r:") as archive:
                    return _take_all(archive, state_dir, made)
            except BaseException:
                made.remove_files()
                if not had_lock:
                    (state_dir / LOCK_FILE).unlink(missing_ok=True)
                raise
    except BaseException as error:
        made.remove_folders()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise ConfigError(
                f"{state_dir} cannot be written ({error.strerror}): nothing was restored; make room, or "
                "give another --state-dir",
                code="restore-write",
            ) from None
        if isinstance(error, (OSError, tarfile.TarError)):
            raise ConfigError(f"{source} cannot be read as a backup: {error}", code="restore-read") from error
        raise


def _make_room(made: _Made, state_dir: Path) -> None:
    try:
        made.folder(state_dir)
    except OSError as error:
        raise ConfigError(
            f"{state_dir} cannot be made ({error.strerror}): give another --state-dir", code="restore-write"
        ) from None


def _take_all(archive: tarfile.TarFile, state_dir: Path, made: _Made) -> BackupSummary:
    info: BackupSummary | None = None
    for member in archive:
        stream = archive.extractfile(member) if member.isreg() else None
        if stream is None or member.size > _MAX_MEMBER_BYTES:
            raise _foreign(member.name)
        blob = _BLOB.fullmatch(member.name)
        if member.name == _INFO:
            info = _summary(stream.read())
            continue
        if not (blob or _TUF.fullmatch(member.name) or member.name in (_DATABASE, *_DIRECTOR)):
            raise _foreign(member.name)
        target = state_dir / member.name
        made.folder(target.parent)
        if os.path.lexists(target):
            # A registry that was not lost: artifacts are the same wherever they are, if they are whole.
            if blob and target.is_file() and _digest(target) == blob[2]:
                continue
            raise ConfigError(
                f"{target} is there already: move it away, or restore into an empty folder",
                code="restore-not-empty",
            )
        made.files.append(target)
        digest = _copy(stream, target)
        if blob and (digest != blob[2] or not blob[2].startswith(blob[1])):
            raise RejectedError(
                f"artifact {blob[2]} in the backup is damaged: its bytes are of {digest}",
                code="restore-altered",
            )
    if info is None:
        raise RejectedError("the backup breaks off before its end: use another", code="restore-truncated")
    return info


def _copy(stream: IO[bytes], target: Path) -> str:
    found = hashlib.sha256()
    with _private_file(target) as out:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return found.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _add_database(archive: tarfile.TarFile, settings: ServeSettings, copy: Path) -> bool:
    url = sa.make_url(settings.database)
    if url.get_backend_name() != "sqlite" or not url.database:
        return False
    if not Path(url.database).exists():
        raise ConfigError(
            f"there is no database at {url.database}: name the control plane's folder with --state-dir",
            code="backup-database",
        )
    copy.unlink(missing_ok=True)
    try:
        with (
            contextlib.closing(sqlite3.connect(f"file:{url.database}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target, pages=4096)
        archive.add(copy, _DATABASE)
    except sqlite3.Error as error:
        raise ConfigError(f"the database cannot be copied: {error}", code="backup-database") from error
    finally:
        copy.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def _private_file(path: Path) -> Iterator[io.BufferedWriter]:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        yield stream


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(text.encode())
    archive.addfile(member, io.BytesIO(text.encode()))


def _fields(summary: BackupSummary) -> dict[str, object]:
    return {name: getattr(summary, name) for name in summary.__slots__}


def _summary(raw: bytes) -> BackupSummary:
    try:
        values = json.loads(raw)
        if values.pop("format") != FORMAT:
            raise RejectedError(
                "the backup is of a newer edgeloop: restore it with that", code="restore-newer"
            )
        return BackupSummary(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RejectedError(f"{_INFO} in the backup is damaged: {error}", code="restore-altered") from error


def _foreign(name: str) -> RejectedError:
    return RejectedError(
        f"the archive holds {name[:100]!r}, which is no part of a backup: give what 'edgeloop backup' wrote",
        code="restore-foreign",
    )
