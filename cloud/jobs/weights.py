"""What trainings share by name, in the registry; the names lie in a folder that every worker sees.

Rules: a name counts only while the registry holds what it points to, unharmed. Names appear whole or not at
all. A lock is the kernel's, so it ends with the process that held it, however that ended.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cloud.registry import Registry
from edgeloop.errors import RejectedError

_POLL_S = 0.5


class RegistryWeights:
    """The shelf of ``cloud.compression.shelf``: weights of trained students, answers of teachers."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self._folder = folder
        self._registry = registry

    def get(self, key: str) -> bytes | None:
        """What was put under the name, or None."""
        try:
            return self._registry.get(self._path(key).read_text(encoding="ascii").strip())
        except (OSError, UnicodeDecodeError, RejectedError):
            return None

    def put(self, key: str, data: bytes) -> None:
        """Keep it under this name."""
        digest = self._registry.put(data)
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".")
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(digest)
        Path(temporary).replace(self._path(key))

    @contextmanager
    def lock(self, key: str, report: Callable[[float, str], None], what: str) -> Iterator[None]:
        """Hold the name while it is made; whoever comes second waits and says for what."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f".{key}.lock").open("w") as stream:
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    report(0.05, f"waits: {what} for another student or profile")
                    time.sleep(_POLL_S)
            yield

    def _path(self, key: str) -> Path:
        return self._folder / key
