"""Content-addressed blobs: what was trained, built and measured, by sha256.

Rules that this module keeps:

- A blob's name is the sha256 of its bytes; ``get`` never returns bytes that do not match their name.
- ``put`` is idempotent, and it heals: a blob that was damaged in storage is written again.
- A blob appears whole or not at all. On a local filesystem: temporary file, fsync, rename, fsync of folder.
- A registry is its URL and nothing else, so that a worker on another machine can open the same one.

Blobs lie at ``sha256/<first two digits>/<digest>`` below the URL, which may be a path, ``file://``, ``memory://``
or whatever else fsspec has a driver for (``s3://bucket/prefix`` and the like, where one PUT is atomic).
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import fsspec

from edgeloop.errors import ConfigError, RejectedError, TransientError

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: A temporary file older than this was left by a process that died.
_STALE_S = 3600.0


class Registry:
    """A folder of blobs behind fsspec. Equal URLs are the same registry; safe for concurrent writers.

    With ``read_only``, a folder is neither made nor swept of what a process that died left in it.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        if not url:
            raise ConfigError("registry_url is empty: give a folder, or a URL such as s3://bucket/prefix",
                              code="registry-url")  # fmt: skip
        try:
            filesystem, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"registry_url is {url!r}: {error}; install the fsspec driver of its scheme, or use a folder",
                code="registry-url",
            ) from error
        self._filesystem: Any = filesystem
        self._root: str = root.rstrip("/")
        self.is_local = "file" in _protocols(filesystem)
        #: Absolute, so that a worker with another working directory opens the same registry.
        self.url: str = self._root if self.is_local else url
        if self.is_local and not read_only:
            self._prepare_folder()

    def __repr__(self) -> str:
        return f"Registry({self.url!r})"

    def __reduce__(self) -> tuple[type[Registry], tuple[str]]:
        return (Registry, (self.url,))

    def put(self, data: bytes) -> str:
        """Store ``data`` and return its digest. Once this returns, the blob survives a power cut."""
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        try:
            if self._holds(path, data):
                return digest
            if self.is_local:
                self._write_local(Path(path), data)
            else:
                self._filesystem.pipe_file(path, data)
        except OSError as error:
            raise self._unavailable(error, f"blob {digest[:12]} cannot be stored") from error
        return digest

    def get(self, digest: str) -> bytes:
        """The blob. Raises ``RejectedError`` "registry-missing", or "registry-altered" when damaged."""
        path = self._path(digest)
        try:
            data = bytes(self._filesystem.cat_file(path))
        except FileNotFoundError:
            raise self._missing(digest) from None
        except OSError as error:
            raise self._unavailable(error, f"blob {digest[:12]} cannot be read") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise RejectedError(
                f"blob {digest} in registry {self.url} does not match its digest: it was altered or damaged; "
                f"delete {path} and build it again",
                code="registry-altered",
            )
        return data

    def exists(self, digest: str) -> bool:
        """Whether the blob is there; its content is checked by ``get`` alone."""
        try:
            return bool(self._filesystem.exists(self._path(digest)))
        except OSError as error:
            raise self._unavailable(error, f"blob {digest[:12]} cannot be looked up") from error

    def size(self, digest: str) -> int:
        """Length of the blob in bytes. Raises ``RejectedError`` "registry-missing"."""
        try:
            return int(self._filesystem.size(self._path(digest)))
        except FileNotFoundError:
            raise self._missing(digest) from None
        except OSError as error:
            raise self._unavailable(error, f"size of blob {digest[:12]} cannot be read") from error

    def _path(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise RejectedError(
                f"digest is {digest[:80]!r}: it must be 64 lower-case hexadecimal digits",
                code="registry-digest",
            )
        return f"{self._root}/sha256/{digest[:2]}/{digest}"

    def _holds(self, path: str, data: bytes) -> bool:
        try:
            return bool(self._filesystem.cat_file(path) == data)
        except FileNotFoundError:
            return False

    def _write_local(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=Path(self._root, "incoming"))
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        # The name must be as durable as the bytes: the new entry, and the folder that may be new itself.
        for folder in (path.parent, path.parent.parent):
            _sync_folder(folder)

    def _prepare_folder(self) -> None:
        incoming = Path(self._root, "incoming")
        try:
            incoming.mkdir(parents=True, exist_ok=True)
            for left in incoming.iterdir():
                try:
                    if time.time() - left.stat().st_mtime > _STALE_S:
                        left.unlink()
                except FileNotFoundError:
                    continue  # another process renamed or swept it just now
        except OSError as error:
            raise ConfigError(
                f"registry_url is {self._root}: this folder cannot be used: {error.strerror}",
                code="registry-url",
            ) from error

    def _missing(self, digest: str) -> RejectedError:
        return RejectedError(
            f"blob {digest} is not in registry {self.url}: it was deleted, or another registry_url built it; "
            "build it again",
            code="registry-missing",
        )

    def _unavailable(self, error: OSError, what: str) -> TransientError:
        reason = error.strerror or str(error)
        return TransientError(f"registry {self.url}: {what}: {reason}", code="registry-unavailable")


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
