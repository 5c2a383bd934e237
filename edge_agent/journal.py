"""The agent's state on the disk: written before anything is done about it.

Rules:
- A save is atomic and durable when it returns: temporary file, fsync, rename, fsync of the folder.
- Two copies are kept, each with its checksum, written one after the other. Damage to one costs at most the
  last transition, which the update rules repeat anyway.
- A file that cannot be read is moved aside, and the log says so; of many, the first are kept, and the last.
  With both copies gone the device starts over: its deployment is retained at the broker.
- A state of a newer format is a person's to decide about: ConfigError, and nothing is changed.
- One agent per state folder: the lock lasts as long as the process, however it ends.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_agent import update_state
from edge_agent.update_state import UpdateState
from edgeloop.errors import ConfigError

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"
COPY_FILE = "state.copy.json"
LOCK_FILE = "agent.lock"
# Files that did not read, of each kind: what came first says most about what went wrong.
MAX_ASIDE = 5
_NO_WRITES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


def fsync_folder(folder: Path) -> None:
    """A new name is durable only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes | Iterable[bytes], *, durable: bool = True) -> None:
    """Readers, and a start after a crash, see the old content or the new one, nothing between.

    ``data`` may come in pieces; where one of them raises, the old content stays.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with open(temporary, "wb") as file:
            file.writelines((data,) if isinstance(data, bytes) else data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception:
        # Half a file must not hold the room that a full disk lacks.
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        fsync_folder(path.parent)


def encode(state: UpdateState) -> bytes:
    body = json.dumps(update_state.to_json(state), sort_keys=True, separators=(",", ":"))
    checksum = hashlib.sha256(body.encode()).hexdigest()
    return f'{{"sha256":"{checksum}","update":{body}}}\n'.encode()


def decode(data: bytes) -> UpdateState:
    """Raises ValueError for anything but what `encode` wrote, and ConfigError for a newer format."""
    outer = json.loads(data)
    if not isinstance(outer, dict) or not isinstance(outer.get("update"), dict):
        raise ValueError("expected an object with 'update'")
    inner = outer["update"]
    version = inner.get("format_version")
    body = json.dumps(inner, sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(body.encode()).hexdigest() != outer.get("sha256"):
        raise ValueError("checksum does not match")
    if isinstance(version, int) and version > update_state.FORMAT_VERSION:
        raise ConfigError(
            f"the state was written by a newer agent (format {version}, this agent knows "
            f"{update_state.FORMAT_VERSION}): install that agent again, or give another --state-dir",
            code="state-version",
        )
    return update_state.from_json(inner)


class Journal:
    """Reads and writes the update state of one state folder."""

    def __init__(self, state_dir: Path) -> None:
        self._paths = (state_dir / STATE_FILE, state_dir / COPY_FILE)

    def load(self, *, move_aside: bool = True) -> UpdateState:
        """The newest readable state, or a fresh one. Read-only with move_aside=False."""
        refused: tuple[Path, OSError] | None = None
        for path in self._paths:
            try:
                return decode(path.read_bytes())
            except FileNotFoundError:
                continue
            except (ValueError, RecursionError) as error:
                logger.error("state file unreadable path=%s reason=%s", path, error)
                if move_aside:
                    self._move_aside(path)
            except OSError as error:
                logger.error("state file cannot be read path=%s reason=%s", path, error.strerror)
                refused = (path, error)
        if refused is not None:
            # Who may not read may not conclude either that there is nothing.
            raise ConfigError(
                f"{refused[0]} cannot be read ({refused[1].strerror}): run as the user that owns the state "
                "folder, and check the disk",
                code="state-dir",
            ) from refused[1]
        return UpdateState()

    def problems(self) -> list[str]:
        """What is wrong with the files, for people; changes nothing."""
        found = []
        for path in self._paths:
            try:
                decode(path.read_bytes())
            except FileNotFoundError:
                continue
            except (ValueError, RecursionError, OSError, ConfigError) as error:
                found.append(f"{path}: {error}")
        return found

    def save(self, state: UpdateState) -> None:
        data = encode(state)
        for path in self._paths:
            write_atomically(path, data)

    def _move_aside(self, path: Path) -> None:
        number = 1
        while (aside := path.with_name(f"{path.name}.unreadable-{number}")).exists() and number < MAX_ASIDE:
            number += 1
        try:
            os.replace(path, aside)
        except OSError as error:
            logger.error("state file stays where it is reason=%s; going on with what is left", error.strerror)
        else:
            logger.error("state file moved aside to=%s; going on with what is left", aside)


class StateLock:
    """Held by the one agent that owns a state folder; also where nothing can be written any more."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        try:
            self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = self._open()
        except OSError as error:
            raise ConfigError(
                f"state_dir {self._state_dir}: {error.strerror}; give a folder that this user may write",
                code="state-dir",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise ConfigError(
                f"state_dir {self._state_dir} is in use by another agent (process {owner or 'unknown'}): "
                "stop that one, or give each agent a --state-dir of its own",
                code="state-locked",
            ) from error
        self._descriptor = descriptor
        try:
            # Over what is there: a full disk has room for that.
            written = os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            os.ftruncate(descriptor, written)
        except OSError as error:
            # Only whoever is kept out misses the number.
            logger.warning("the lock file does not name this process reason=%s", error.strerror)
        return self

    def _open(self) -> int:
        path = self._state_dir / LOCK_FILE
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in _NO_WRITES:
                raise
            # A lock needs no write, and a disk that takes none may hold a model that serves.
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
