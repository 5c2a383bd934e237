"""python-tuf's client over messages that have come already, with its trusted metadata kept durably.

Rules:
- All of the client workflow is python-tuf's. This module gives it bytes, the time, and a place on the disk.
- Nothing is fetched here: a file that has not come is named to the caller, who waits for it. That there is no
  newer root is believed when the timestamp (as yet unverified) says that there is none: whoever could lie
  about that could as well hold the root back, and the timestamp's own expiry bounds both.
- What came to be trusted, also on the way to a refusal, is on the disk before anybody acts on it: each file
  by temporary file, fsync and rename. The library works on a copy, and what a killed process left of one goes
  with the next refresh.
- The root that the device was configured with is where each refresh begins: the folder gives no trust that
  signatures do not. So what lies in the place of a file and does not read, or is none, goes, and the refresh
  after that one does without.
- Time is the caller's, not the clock's: a gateway that woke in 1970 still knows what has expired.
"""

import datetime
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tuf.api import exceptions
from tuf.ngclient import FetcherInterface, TargetFile, Updater, UpdaterConfig

from edge_agent.journal import fsync_folder, write_atomically
from edge_agent.stored_files import discard_damaged
from edgeloop import released
from edgeloop.errors import ConfigError, RejectedError, TransientError
from edgeloop.released import TIMESTAMP_FILE

_BASE_URL = "mqtt://tuf/"
_WORK_PREFIX = ".work-"
_CONFIG = UpdaterConfig(
    max_root_rotations=released.MAX_ROOTS,
    max_delegations=0,
    root_max_length=released.MAX_ROOT_BYTES,
    timestamp_max_length=released.MAX_TIMESTAMP_BYTES,
    snapshot_max_length=released.MAX_SNAPSHOT_BYTES,
    targets_max_length=released.MAX_TARGETS_BYTES,
)
_CACHED = ("timestamp.json", "snapshot.json", "targets.json")


class NotReceivedError(Exception):
    """`name` is the file that must come first."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} has not come yet")
        self.name = name


class _NotReceived(exceptions.DownloadError):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class ReceivedFetcher(FetcherInterface):
    """Reads from a mapping of file names to what was received under them."""

    def __init__(self, received: Mapping[str, bytes]) -> None:
        self._received = received

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self._named(url)

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """As the interface says, without its temporary file."""
        data = self._named(url)
        if max_length < len(data) <= released.max_bytes(url.removeprefix(_BASE_URL)):
            raise exceptions.LengthOrHashMismatchError(
                f"{urlsplit(url).path} has {len(data)} bytes, {max_length} were signed for"
            )
        if len(data) > max_length:
            raise exceptions.DownloadLengthMismatchError(
                f"{len(data)} bytes for {urlsplit(url).path}, at most {max_length}"
            )
        return data

    def _named(self, url: str) -> bytes:
        name = url.removeprefix(_BASE_URL)
        data = self._received.get(name)
        if data is not None:
            return data
        version = root_version(name)
        if version and TIMESTAMP_FILE in self._received and version > _hinted(self._received[TIMESTAMP_FILE]):
            raise exceptions.DownloadHTTPError(f"there is no {name}", 404)
        raise _NotReceived(name)


def root_version(name: str) -> int:
    """Of a root's file name; 0 for any other."""
    version, _, rest = name.partition(".")
    return int(version) if rest == "root.json" and version.isdecimal() else 0


def newest_root(folder: Path) -> int:
    """The highest root version that was trusted here, unverified; 0 without any."""
    history = folder / "root_history"
    return max((root_version(path.name) for path in history.glob("*.root.json")), default=0)


def lookup(
    folder: Path, root: bytes, received: Mapping[str, bytes], path: str, *, now_s: float
) -> TargetFile | None:
    """Refresh with what was received, and what is then released under this path, if anything.

    Raises NotReceivedError; RejectedError ("tuf-..."); TransientError where the disk does not take it; and
    ConfigError for a configured root that is none.
    """
    try:
        folder.mkdir(exist_ok=True)
        for left in folder.glob(f"{_WORK_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=_WORK_PREFIX) as work:
            _copy_in(folder, Path(work))
            try:
                return _refreshed(Path(work), root, received, path, now_s)
            finally:
                _copy_out(Path(work), folder)
    except OSError as error:
        _clear_way(folder, error)
        raise TransientError(
            f"TUF metadata cannot be kept in {folder} ({error.strerror})", code="storage-failed"
        ) from None


def _clear_way(folder: Path, error: OSError) -> None:
    path = Path(os.fsdecode(error.filename or ""))
    if error.errno == errno.EEXIST and folder in (path, path.parent):
        path.unlink(missing_ok=True)  # a file where a folder should be
    elif folder in path.parents:
        discard_damaged(path, error)


def _refreshed(
    work: Path, root: bytes, received: Mapping[str, bytes], path: str, now_s: float
) -> TargetFile | None:
    try:
        updater = Updater(
            str(work), _BASE_URL, fetcher=ReceivedFetcher(received), config=_CONFIG, bootstrap=root
        )
    except exceptions.RepositoryError as error:
        raise ConfigError(
            f"tuf_root does not vouch for itself ({error}): give what 'edgeloop keys tuf-root' prints",
            code="tuf-root",
        ) from None
    # The library takes the clock's time when it is made, and has no argument for another.
    trusted = updater._trusted_set
    assert isinstance(trusted.reference_time, datetime.datetime)
    trusted.reference_time = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    try:
        updater.refresh()
        return updater.get_targetinfo(path)
    except _NotReceived as error:
        raise NotReceivedError(error.name) from None
    except (exceptions.RepositoryError, exceptions.DownloadError, ValueError) as error:
        raise RejectedError(f"{error}{_advice(error)}"[:500], code=_code(error)) from None


def _code(error: Exception) -> str:
    match error:
        case exceptions.DownloadLengthMismatchError():
            return "tuf-too-large"
        case exceptions.ExpiredMetadataError():
            return "tuf-expired"
        case exceptions.UnsignedMetadataError():
            return "tuf-threshold"
        case exceptions.BadVersionNumberError():
            return "tuf-rollback"
        case exceptions.LengthOrHashMismatchError():
            return "tuf-mixed"
    return "tuf-invalid"


def _advice(error: Exception) -> str:
    if isinstance(error, exceptions.ExpiredMetadataError):
        return ": newer metadata is held back, no control plane renews it, or this device's clock is wrong"
    return ""


def _copy_in(folder: Path, work: Path) -> None:
    (work / "root_history").mkdir()
    names = [name for name in _CACHED if (folder / name).exists()]
    roots = [f"root_history/{path.name}" for path in (folder / "root_history").glob("*.root.json")]
    for name in (*names, *roots):
        (work / name).write_bytes((folder / name).read_bytes())


def _copy_out(work: Path, folder: Path) -> None:
    """Roots first: a timestamp of a newer root is worth nothing without it."""
    roots = [f"root_history/{path.name}" for path in (work / "root_history").glob("*.root.json")]
    if not (folder / "root_history").is_dir():
        (folder / "root_history").mkdir()
        fsync_folder(folder)
    roots.sort(key=lambda name: root_version(name.removeprefix("root_history/")))
    for name in (*roots, *_CACHED):
        source, target = work / name, folder / name
        if not source.is_file():
            continue
        data = source.read_bytes()
        if not target.exists() or target.read_bytes() != data:
            write_atomically(target, data)


def _hinted(timestamp: bytes) -> int:
    """The newest root's version as the timestamp says, unverified; 0 where it says none."""
    try:
        version = json.loads(timestamp[: released.MAX_TIMESTAMP_BYTES])["signed"][released.ROOT_VERSION_FIELD]
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
    return version if isinstance(version, int) else 0
