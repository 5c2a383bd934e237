"""Which artifacts may lie on the broker, remembered over restarts and over a change of who acts.

A retained message stays on a broker until somebody clears it, and only who published it knows that it is
there. So it is written down before the message goes out: the record may name too much and never too little.
Control planes that share a broker share a database, and there the record is kept: whoever acts next clears
what the one before it left. Without a database it is a file, which is also where earlier versions kept it.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any, Final, Protocol

from edgeloop import topics
from edgeloop.errors import RejectedError, TransientError

logger = logging.getLogger(__name__)

_KEY: Final = "published"


class SharedMemory(Protocol):
    """What of the store is used here: one that writes nothing any more once another control plane acts."""

    def get_meta(self, key: str, default: str = "") -> str: ...
    def set_meta(self, key: str, value: str) -> None: ...
    def check_fence(self) -> None: ...


class PublishedArtifacts:
    """What may be on the broker. ``path`` is read, and written only where nothing is ``shared``.

    Raises ``TransientError`` while the database is away.
    """

    def __init__(self, path: Path, shared: SharedMemory | None = None) -> None:
        self._path = path
        self._shared = shared
        self.artifacts: dict[str, int] = {}
        self.manifests: set[str] = set()
        #: File names of TUF metadata.
        self.tuf: set[str] = set()
        self._saved = ""
        if shared is not None:
            self._saved = shared.get_meta(_KEY)
            if self._saved:
                self._take("the record of what is on the broker", self._saved)
        try:
            self._take(str(path), path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as error:
            _say_unreadable(str(path), error)

    def save(self) -> None:
        """Call it before what it names is published. Costs nothing where nothing changed."""
        content = {
            "version": 1,
            "artifacts": self.artifacts,
            "manifests": sorted(self.manifests),
            "tuf": sorted(self.tuf),
        }
        text = json.dumps(content, sort_keys=True)
        if text == self._saved:
            return
        if self._shared is not None:
            self._shared.set_meta(_KEY, text)
            self._path.unlink(missing_ok=True)  # from now on the database knows all of it
        else:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self._path)
        self._saved = text

    def check_ours(self) -> None:
        """Call it before deployments are published. Raises ``RejectedError`` once another control plane acts.

        While the database is away nobody else can begin to, and what is on a broker must not depend on it.
        """
        if self._shared is not None:
            with contextlib.suppress(TransientError):
                self._shared.check_fence()

    def _take(self, where: str, text: str) -> None:
        """Add what a record names, all of it or nothing."""
        try:
            stored: dict[str, Any] = json.loads(text)
            artifacts = {topics.check_digest(key): int(value) for key, value in stored["artifacts"].items()}
            manifests = {topics.check_digest(value) for value in stored["manifests"]}
            tuf = {topics.tuf_of(topics.tuf(name)) for name in stored.get("tuf", ())}
        except (ValueError, KeyError, TypeError, AttributeError, RejectedError) as error:
            _say_unreadable(where, error)
            return
        for digest, count in artifacts.items():
            self.artifacts[digest] = max(count, self.artifacts.get(digest, 0))
        self.manifests |= manifests
        self.tuf |= tuf


def _say_unreadable(where: str, error: Exception) -> None:
    # Only old messages stay on the broker for want of it.
    logger.warning("%s is not readable and starts afresh: %s", where, error)
