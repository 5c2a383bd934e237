"""What says that an artifact was released, as both sides name it. No TUF library is needed to import this.

Rules kept here:

- Release and deployment are two signatures (Uptane's split): TUF's targets role says which artifacts may run
  at all, the director's key which device runs which of them.
- An artifact is one target: its path carries the digest, TUF its length and hash, and the custom field the
  digests of the manifests that go with it.
- Nothing comes without a bound: each role's metadata has a longest length, and there are only so many roots.
"""

from __future__ import annotations

from typing import Final

from edgeloop import topics

ROLES: Final = ("targets", "snapshot", "timestamp")
TIMESTAMP_FILE: Final = "timestamp.json"

MAX_ROOT_BYTES: Final = 64 * 1024
MAX_TIMESTAMP_BYTES: Final = 16 * 1024
MAX_SNAPSHOT_BYTES: Final = 16 * 1024
MAX_TARGETS_BYTES: Final = 1024 * 1024
#: Followed in one refresh.
MAX_ROOTS: Final = 256
#: With the longest entry still under MAX_TARGETS_BYTES.
MAX_TARGETS: Final = 1000
MAX_MANIFESTS: Final = 8

#: In the timestamp: the newest root's version. A hint of what to wait for, which decides nothing: MQTT has no
#: answer that says "there is no such message".
ROOT_VERSION_FIELD: Final = "x-edgeloop-root-version"
MANIFESTS_FIELD: Final = "manifests"


def target_path(digest: str) -> str:
    """The artifact's name among the targets. Raises ``RejectedError`` for what is no digest."""
    return f"artifacts/{topics.check_digest(digest)}"


def max_bytes(name: str) -> int:
    """The longest that a metadata file of this name may be."""
    role = name.removesuffix(".json").rpartition(".")[2]
    return {
        "root": MAX_ROOT_BYTES,
        "timestamp": MAX_TIMESTAMP_BYTES,
        "snapshot": MAX_SNAPSHOT_BYTES,
        "targets": MAX_TARGETS_BYTES,
    }[role]
