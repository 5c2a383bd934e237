"""What one device should run, and the bytes that this takes: manifests, artifacts and deltas in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edgeloop import topics
from edgeloop.artifact import parse_manifest, split_blocks
from edgeloop.errors import RejectedError
from edgeloop.v1 import deployment_pb2


class Blobs(Protocol):
    """Where artifacts and manifests are kept; raises ``EdgeloopError`` for what it cannot give intact."""

    def get(self, digest: str) -> bytes: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipment:
    """What one device should run: the signed deployment and the digests that it names.

    ``workload`` is which of several that the device hosts, empty for a device that runs one.
    """

    device_id: str
    workload: str = ""
    digest: str
    manifest_digest: str
    payload: bytes
    #: Digest of the delta that the deployment offers; empty for none.
    delta: str = ""

    @property
    def topic(self) -> str:
        if self.workload:
            return topics.workload_deployment(self.device_id, self.workload)
        return topics.deployment(self.device_id)

    def answers(self, request: deployment_pb2.BlockRequest) -> bool:
        """Whether what is asked for belongs to it."""
        blocks_of = {self.digest, self.delta} - {""}
        return not (request.blocks and request.digest not in blocks_of) and not (
            request.manifest and request.manifest_digest != self.manifest_digest
        )


class Stock:
    """Reads what is to be published. Raises ``EdgeloopError`` for what it cannot give intact."""

    def __init__(self, blobs: Blobs, deltas: Blobs | None) -> None:
        self._blobs = blobs
        self._deltas = deltas

    def artifact(self, digest: str, manifest_digest: str) -> tuple[list[bytes], bytes]:
        """The artifact's blocks as its manifest cuts them, and the manifest."""
        raw = self._blobs.get(manifest_digest)
        manifest = parse_manifest(raw, expected_digest=manifest_digest)
        if manifest.digest != digest:
            raise RejectedError(
                f"manifest {manifest_digest[:12]} is of another artifact: build it again",
                code="manifest-digest",
            )
        return split_blocks(self._blobs.get(digest), manifest.block_size_bytes), raw

    def delta(self, digest: str) -> list[bytes]:
        """The delta's blocks."""
        if self._deltas is None:
            raise RejectedError("no deltas are made here", code="delta-missing")
        return split_blocks(self._deltas.get(digest))
