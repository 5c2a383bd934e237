"""The folder that holds a control plane's state: who has it, and what it remembers about ports.

The lock is the operating system's, on an open file: it ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from edgeloop.errors import ConfigError

LOCK_FILE = "serve.lock"


@contextlib.contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Hold the state folder alone. Raises ``ConfigError`` when another control plane has it."""
    lock_file = state_dir / LOCK_FILE
    is_new = not lock_file.exists()
    with _taken(lock_file) as lock:
        try:  # past Python's buffer, which would try once more when it is closed
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"{os.getpid()}\n".encode())
        except OSError as error:
            if is_new:
                lock_file.unlink(missing_ok=True)
            raise ConfigError(
                f"state_dir is {state_dir}: it cannot be written to ({error.strerror}): make room, or give "
                "another folder with --state-dir",
                code="state-dir",
            ) from None
        yield


def _taken(lock_file: Path) -> IO[str]:
    """The open file, locked. Whoever removes the file holds its lock, so one that was removed between our
    opening and locking it is a lock on nothing: then it begins again."""
    while True:
        try:
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            lock = lock_file.open("a+")
        except OSError as error:
            raise ConfigError(
                f"state_dir is {lock_file.parent}: it cannot be used ({error.strerror}): give another folder "
                "with --state-dir",
                code="state-dir",
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), lock_file.stat()):
                return lock
        except FileNotFoundError:
            pass
        except OSError:
            lock.seek(0)
            holder = lock.read(32).strip() or "unknown"
            lock.close()
            raise ConfigError(
                f"state_dir is {lock_file.parent}: another control plane (process {holder}) uses it: stop "
                "that, or give another folder with --state-dir",
                code="state-dir-in-use",
            ) from None
        lock.close()


class RememberedPorts:
    """Which ports this state folder used last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            self._last = {str(key): int(value) for key, value in json.loads(path.read_text()).items()}

    def to_try(self, name: str, port: int) -> list[int]:
        """The port itself; for 0, the one used last and then any."""
        if port:
            return [port]
        last = self._last.get(name, 0)
        return [last, 0] if 0 < last <= 65_535 else [0]

    def save(self, **ports: int) -> None:
        if ports != self._last:
            write_json(self._path, ports)


def write_json(path: Path, content: object) -> None:
    """The whole file or the old one, never a part."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
