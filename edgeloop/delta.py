"""Deltas: one artifact made of another that a device has already.

Rules kept here:

- A delta is one zstd frame with the base as its prefix. It says how long it becomes, which must be what the
  artifact's manifest says: that is compared, and bounded, before anything is allocated.
- ``check_offer`` bounds what a signed deployment says of one. Its bytes are compared with their digest before
  they are decoded (``apply_delta``), and the result with the artifact's: a delta can be wrong, but not wrong
  and served.
- The library is imported when there is a delta to make or to apply. Where it is missing there are none.
"""

from __future__ import annotations

import hashlib
from types import ModuleType
from typing import Any, Final

from edgeloop import topics
from edgeloop.artifact import BLOCK_SIZE_BYTES, sha256_hex, split_blocks
from edgeloop.errors import RejectedError
from edgeloop.v1 import artifact_pb2, deployment_pb2

FORMAT: Final = "zstd-prefix-v1"
#: Base and artifact, each: a device holds both in memory at once, and level 19 takes half a second a MiB.
MAX_SIDE_BYTES: Final = 16 * 1024 * 1024
#: Of the artifact: what saves less is not worth a second thing on the broker.
MAX_RATIO: Final = 0.8
_LEVEL: Final = 19
_MAX_WINDOW_BYTES: Final = 2 * MAX_SIDE_BYTES


def make_delta(base: bytes, target: bytes) -> bytes:
    """What makes ``target`` of ``base``; equal inputs give equal bytes with the same library.

    Raises ``RejectedError``: "delta-too-large" over ``MAX_SIDE_BYTES``, or "delta-unsupported".
    """
    if max(len(base), len(target)) > MAX_SIDE_BYTES:
        raise RejectedError(
            f"artifacts of {len(base)} and {len(target)} bytes: deltas are made up to {MAX_SIDE_BYTES}",
            code="delta-too-large",
        )
    zstd = _zstandard()
    parameters = zstd.ZstdCompressionParameters.from_level(
        _LEVEL,
        source_size=len(target),
        dict_size=len(base),
        # The base must stay in reach to the target's end.
        window_log=max(zstd.WINDOWLOG_MIN, (len(base) + len(target)).bit_length()),
        enable_ldm=True,
        write_content_size=True,
        write_checksum=False,
    )
    compressor = zstd.ZstdCompressor(dict_data=_prefix(zstd, base), compression_params=parameters)
    return bytes(compressor.compress(target))


def make_offer(base_digest: str, data: bytes) -> deployment_pb2.Delta:
    """What a signed deployment says of a delta."""
    return deployment_pb2.Delta(
        base_digest=base_digest,
        digest=sha256_hex(data),
        size_bytes=len(data),
        block_digests=[hashlib.sha256(block).digest() for block in split_blocks(data)],
        format=FORMAT,
    )


def check_offer(offer: deployment_pb2.Delta, *, size_bytes: int) -> None:
    """Whether it can be a delta to an artifact of this size.

    Raises ``RejectedError``: "delta-unsupported" for another format, "delta-field" for all else.
    """
    if offer.format != FORMAT:
        raise RejectedError(
            f"delta format {offer.format[:40]!r} is not known here: update the older side",
            code="delta-unsupported",
        )
    try:
        topics.check_digest(offer.base_digest, field="delta.base_digest")
        topics.check_digest(offer.digest, field="delta.digest")
    except RejectedError as error:
        raise RejectedError(error.message, code="delta-field") from None
    if size_bytes > MAX_SIDE_BYTES or not 1 <= offer.size_bytes < size_bytes:
        raise RejectedError(
            f"delta size_bytes: {offer.size_bytes}, wanted 1 to less than the artifact's {size_bytes}, of at "
            f"most {MAX_SIDE_BYTES}",
            code="delta-field",
        )
    num_blocks = -(-offer.size_bytes // BLOCK_SIZE_BYTES)
    sizes = {len(digest) for digest in offer.block_digests}
    if len(offer.block_digests) != num_blocks or sizes != {hashlib.sha256().digest_size}:
        raise RejectedError(
            f"delta block_digests: {len(offer.block_digests)} of them, wanted {num_blocks} of 32 bytes",
            code="delta-field",
        )


def parts_of(offer: deployment_pb2.Delta) -> artifact_pb2.Manifest:
    """A checked offer's blocks in the form in which an artifact's are listed, and nothing else."""
    return artifact_pb2.Manifest(
        digest=offer.digest,
        size_bytes=offer.size_bytes,
        block_size_bytes=BLOCK_SIZE_BYTES,
        block_digests=offer.block_digests,
    )


def apply_delta(
    offer: deployment_pb2.Delta, data: bytes, base: bytes, manifest: artifact_pb2.Manifest
) -> bytes:
    """The manifest's artifact. Takes the memory of both artifacts, and no more whatever ``data`` is.

    Raises ``RejectedError``: "delta-altered", "delta-malformed", "delta-size", "delta-result" or
    "delta-unsupported".
    """
    if len(data) != offer.size_bytes or sha256_hex(data) != offer.digest:
        raise RejectedError(
            f"the delta's bytes are not {offer.digest[:12]}, which was signed for", code="delta-altered"
        )
    zstd = _zstandard()
    try:
        frame = zstd.get_frame_parameters(data)
        if frame.content_size != manifest.size_bytes or frame.window_size > _MAX_WINDOW_BYTES:
            raise RejectedError(
                f"the delta becomes {frame.content_size} bytes with a window of {frame.window_size}, the "
                f"artifact has {manifest.size_bytes}",
                code="delta-size",
            )
        decompressor = zstd.ZstdDecompressor(dict_data=_prefix(zstd, base), max_window_size=_MAX_WINDOW_BYTES)
        result = bytes(
            decompressor.decompress(
                data, max_output_size=manifest.size_bytes, read_across_frames=False, allow_extra_data=False
            )
        )
    except zstd.ZstdError as error:
        raise RejectedError(f"the delta is none of this base: {error}", code="delta-malformed") from error
    if len(result) != manifest.size_bytes or sha256_hex(result) != manifest.digest:
        raise RejectedError(
            f"what the delta makes of {offer.base_digest[:12]} is not {manifest.digest[:12]}",
            code="delta-result",
        )
    return result


def _prefix(zstd: ModuleType, base: bytes) -> Any:
    return zstd.ZstdCompressionDict(base, dict_type=zstd.DICT_TYPE_RAWCONTENT)


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError as error:
        raise RejectedError(
            "the package zstandard is not installed here: install edgeloop with its dependencies",
            code="delta-unsupported",
        ) from error
    return zstandard
