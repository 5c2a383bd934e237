"""Where TUF's keys and metadata lie on the control plane's disk.

Rules that this module keeps:

* Three folders with three fates: ``root-keys`` is for the operator to take away, ``tuf/keys`` holds what
  signs online, ``tuf/metadata`` is public.
* ``N.root.json`` and ``timestamp.json`` are the two commit points: what neither of them leads to was never
  released, and is written over. Each file is on the disk, with its folder, before anything is done by it.
* A key is found by what the current root says of it, not by its file name alone: whatever a killed rotation
  left behind, the key that counts is the one that signs.
* One lock keeps commands and control planes apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from cloud.pki.key_folder import write_file
from edgeloop.errors import ConfigError
from edgeloop.released import ROLES, TIMESTAMP_FILE
from edgeloop.trust import DirectorKey

T = TypeVar("T", Root, Snapshot, Targets, Timestamp)

ROOT_KEYS: Final = "root-keys"
_ROOT = re.compile(r"([1-9][0-9]{0,9})\.root\.json")


@dataclass(frozen=True, slots=True)
class TufFiles:
    """All below the folder of the director's keys."""

    base: Path

    @property
    def metadata(self) -> Path:
        return self.base / "tuf" / "metadata"

    @property
    def keys(self) -> Path:
        return self.base / "tuf" / "keys"

    @property
    def draft(self) -> Path:
        """The next root, while it gathers signatures."""
        return self.base / "tuf" / "next.root.json"

    @property
    def root_keys(self) -> Path:
        """Where the first start puts the root's keys; no running process reads it."""
        return self.base / ROOT_KEYS

    def prepare(self) -> None:
        """Raises ``ConfigError``."""
        try:
            for folder in (self.base / "tuf", self.metadata, self.keys):
                folder.mkdir(parents=True, exist_ok=True)
            self.keys.chmod(0o700)
        except OSError as error:
            raise ConfigError(
                f"{self.base} cannot be written ({error.strerror})", code="tuf-folder"
            ) from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold it alone. Raises ``ConfigError``."""
        self.prepare()
        with (self.base / "tuf" / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # -- metadata ----------------------------------------------------------------------------------------

    def root_version(self) -> int:
        """Of the current root; 0 when there is none yet."""
        try:
            names = os.listdir(self.metadata)
        except FileNotFoundError:
            return 0
        return max((int(found[1]) for name in names if (found := _ROOT.fullmatch(name))), default=0)

    def root_path(self) -> Path:
        """Where the current root lies."""
        return self.metadata / f"{self.root_version()}.root.json"

    def root_bytes(self) -> bytes:
        """The current root as it is told to new devices; empty when there is none."""
        return self.root_path().read_bytes() if self.root_version() else b""

    def root(self) -> Metadata[Root]:
        """The current root. Raises ``ConfigError``."""
        version = self.root_version()
        if not version:
            raise ConfigError(
                f"{self.base} holds no TUF metadata: start a control plane on it, or run 'edgeloop keys "
                "tuf-init'",
                code="tuf-missing",
            )
        found = self.read(f"{version}.root.json", Root)
        assert found is not None
        return found

    def read(self, name: str, kind: type[T]) -> Metadata[T] | None:
        """The file, or None where there is none. Raises ``ConfigError`` for one that is damaged."""
        try:
            metadata: Metadata[T] = Metadata.from_bytes((self.metadata / name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, RepositoryError) as error:
            raise ConfigError(
                f"{self.metadata / name} cannot be read ({error}): restore it from a backup",
                code="tuf-damaged",
            ) from None
        if not isinstance(metadata.signed, kind):
            raise ConfigError(f"{self.metadata / name} holds something else", code="tuf-damaged")
        return metadata

    def write(self, name: str, raw: bytes) -> None:
        """Durable when it returns. Raises ``ConfigError``."""
        write_file(self.metadata / name, raw, 0o644)
        sync(self.metadata)

    def stamps(self) -> tuple[tuple[int, int], ...]:
        """Differs once another process has changed anything that counts."""
        found = []
        for path in (self.metadata, self.metadata / TIMESTAMP_FILE):
            with contextlib.suppress(FileNotFoundError):
                at = path.stat()
                found.append((at.st_ino, at.st_mtime_ns))
        return tuple(found)

    # -- keys --------------------------------------------------------------------------------------------

    def new_key(self, role: str) -> CryptoSigner:
        """The key that the role shall have from the next root on; made when a rotation begins."""
        path = self.keys / f"{role}.pem.new"
        signer = CryptoSigner(DirectorKey.load_or_generate(path).private)
        sync(self.keys)
        return signer

    def signer(self, role: str, root: Root) -> CryptoSigner:
        """The key of an online role. Raises ``ConfigError`` ("tuf-key") when the root names another."""
        wanted = root.roles[role].keyids
        for suffix in ("", ".new"):
            path = self.keys / f"{role}.pem{suffix}"
            if path.exists():
                signer = CryptoSigner(DirectorKey.load(path).private)
                if signer.public_key.keyid in wanted:
                    return signer
        raise ConfigError(
            f"{self.keys} holds no key that the root names for {role}: restore it from a backup, or have a "
            f"new one signed with 'edgeloop keys rotate-tuf {role}'",
            code="tuf-key",
        )

    def settle_keys(self, root: Root) -> None:
        """A new key that the root names takes the place of the old one."""
        for role in ROLES:
            new = self.keys / f"{role}.pem.new"
            if new.exists() and CryptoSigner(DirectorKey.load(new).private).public_key.keyid in (
                root.roles[role].keyids
            ):
                new.replace(self.keys / f"{role}.pem")
                sync(self.keys)


def sync(folder: Path) -> None:
    """New names in the folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
