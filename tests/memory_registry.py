"""A registry in a dictionary, for tests that build students but keep none."""

from __future__ import annotations

from edgeloop.artifact import sha256_hex
from edgeloop.errors import RejectedError


class Memory:
    """``put`` and ``get`` of cloud.registry.Registry."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        digest = sha256_hex(data)
        self.blobs[digest] = data
        return digest

    def get(self, digest: str) -> bytes:
        if digest not in self.blobs:
            raise RejectedError(f"{digest} is missing", code="registry-missing")
        return self.blobs[digest]
