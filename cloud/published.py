"""Which artifacts may lie on the broker, remembered over restarts.

A retained message stays on a broker until somebody clears it, and only who published it knows that it is
there. The file is written before the message goes out, so it may name too much and never too little.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from edgeloop import topics
from edgeloop.errors import RejectedError

logger = logging.getLogger(__name__)


class PublishedArtifacts:
    """What may be on the broker: a file, written before the message goes out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.artifacts: dict[str, int] = {}
        self.manifests: set[str] = set()
        #: File names of TUF metadata.
        self.tuf: set[str] = set()
        try:
            stored = json.loads(path.read_text())
            self.artifacts = {
                topics.check_digest(key): int(value) for key, value in stored["artifacts"].items()
            }
            self.manifests = {topics.check_digest(value) for value in stored["manifests"]}
            self.tuf = {topics.tuf_of(topics.tuf(name)) for name in stored.get("tuf", ())}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RejectedError) as error:
            # Only old messages stay on the broker for want of it.
            logger.warning("%s is not readable and starts afresh: %s", path, error)

    def save(self) -> None:
        """Call it before what it names is published."""
        temporary = self._path.with_suffix(".tmp")
        content = {
            "version": 1,
            "artifacts": self.artifacts,
            "manifests": sorted(self.manifests),
            "tuf": sorted(self.tuf),
        }
        temporary.write_text(json.dumps(content))
        temporary.replace(self._path)
