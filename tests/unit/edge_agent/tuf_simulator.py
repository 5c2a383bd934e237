"""A TUF repository that signs what a test says, and a client of it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from edge_agent import tuf_client
from edgeloop import released
from edgeloop.errors import RejectedError

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
ROLES = ("timestamp", "snapshot", "targets")


class Simulator:
    """A repository that signs whatever a test has made of it, and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signers: dict[str, list[CryptoSigner]] = {
            role: [CryptoSigner.generate_ed25519()] for role in ("root", *ROLES)
        }
        expires = NOW + datetime.timedelta(days=30)
        self.root = Root(expires=expires)
        self.timestamp, self.snapshot = Timestamp(expires=expires), Snapshot(expires=expires)
        self.targets = Targets(expires=expires)
        for role, signers in self.signers.items():
            self.root.add_key(signers[0].public_key, role)
        self.received: dict[str, bytes] = {}
        self.hashes = True
        self.publish_root()
        self.trusted = self.received["1.root.json"]
        self.publish()

    def signed(self, role: str, content: Any) -> bytes:
        metadata: Metadata[Any] = Metadata(content)
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def publish_root(self) -> None:
        self.received[f"{self.root.version}.root.json"] = self.signed("root", self.root)

    def bump_root(self) -> None:
        self.root.version += 1
        self.publish_root()
        self.publish()

    def meta(self, version: int, raw: bytes) -> MetaFile:
        return MetaFile.from_data(version, raw, ["sha256"]) if self.hashes else MetaFile(version)

    def publish(self, *bumped: str) -> None:
        """Bump these, and sign all from the targets up."""
        for role in bumped:
            getattr(self, role).version += 1
        raw = self.signed("targets", self.targets)
        self.received[f"{self.targets.version}.targets.json"] = raw
        self.snapshot.meta["targets.json"] = self.meta(self.targets.version, raw)
        raw = self.signed("snapshot", self.snapshot)
        self.received[f"{self.snapshot.version}.snapshot.json"] = raw
        self.timestamp.snapshot_meta = self.meta(self.snapshot.version, raw)
        self.publish_timestamp()

    def publish_timestamp(self) -> None:
        self.timestamp.unrecognized_fields[released.ROOT_VERSION_FIELD] = self.root.version
        self.received["timestamp.json"] = self.signed("timestamp", self.timestamp)

    def rotate(self, role: str) -> None:
        for keyid in list(self.root.roles[role].keyids):
            self.root.revoke_key(keyid, role)
        self.signers[role] = [CryptoSigner.generate_ed25519()]
        self.root.add_key(self.signers[role][0].public_key, role)

    def refresh(self, *, days: float = 0) -> str:
        """The code of the refusal, or nothing."""
        now_s = (NOW + datetime.timedelta(days=days)).timestamp()
        try:
            tuf_client.lookup(self.folder, self.trusted, self.received, "artifacts/none", now_s=now_s)
        except RejectedError as error:
            return error.code
        return ""

    def version(self, role: str) -> int:
        """What the client trusts."""
        if role == "root":
            return tuf_client.newest_root(self.folder)
        metadata: Metadata[Any] = Metadata.from_file(str(self.folder / f"{role}.json"))
        return int(metadata.signed.version)
