"""A TUF repository of a test's own: the control plane's, with every key at hand, and means to bend it.

`files` is what an honest repository would have published; what a test puts on the broker instead is its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from cloud import tuf_root
from cloud.tuf_files import TufFiles
from cloud.tuf_repository import TufRepository
from edgeloop.released import TIMESTAMP_FILE


class Repository:
    """Releases by the control plane's own code. ``files`` by name, as published last."""

    def __init__(self, base: Path, *, now_s: float | None = None) -> None:
        self.base = base
        self.now_s = now_s or time.time()
        self.disk = TufFiles(base)
        self.files: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        self._released: set[tuple[str, str]] = set()
        tuf_root.ensure(self.disk, now_s=self.now_s)
        self.root = self.disk.root_bytes()
        self._repository = TufRepository(
            base, size_of=lambda manifest_digest: self.sizes[manifest_digest], on_files=self._take
        )

    def _take(self, files: dict[str, bytes]) -> None:
        self.files = files

    def release(self, digest: str, manifest_digest: str, size_bytes: int) -> None:
        self.sizes[manifest_digest] = size_bytes
        self._released.add((digest, manifest_digest))
        self.refresh()

    def refresh(self, *, later_s: float = 1.0) -> None:
        """What a control plane does at each step."""
        self.now_s += later_s
        self._repository.release(self._released, self.now_s)

    def rotate(self, *roles: str, sign_with: tuple[int, ...] = (1, 2)) -> tuf_root.Draft:
        """By the operator's commands, with these of the three root keys."""
        tuf_root.propose(self.disk, now_s=self.now_s, roles=roles)
        tuf_root.sign(self.disk.draft, [self.disk.root_keys / f"root-{number}.pem" for number in sign_with])
        draft = tuf_root.apply(self.disk)
        self.refresh()
        return draft

    def signer(self, role: str) -> CryptoSigner:
        """Whoever has this has stolen it."""
        return self.disk.signer(role, self.disk.root().signed)

    def bent(
        self,
        name: str,
        change: Callable[[Any], None],
        *signers: CryptoSigner,
    ) -> bytes:
        """A published file, changed and signed by these instead."""
        metadata: Metadata[Any] = Metadata.from_bytes(self.files[name])
        change(metadata.signed)
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def name(self, role: str) -> str:
        """Of the current file of a role."""
        if role == "timestamp":
            return TIMESTAMP_FILE
        names = [name for name in self.files if name.endswith(f".{role}.json")]
        return max(names, key=lambda name: int(name.split(".")[0]))
