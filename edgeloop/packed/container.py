"""The container: the spans of a file that hold tensors, each in its shortest form, and all the bytes between.

Rules:

- ``unpack(pack(file, spans), size) == file`` to the last bit, for any bytes and any spans. A reader needs to
  know nothing about the file's own format.
- A reader is told the file's size by something that was signed, and allocates for no other. Spans are stored
  as distances from one another, so they can neither overlap nor lie outside.
- Whatever is wrong with a container is a ``RejectedError``: "packed-malformed", or "packed-size" when it
  claims another size than was signed. Whether the content is right, its digest says: the caller compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeloop.errors import RejectedError
from edgeloop.packed.chunks import read_chunk, write_chunk
from edgeloop.packed.reading import Reader, malformed, number
from edgeloop.packed.tensors import ELEMENT_BYTES, read_tensor, write_tensor

#: No protobuf message and no text begins with it; the digit is the version.
MAGIC: Final = b"\x89ELP1\r\n\x1a"
MAX_SPANS: Final = 65_536
_MAX_SIZE: Final = (1 << 48) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Where a tensor lies in a file, and the shape that helps to store it: elements, and rows of a matrix."""

    offset: int
    num_bytes: int
    element_bytes: int = 1
    num_rows: int = 1

    def __post_init__(self) -> None:
        assert self.element_bytes in ELEMENT_BYTES
        assert self.num_bytes > 0
        assert self.num_bytes % (self.element_bytes * self.num_rows) == 0


def pack(data: bytes, spans: Sequence[Span]) -> bytes:
    """The container of ``data``. Spans lie within it, apart, in ascending order."""
    assert len(spans) <= MAX_SPANS
    parts = [MAGIC, number(len(data)), number(len(spans))]
    between = bytearray()
    at = 0
    for span in spans:
        assert at <= span.offset <= len(data) - span.num_bytes
        between += data[at : span.offset]
        raw = data[span.offset : span.offset + span.num_bytes]
        parts += [number(span.offset - at), number(span.num_bytes), bytes([span.element_bytes])]
        parts.append(write_tensor(raw, element_bytes=span.element_bytes, num_rows=span.num_rows))
        at = span.offset + span.num_bytes
    between += data[at:]
    parts.append(write_chunk(np.frombuffer(between, np.uint8)))
    return b"".join(parts)


def is_packed(data: bytes) -> bool:
    """Whether these bytes claim to be a container."""
    return data.startswith(MAGIC)


def executable_bytes(data: bytes) -> int:
    """The size that a container claims for its file. Only for bytes of one's own: nothing vouches for it."""
    return _head(data)[1]


def unpack(data: bytes, *, executable_bytes: int) -> bytes:
    """The file. ``executable_bytes`` is its size as it was signed.

    Raises ``RejectedError``: "packed-malformed" or "packed-size".
    """
    reader, size = _head(data)
    if size != executable_bytes:
        raise RejectedError(
            f"the packed artifact holds {size} bytes, its manifest says {executable_bytes}: build it again",
            code="packed-size",
        )
    file = np.zeros(size, np.uint8)
    gaps: list[tuple[int, int]] = []
    at = 0
    for _ in range(reader.number(MAX_SPANS, "number of tensors")):
        begin = at + reader.number(size - at, "distance to a tensor")
        gaps.append((at, begin))
        num_bytes = reader.number(size - begin, "size of a tensor")
        element_bytes = reader.byte(max(ELEMENT_BYTES), "element size")
        if element_bytes not in ELEMENT_BYTES or not num_bytes or num_bytes % element_bytes:
            raise malformed(f"a tensor of {num_bytes} bytes in elements of {element_bytes}", reader.at)
        at = begin + num_bytes
        file[begin:at] = read_tensor(reader, num_bytes, element_bytes=element_bytes)
    gaps.append((at, size))
    between = read_chunk(reader, sum(stop - start for start, stop in gaps))
    if reader.num_left:
        raise malformed(f"{reader.num_left} bytes after the end", reader.at)
    taken = 0
    for start, stop in gaps:
        file[start:stop] = between[taken : taken + stop - start]
        taken += stop - start
    return file.tobytes()


def _head(data: bytes) -> tuple[Reader, int]:
    if not is_packed(data):
        raise malformed("it does not begin as one", 0)
    reader = Reader(data)
    reader.take(len(MAGIC))
    return reader, reader.number(_MAX_SIZE, "size of the file")
