"""The names that travel: MQTT topics, device ids and digests.

Rules kept here:

- Every topic begins with the versioned root, so that two versions can share a broker.
- No value that came from outside enters a topic (or later a file name) unchecked: device ids and digests
  have one fixed alphabet without "/", "+", "#" or a leading dot.
- What is subscribed for content is always an exact topic. Wildcards are for the cloud's small inbound
  messages alone, since brokers drop retained messages of a wildcard subscription without a word.
"""

from __future__ import annotations

import re
from typing import Final

from edgeloop.errors import RejectedError

ROOT: Final = "edgeloop/v1"
#: Retained; when it is missing, the broker has forgotten what it held and the publisher starts over.
SENTINEL: Final = f"{ROOT}/sentinel"
#: Retained, one for the fleet: every change of the director's keys.
DIRECTOR_KEYS: Final = f"{ROOT}/director-keys"
#: Retained: TUF metadata, each file under its own name (edgeloop.released).
TUF: Final = f"{ROOT}/tuf"
ALL_REQUESTS: Final = f"{ROOT}/devices/+/requests"
ALL_PRESENCE: Final = f"{ROOT}/devices/+/presence"

ONLINE: Final = b"online"
OFFLINE: Final = b"offline"

MAX_BLOCK_INDEX: Final = 2**20

_DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_BLOCK = re.compile(rf"{ROOT}/artifacts/([0-9a-f]{{64}})/blocks/(0|[1-9][0-9]{{0,6}})", re.ASCII)
_MANIFEST = re.compile(rf"{ROOT}/manifests/([0-9a-f]{{64}})", re.ASCII)
_TUF = re.compile(rf"{ROOT}/tuf/((?:[1-9][0-9]{{0,9}}\.(?:root|snapshot|targets)|timestamp)\.json)", re.ASCII)
_DEVICE = re.compile(rf"{ROOT}/devices/([^/]+)/(?:deployment|deployments/[^/]+|requests|presence)", re.ASCII)
_WORKLOAD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


def check_device_id(device_id: str) -> str:
    """The id itself. Raises ``RejectedError`` ("device-id") when it may not be used as one."""
    if not isinstance(device_id, str) or not _DEVICE_ID.fullmatch(device_id):
        raise RejectedError(
            f"device_id {_shown(device_id)} is not usable: give 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit",
            code="device-id",
        )
    return device_id


def check_workload(name: str) -> str:
    """The name itself. Raises ``RejectedError`` ("workload") when it may not be used as one."""
    if not isinstance(name, str) or not _WORKLOAD.fullmatch(name):
        raise RejectedError(
            f"workload {_shown(name)} is not usable: give 1 to 100 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit",
            code="workload",
        )
    return name


def check_digest(digest: str, *, field: str = "digest") -> str:
    """The digest itself. Raises ``RejectedError`` ("digest") unless it is 64 lower-case hex digits."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise RejectedError(
            f"{field} {_shown(digest)} is not a sha256: give 64 lower-case hex digits", code="digest"
        )
    return digest


def block(digest: str, n: int) -> str:
    """Where block ``n`` of an artifact is retained."""
    if not 0 <= n <= MAX_BLOCK_INDEX:
        raise RejectedError(f"block {n} is out of range: give 0 to {MAX_BLOCK_INDEX}", code="block-unknown")
    return f"{ROOT}/artifacts/{check_digest(digest)}/blocks/{n}"


def manifest(manifest_digest: str) -> str:
    """Where the manifest with this digest is retained."""
    return f"{ROOT}/manifests/{check_digest(manifest_digest, field='manifest_digest')}"


def tuf(name: str) -> str:
    """Where a file of TUF metadata is retained. Raises ``RejectedError`` ("topic") for no such name."""
    topic = f"{TUF}/{name}"
    if _TUF.fullmatch(topic) is None:
        raise _not_ours(topic)
    return topic


def deployment(device_id: str) -> str:
    """Where the device's signed deployment is retained."""
    return f"{ROOT}/devices/{check_device_id(device_id)}/deployment"


def workload_deployment(device_id: str, workload: str) -> str:
    """Where the signed deployment of one of several workloads of the device is retained."""
    return f"{ROOT}/devices/{check_device_id(device_id)}/deployments/{check_workload(workload)}"


def requests(device_id: str) -> str:
    """Where the device asks for what the broker has lost."""
    return f"{ROOT}/devices/{check_device_id(device_id)}/requests"


def presence(device_id: str) -> str:
    """Where the device says ``ONLINE`` and its last will says ``OFFLINE``, retained."""
    return f"{ROOT}/devices/{check_device_id(device_id)}/presence"


def device_of(topic: str) -> str:
    """The device id in one of the device topics. Raises ``RejectedError`` ("topic")."""
    found = _DEVICE.fullmatch(topic)
    if found is None:
        raise _not_ours(topic)
    return check_device_id(found[1])


def block_of(topic: str) -> tuple[str, int]:
    """Artifact digest and index in a block topic. Raises ``RejectedError`` ("topic")."""
    found = _BLOCK.fullmatch(topic)
    if found is None or int(found[2]) > MAX_BLOCK_INDEX:
        raise _not_ours(topic)
    return found[1], int(found[2])


def manifest_of(topic: str) -> str:
    """Manifest digest in a manifest topic. Raises ``RejectedError`` ("topic")."""
    found = _MANIFEST.fullmatch(topic)
    if found is None:
        raise _not_ours(topic)
    return found[1]


def tuf_of(topic: str) -> str:
    """File name in a topic of TUF metadata. Raises ``RejectedError`` ("topic")."""
    found = _TUF.fullmatch(topic)
    if found is None:
        raise _not_ours(topic)
    return found[1]


def _not_ours(topic: str) -> RejectedError:
    return RejectedError(f"topic {_shown(topic)} is none that edgeloop publishes: ignore it", code="topic")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
