"""Artifacts, manifests and half-fetched blocks on the device's disk, each under its digest.

Rules:
- What is handed out was hashed on this read. A file that does not match its name is deleted, and the caller
  hears "artifact-missing", "artifact-altered", "manifest-missing" or "manifest-altered". One that cannot be
  read for want of something else (descriptors, memory, permission) is no worse for that, and stays.
- A block is durable when `keep_block` returns. An artifact appears under its name whole or not at all.
- Making an artifact of its blocks, and looking whether it is whole, takes the memory of a block, however
  large it is: an agent that the kernel ends for its memory would be ended at each start.
- Names are checked digests and numbers, so nothing that came over the wire chooses a path.
- Half-fetched blocks are a cache. What lies in their place and cannot be used is deleted. Where that fails,
  nothing is fetched (RejectedError), and what is whole is handed out as ever.
- Fetching begins only where twice the artifact and a reserve fit: blocks and the whole exist side by side.
- Only what the caller does not keep is collected: all of it at a commit, and the oldest first where a fetch
  would exceed the quota. A quota without room for the new artifact beside what is kept is said, and nothing
  is fetched.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from edge_agent.journal import fsync_folder, write_atomically
from edge_agent.stored_files import (
    checked,
    digest_of,
    discard,
    discard_damaged,
    free_bytes_of,
    needed_for,
    remove,
    size_bytes,
    storage_error,
)
from edgeloop import artifact
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.topics import check_digest
from edgeloop.v1 import artifact_pb2

logger = logging.getLogger(__name__)

T = TypeVar("T")

NOTE_FILE = "note"


class BlobStore:
    def __init__(
        self,
        folder: Path,
        *,
        reserve_bytes: int,
        quota_bytes: int | None = None,
        free_bytes: Callable[[Path], int] = free_bytes_of,
    ) -> None:
        self._artifacts = folder / "artifacts"
        self._manifests = folder / "manifests"
        self._partial = folder / "partial"
        self._reserve_bytes = reserve_bytes
        self._quota_bytes = quota_bytes
        self._free_bytes = free_bytes
        # What fetches under way were promised of the quota, by artifact.
        self._promised_bytes: dict[str, int] = {}
        try:
            self._make_folders()
        except OSError as error:
            raise ConfigError(
                f"state_dir: {folder} cannot be made ({error.strerror})", code="state-dir"
            ) from error
        try:
            if not os.path.isdir(self._partial):
                discard(self._partial)
            self._partial.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            logger.error("nothing can be fetched: %s cannot be made reason=%s", self._partial, error.strerror)

    def _make_folders(self) -> None:
        """Those of whole things; also where somebody cleared them away while the agent ran."""
        for path in (self._artifacts, self._manifests):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    # --- whole things -------------------------------------------------------------------------------

    def artifact_path(self, digest: str) -> Path:
        return self._artifacts / check_digest(digest)

    def manifest_path(self, manifest_digest: str) -> Path:
        return self._manifests / check_digest(manifest_digest, field="manifest_digest")

    def read_artifact(self, manifest: artifact_pb2.Manifest) -> bytes:
        """The bytes, verified now."""
        data = self._read(manifest, Path.read_bytes)
        self._compare(manifest, artifact.sha256_hex(data))
        return data

    def check_artifact(self, manifest: artifact_pb2.Manifest) -> None:
        """Verifies what is there now, as `read_artifact` does, and takes none of it into memory."""
        self._compare(manifest, self._read(manifest, digest_of))

    def _read(self, manifest: artifact_pb2.Manifest, read: Callable[[Path], T]) -> T:
        path = self.artifact_path(manifest.digest)
        try:
            return read(path)
        except FileNotFoundError:
            raise RejectedError(
                f"artifact {manifest.digest[:12]} is not on this device; it is fetched again",
                code="artifact-missing",
            ) from None
        except OSError as error:
            discard_damaged(path, error)
            raise RejectedError(
                f"artifact {manifest.digest[:12]} cannot be read: {error.strerror}", code="artifact-altered"
            ) from error

    def _compare(self, manifest: artifact_pb2.Manifest, digest: str) -> None:
        if digest != manifest.digest:
            discard(self.artifact_path(manifest.digest))
            raise artifact.altered(manifest)

    def has_artifact(self, manifest: artifact_pb2.Manifest) -> bool:
        try:
            self.check_artifact(manifest)
        except RejectedError:
            return False
        return True

    def read_manifest(self, manifest_digest: str) -> artifact_pb2.Manifest:
        path = self.manifest_path(manifest_digest)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise RejectedError(
                f"manifest {manifest_digest[:12]} is not on this device; it is fetched again",
                code="manifest-missing",
            ) from None
        except OSError as error:
            discard_damaged(path, error)
            raise RejectedError(
                f"manifest {manifest_digest[:12]} cannot be read: {error.strerror}", code="manifest-altered"
            ) from error
        try:
            return artifact.parse_manifest(raw, expected_digest=manifest_digest)
        except RejectedError:
            discard(path)
            raise

    def find_manifest(self, manifest_digest: str) -> artifact_pb2.Manifest | None:
        try:
            return self.read_manifest(manifest_digest)
        except RejectedError:
            return None

    def keep_manifest(self, manifest_digest: str, raw: bytes) -> None:
        """The caller has parsed it under this digest."""
        try:
            self._make_folders()
            write_atomically(self.manifest_path(manifest_digest), raw)
        except OSError as error:
            raise storage_error(error, f"manifest {manifest_digest[:12]}") from error

    # --- blocks -------------------------------------------------------------------------------------

    def check_room(self, manifest: artifact_pb2.Manifest, *, delta_digest: str = "") -> None:
        """Raises RejectedError("storage-full"). Blocks that are there already count as room."""
        digests = (manifest.digest, delta_digest) if delta_digest else (manifest.digest,)
        with needed_for(f"room for artifact {manifest.digest[:12]}"):
            self._make_folders()
            self._partial.mkdir(mode=0o700, exist_ok=True)
            paths = [path for digest in digests for path in self._block_paths(digest)]
            kept_bytes = sum(path.lstat().st_size for path in paths)
            free_bytes = self._free_bytes(self._partial)
        wanted_bytes = 2 * manifest.size_bytes - kept_bytes + self._reserve_bytes
        if free_bytes < wanted_bytes:
            raise RejectedError(
                f"artifact {manifest.digest[:12]} needs {wanted_bytes} free bytes (twice its size and a "
                f"reserve of {self._reserve_bytes}) and the disk has {free_bytes}: free some room, or lower "
                "reserve_bytes, and deploy again",
                code="storage-full",
            )

    def keep_within_quota(
        self,
        manifest: artifact_pb2.Manifest,
        *,
        keep_artifacts: Collection[str],
        keep_manifests: Collection[str],
        delta_digest: str = "",
    ) -> None:
        """Makes room for fetching this artifact, what is oldest going first, and promises it until the
        artifact is there or `end_fetch`.

        Raises RejectedError("storage-quota") where what must be kept, or comes already, leaves none.
        """
        if self._quota_bytes is None:
            return
        kept_artifacts = {*keep_artifacts, manifest.digest, delta_digest}
        sizes: dict[Path, int] = {}
        old: list[tuple[float, Path]] = []
        for folder, kept in (
            (self._artifacts, kept_artifacts),
            (self._manifests, keep_manifests),
            (self._partial, kept_artifacts),
        ):
            with needed_for(f"room for artifact {manifest.digest[:12]}"):
                for path in self._entries(folder):
                    with contextlib.suppress(OSError):
                        sizes[path] = size_bytes(path)
                        if path.name not in kept:
                            old.append((path.stat().st_mtime, path))
        # What has come of it already is a part of it.
        own_bytes = sizes.get(self._partial / manifest.digest, 0)
        if delta_digest:
            own_bytes += sizes.get(self._partial / delta_digest, 0)
        others_bytes = sum(
            promised - sizes.get(self._partial / digest, 0)
            for digest, promised in self._promised_bytes.items()
            if digest != manifest.digest
        )
        wanted_bytes = sum(sizes.values()) + others_bytes - own_bytes + 2 * manifest.size_bytes
        for _, path in sorted(old):
            if wanted_bytes <= self._quota_bytes:
                break
            remove(path)
            wanted_bytes -= sizes[path]
        if wanted_bytes > self._quota_bytes:
            raise RejectedError(
                f"artifact {manifest.digest[:12]} needs {2 * manifest.size_bytes} bytes (its blocks and the "
                f"whole) beside {wanted_bytes - 2 * manifest.size_bytes} of the models that are kept, and "
                f"blob_quota_bytes is {self._quota_bytes}: raise it to {wanted_bytes} or more, or deploy a "
                "smaller one",
                code="storage-quota",
            )
        self._promised_bytes[manifest.digest] = 2 * manifest.size_bytes

    def end_fetch(self, digest: str) -> None:
        """It is not fetched any more; what has come of it stays."""
        self._promised_bytes.pop(digest, None)

    def _block_paths(self, digest: str) -> list[Path]:
        folder = self._partial / check_digest(digest)
        try:
            return [path for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]
        except FileNotFoundError:
            return []
        except OSError as error:
            logger.warning("half-fetched blocks do not read path=%s reason=%s", folder, error.strerror)
            discard_damaged(folder, error)
            return []

    def kept_blocks(self, manifest: artifact_pb2.Manifest, assembler: artifact.BlockAssembler) -> None:
        """Tells the assembler which blocks survived; what did not verify is deleted."""
        for path in self._block_paths(manifest.digest):
            try:
                assembler.accept(int(path.name), path.read_bytes())
            except RejectedError:
                remove(path)
            except OSError as error:
                discard_damaged(path, error)

    def keep_block(self, digest: str, n: int, data: bytes) -> None:
        """The caller has verified it. A half-written one does not verify at the next start."""
        folder = self._partial / check_digest(digest)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(folder / str(int(n)), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(error, f"block {n} of {digest[:12]}") from error

    def assemble(self, manifest: artifact_pb2.Manifest) -> None:
        """Puts the blocks together; verified as a whole before the name appears.

        Where it is whole already (another workload has fetched it too), nothing is left to do.
        """
        if not (self.artifact_path(manifest.digest).exists() and self.has_artifact(manifest)):
            self._keep(manifest, self._blocks(manifest))
            self.end_fetch(manifest.digest)
        self.drop_blocks(manifest.digest)

    def read_blocks(self, manifest: artifact_pb2.Manifest) -> bytes:
        """All blocks in order, not yet verified as a whole."""
        return b"".join(self._blocks(manifest))

    def _blocks(self, manifest: artifact_pb2.Manifest) -> Iterator[bytes]:
        folder = self._partial / check_digest(manifest.digest)
        try:
            for n in range(len(manifest.block_digests)):
                yield (folder / str(n)).read_bytes()
        except FileNotFoundError as error:
            raise RejectedError(
                f"a block of {manifest.digest[:12]} has vanished: {error.filename}", code="artifact-missing"
            ) from error
        except OSError as error:
            raise storage_error(error, f"blocks of {manifest.digest[:12]}") from error

    def keep_artifact(self, manifest: artifact_pb2.Manifest, data: bytes) -> None:
        """Verified here; durable, and under its name, when this returns."""
        self._keep(manifest, (data,))

    def _keep(self, manifest: artifact_pb2.Manifest, pieces: Iterable[bytes]) -> None:
        try:
            self._make_folders()
            write_atomically(self.artifact_path(manifest.digest), checked(manifest, pieces))
        except OSError as error:
            raise storage_error(error, f"artifact {manifest.digest[:12]}") from error

    def keep_note(self, digest: str, text: str) -> None:
        """A word beside half-fetched blocks, for the next start."""
        folder = self._partial / check_digest(digest)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(folder / NOTE_FILE, text.encode())
        except OSError as error:
            raise storage_error(error, f"a note on {digest[:12]}") from error

    def note(self, digest: str) -> str:
        """What `keep_note` kept; empty for none."""
        try:
            return (self._partial / check_digest(digest) / NOTE_FILE).read_text(errors="replace")
        except OSError:
            return ""

    def drop_blocks(self, digest: str) -> None:
        shutil.rmtree(self._partial / check_digest(digest), ignore_errors=True)

    # --- housekeeping -------------------------------------------------------------------------------

    def collect(self, *, keep_artifacts: Collection[str], keep_manifests: Collection[str]) -> int:
        """Deletes everything else, torn temporary files included; returns how many entries went."""
        num_removed = 0
        for folder, kept in (
            (self._artifacts, keep_artifacts),
            (self._manifests, keep_manifests),
            (self._partial, keep_artifacts),
        ):
            removed = [path for path in self._entries(folder) if path.name not in kept]
            for path in removed:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            if removed:
                fsync_folder(folder)
            num_removed += len(removed)
        return num_removed

    @staticmethod
    def _entries(folder: Path) -> Iterable[Path]:
        try:
            return list(folder.iterdir())
        except FileNotFoundError:
            return []
