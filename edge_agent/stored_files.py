"""One file of the store: what its reading and writing say of it, and how it goes.

Rule: what cannot be read for want of something else (descriptors, memory, permission) is no worse for that.
Only damage is removed.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgeloop import artifact
from edgeloop.errors import RejectedError
from edgeloop.v1 import artifact_pb2

# What an attempt to read says of the bytes themselves, or of what lies in their place.
DAMAGE = frozenset(
    {errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}
)


def free_bytes_of(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def discard(path: Path) -> None:
    """What did not verify. On a disk that takes no writes it stays, and fails its next read again."""
    with contextlib.suppress(OSError):
        path.unlink()


def size_bytes(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(inner.stat().st_size for inner in path.iterdir())
    return path.stat().st_size


def discard_damaged(path: Path, error: OSError) -> None:
    """A sector that does not read is damage like any other; a process without descriptors is none."""
    if error.errno in DAMAGE:
        remove(path)


def remove(path: Path) -> None:
    # Unlike Path.is_dir, false where the disk does not say.
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        discard(path)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(manifest: artifact_pb2.Manifest, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Raises at the end where together they are not the artifact."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
        yield piece
    if found.hexdigest() != manifest.digest:
        raise artifact.altered(manifest)


def storage_error(error: OSError, what: str) -> RejectedError:
    """What an operating system error means for the deployment that is being stored."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RejectedError(
            f"{what}: the disk is full; free some room and deploy again", code="storage-full"
        )
    return RejectedError(f"{what}: {error.strerror}; check the disk and deploy again", code="storage-failed")


@contextlib.contextmanager
def needed_for(what: str) -> Iterator[None]:
    """A disk that fails ends what is being stored, and no more."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, what) from error
