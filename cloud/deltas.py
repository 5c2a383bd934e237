"""Deltas between artifacts of the registry: made when wanted, kept while a deployment offers them.

Rules that this module keeps:

- One is offered only where it is clearly smaller than the artifact, and asked of what lies in the registry
  alone: what a device says that it serves is a claim.
- The work is bounded: so many are made a round of the controller, so many are kept at once, and nothing over
  ``delta.MAX_SIDE_BYTES`` is read. A pair that was not worth it is not tried again by this process.
- Which there are is written nowhere: the signed deployments say it (``learn``). A file is a cache; one that
  is lost is made again, and is the same again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from edgeloop import delta
from edgeloop.errors import EdgeloopError, RejectedError
from edgeloop.v1 import deployment_pb2

logger = logging.getLogger(__name__)

#: Made a round of the controller, which waits for them: at most some 8 s of one processor each.
MAX_MADE_A_ROUND = 2
#: Offered at once, each retained on the broker.
MAX_KEPT = 16
_MAX_USELESS = 1024


class Blobs(Protocol):
    """The registry as this module needs it."""

    def get(self, digest: str) -> bytes: ...

    def size(self, digest: str) -> int: ...


class DeltaShelf:
    """``get`` is safe from any thread; the rest belongs to the controller's."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self._folder = folder
        self._blobs = blobs
        self._lock = threading.Lock()
        self._num_made = 0
        self._offers: dict[tuple[str, str], deployment_pb2.Delta] = {}
        #: Delta digest to the digests of base and artifact; bases that differ little may share a delta.
        self._pairs: dict[str, tuple[str, str]] = {}
        self._useless: set[tuple[str, str]] = set()

    def begin_round(self) -> None:
        """What may be made is counted from here."""
        self._num_made = 0

    def offer(self, base_digest: str, digest: str) -> deployment_pb2.Delta | None:
        """What to say of a delta between the two; None where there is none that is worth it."""
        pair = (base_digest, digest)
        known = self._offers.get(pair)
        if known is not None:
            return known
        if not base_digest or base_digest == digest or pair in self._useless:
            return None
        if self._num_made >= MAX_MADE_A_ROUND or len(self._offers) >= MAX_KEPT:
            return None
        try:
            if max(self._blobs.size(base_digest), self._blobs.size(digest)) > delta.MAX_SIDE_BYTES:
                self._not_worth(pair)
                return None
            self._num_made += 1
            base, target = self._blobs.get(base_digest), self._blobs.get(digest)
            data = delta.make_delta(base, target)
            if len(data) > delta.MAX_RATIO * len(target):
                self._not_worth(pair)
                return None
            offer = delta.make_offer(base_digest, data)
            self._write(offer.digest, data)
        except (EdgeloopError, OSError) as error:
            logger.warning("no delta from %s to %s: %s", base_digest[:12], digest[:12], error)
            self._not_worth(pair)
            return None
        logger.info(
            "delta from %s to %s: %d of %d bytes", base_digest[:12], digest[:12], len(data), len(target)
        )
        self.learn(digest, offer)
        return offer

    def learn(self, digest: str, offer: deployment_pb2.Delta) -> None:
        """A deployment of this artifact that offers this delta is signed."""
        pair = (offer.base_digest, digest)
        self._offers[pair] = offer
        with self._lock:
            self._pairs[offer.digest] = pair

    def get(self, digest: str) -> bytes:
        """The delta's bytes. Raises ``EdgeloopError``."""
        with self._lock:
            pair = self._pairs.get(digest)
        if pair is None:
            raise RejectedError(f"no deployment offers delta {digest[:12]}", code="delta-missing")
        with contextlib.suppress(OSError):
            data = (self._folder / digest).read_bytes()
            if hashlib.sha256(data).hexdigest() == digest:
                return data
        data = delta.make_delta(self._blobs.get(pair[0]), self._blobs.get(pair[1]))
        if hashlib.sha256(data).hexdigest() != digest:
            raise RejectedError(
                f"delta {digest[:12]} is lost, and this version of zstandard makes another one",
                code="delta-missing",
            )
        with contextlib.suppress(OSError):
            self._write(digest, data)
        return data

    def keep_only(self, digests: Collection[str]) -> None:
        """Forget every other one, and delete its file."""
        with self._lock:
            self._pairs = {digest: pair for digest, pair in self._pairs.items() if digest in digests}
        self._offers = {pair: offer for pair, offer in self._offers.items() if offer.digest in digests}
        try:
            left = [path for path in self._folder.iterdir() if path.name not in self._pairs]
        except OSError:
            return
        for path in left:
            with contextlib.suppress(OSError):
                path.unlink()

    def _not_worth(self, pair: tuple[str, str]) -> None:
        if len(self._useless) >= _MAX_USELESS:
            self._useless.clear()
        self._useless.add(pair)

    def _write(self, digest: str, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(temporary).replace(self._folder / digest)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
