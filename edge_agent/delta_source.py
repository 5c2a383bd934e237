"""The shorter way to an artifact: a delta that the signed deployment offers, and when it is not taken.

Rules:
- Taken only where its base is on this device and verifies now. Its result is kept as the artifact is, and is
  judged as the artifact is: the release gate and the self-test do not know of deltas.
- Whatever is wrong with one is no verdict on the deployment: it is given up, once and for all, and the
  artifact is fetched as if it had never been offered. A note beside its blocks says so to the next start,
  and is there before the delta is decoded: one that ends the process is not tried again either.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable

from google.protobuf.message import DecodeError

from edge_agent.blobs import BlobStore
from edge_agent.update_state import Slot
from edgeloop import delta
from edgeloop.artifact import BlockAssembler
from edgeloop.errors import RejectedError
from edgeloop.topics import check_digest
from edgeloop.v1 import artifact_pb2, deployment_pb2

logger = logging.getLogger(__name__)

_APPLYING, _GIVEN_UP = "applying", "given up"


def offer_of(slot: Slot) -> deployment_pb2.Delta | None:
    """What the slot's deployment offers; its signature was checked when it was accepted."""
    try:
        signed = deployment_pb2.SignedDeployment.FromString(slot.signed)
        deployment = deployment_pb2.Deployment.FromString(signed.deployment)
    except DecodeError:
        return None
    return deployment.delta if deployment.HasField("delta") else None


def names_of(slots: Iterable[Slot]) -> set[str]:
    """Under which digests bytes may lie on the disk that belong to these slots."""
    names: set[str] = set()
    for slot in slots:
        offer = offer_of(slot)
        names |= {slot.digest} if offer is None else {slot.digest, offer.digest}
    return names


class DeltaSource:
    """One offer at a time: `begin`, and then `finish` or `give_up`. Owned by the agent's thread."""

    def __init__(self, blobs: BlobStore, kept: Callable[[], tuple[Slot, ...]]) -> None:
        self._blobs = blobs
        self._kept = kept
        # Also where the disk takes no note of it.
        self._given_up: set[str] = set()
        self.offer: deployment_pb2.Delta | None = None
        # Since the process started.
        self.num_applied = 0
        self.num_given_up = 0

    def choose(self, slot: Slot, manifest: artifact_pb2.Manifest) -> bool:
        """Whether there is an offer to be followed. Raises RejectedError for one that is to be given up."""
        self.offer = None
        offer = offer_of(slot)
        if offer is None or offer.digest in self._given_up:
            return False
        self.offer = offer
        delta.check_offer(offer, size_bytes=manifest.size_bytes)
        note = self._blobs.note(offer.digest)
        if note == _GIVEN_UP:
            self._given_up.add(offer.digest)
            self.offer = None
            return False
        if note:
            raise RejectedError("the agent ended while it applied the delta", code="delta-interrupted")
        self._read_base(offer)
        return True

    def begin(self) -> BlockAssembler:
        """What of it is here already."""
        assert self.offer is not None
        parts = delta.parts_of(self.offer)
        assembler = BlockAssembler(parts)
        self._blobs.kept_blocks(parts, assembler)
        return assembler

    def finish(self, manifest: artifact_pb2.Manifest) -> None:
        """Every block is here: makes the artifact of them. Raises RejectedError."""
        assert self.offer is not None
        offer, parts = self.offer, delta.parts_of(self.offer)
        data = self._blobs.read_blocks(parts)
        self._blobs.keep_note(offer.digest, _APPLYING)
        whole = delta.apply_delta(offer, data, self._read_base(offer), manifest)
        self._blobs.keep_artifact(manifest, whole)
        self._blobs.drop_blocks(offer.digest)
        self.offer = None
        self.num_applied += 1
        logger.info(
            "made of a delta digest=%s base=%s bytes=%d of=%d",
            manifest.digest[:12],
            offer.base_digest[:12],
            offer.size_bytes,
            manifest.size_bytes,
        )

    def give_up(self, error: RejectedError) -> RejectedError:
        """The artifact itself is fetched from here on; returns what is to be told of the delta."""
        offer = self.offer
        assert offer is not None
        self.offer = None
        self.num_given_up += 1
        self._given_up.add(offer.digest)
        code = error.code if error.code.startswith("delta-") else f"delta-{error.code}"
        told = RejectedError(f"{error.message}; the whole artifact is fetched instead", code=code)
        logger.warning("a delta is given up code=%s reason=%s", code, told.message)
        try:
            # Not before: a digest that is none is no name.
            check_digest(offer.digest)
            self._blobs.drop_blocks(offer.digest)
            self._blobs.keep_note(offer.digest, _GIVEN_UP)
        except RejectedError as failed:
            logger.debug("that it was given up is not noted reason=%s", failed)
        return told

    def leave(self) -> None:
        """What has come of it stays."""
        self.offer = None

    def forget(self, slot: Slot) -> None:
        """The artifact is here: no note on its delta is needed any more."""
        offer = offer_of(slot)
        if offer is not None and offer.digest in self._given_up:
            with contextlib.suppress(RejectedError):  # a digest that is none left nothing
                self._blobs.drop_blocks(offer.digest)

    def _read_base(self, offer: deployment_pb2.Delta) -> bytes:
        """Verified now."""
        for slot in self._kept():
            if slot.digest == offer.base_digest:
                try:
                    return self._blobs.read_artifact(self._blobs.read_manifest(slot.manifest_digest))
                except RejectedError as error:
                    raise RejectedError(f"the delta's base: {error.message}", code="delta-base") from error
        raise RejectedError(
            f"the delta starts from {offer.base_digest[:12]}, which this device does not keep",
            code="delta-base",
        )
