"""A run of bytes, stored by whichever way takes the fewest.

Rules:

- A reader knows how many bytes a chunk holds before it opens it, and accepts no other count: nothing that is
  stored can make it allocate more than that.
- A writer tries every way and keeps the shortest. Equal input gives equal output.
- Only a sparse chunk has chunks inside, and those are not sparse.

``RAW`` as it is. ``DEFLATE`` (RFC 1951): its Huffman codes mostly, as weights hardly repeat. ``LZMA``: names
and graph structure. ``BITS``: 1 to 7 bits a value above the smallest. ``SPARSE``: a bitmap of what is not the
fill value, then the rest: near the entropy of each; one code for both is a fifth over it at 90 % zeros.
"""

from __future__ import annotations

import lzma
import zlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeloop.packed.reading import Reader, malformed, number

Bytes = NDArray[np.uint8]

RAW, DEFLATE, LZMA, BITS, SPARSE = range(5)

#: Fixed for both sides; the dictionary bounds what a decoder allocates for itself.
_LZMA_FILTERS: Final[list[dict[str, Any]]] = [
    {"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": 1 << 20, "lc": 3, "lp": 0, "pb": 0}
]
#: Longer runs are not tried with LZMA: slow, and its gain is on structure, which is short.
_MAX_LZMA_BYTES: Final = 1 << 17
_MIN_FILL_RATIO: Final = 0.3
#: Values unpacked at a time, a multiple of 8, so that the temporary bits stay small.
_BITS_BLOCK: Final = 1 << 17
_MAX_STORED: Final = (1 << 48) - 1


def write_chunk(values: Bytes, *, nested: bool = False) -> bytes:
    """The shortest form. The reader must be told ``len(values)``."""
    raw = values.tobytes()
    forms = [_stored(RAW, raw)]
    if len(values) > 1:
        for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
            deflater = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
            forms.append(_stored(DEFLATE, deflater.compress(raw) + deflater.flush()))
        if len(values) <= _MAX_LZMA_BYTES:
            forms.append(_stored(LZMA, lzma.compress(raw, lzma.FORMAT_RAW, filters=_LZMA_FILTERS)))
        forms += _bits_forms(values)
        if not nested:
            forms += _sparse_forms(values)
    return min(forms, key=len)


def read_chunk(reader: Reader, count: int, *, nested: bool = False) -> Bytes:
    """The ``count`` bytes of a chunk. Raises ``RejectedError`` ("packed-malformed")."""
    way = reader.byte(BITS if nested else SPARSE, "codec")
    if way == SPARSE:
        return _read_sparse(reader, count)
    if way == BITS:
        return _read_bits(reader, count)
    stored = reader.take(reader.number(_MAX_STORED, "stored size"))
    if way == RAW:
        if len(stored) != count:
            raise malformed(f"a chunk of {count} bytes is stored in {len(stored)}", reader.at)
        return np.frombuffer(stored, np.uint8)
    return np.frombuffer(_decompressed(way, stored, count, reader.at), np.uint8)


def _stored(way: int, data: bytes) -> bytes:
    return bytes([way]) + number(len(data)) + data


def _decompressed(way: int, stored: memoryview, count: int, at: int) -> bytes:
    # One byte more than wanted: room for the end mark to be reached, and to see what is too long.
    opener: Any
    if way == DEFLATE:
        opener = zlib.decompressobj(-15)
    else:
        opener = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA_FILTERS)
    try:
        data: bytes = opener.decompress(stored, count + 1)
    except (zlib.error, lzma.LZMAError) as error:
        raise malformed(f"a compressed chunk does not open ({error})", at) from error
    if len(data) != count or not opener.eof or opener.unused_data:
        raise malformed(f"a compressed chunk does not hold exactly {count} bytes", at)
    return data


def _bits_forms(values: Bytes) -> list[bytes]:
    """Above the smallest value, once as unsigned numbers and once as two's complement."""
    forms = []
    for low, high in (
        (int(values.min()), int(values.max())),
        (int(values.view(np.int8).min()), int(values.view(np.int8).max())),
    ):
        bits = max(1, (high - low).bit_length())
        if bits < 8:
            above = values - np.uint8(low % 256)
            planes = (above[:, None] >> np.arange(bits, dtype=np.uint8)) & np.uint8(1)
            packed = np.packbits(planes.reshape(-1), bitorder="little")
            forms.append(bytes([BITS, bits, low % 256]) + packed.tobytes())
    return forms


def _read_bits(reader: Reader, count: int) -> Bytes:
    bits, low = reader.byte(7, "bits"), reader.byte(255, "smallest value")
    if not bits:
        raise malformed("values of 0 bits", reader.at)
    packed = np.frombuffer(reader.take((count * bits + 7) // 8), np.uint8)
    values = np.empty(count, np.uint8)
    for start in range(0, count, _BITS_BLOCK):
        stop = min(start + _BITS_BLOCK, count)
        block = packed[start * bits // 8 : (stop * bits + 7) // 8]
        planes = np.unpackbits(block, count=(stop - start) * bits, bitorder="little").reshape(-1, bits)
        values[start:stop] = planes @ (1 << np.arange(bits)).astype(np.uint8)
    values += np.uint8(low)
    return values


def _sparse_forms(values: Bytes) -> list[bytes]:
    counts = np.bincount(values, minlength=256)
    fill = int(counts.argmax())
    if counts[fill] < _MIN_FILL_RATIO * len(values) or counts[fill] == len(values):
        return []
    mask = values != fill
    return [bytes([SPARSE, fill]) + write_mask(mask) + write_chunk(values[mask], nested=True)]


def _read_sparse(reader: Reader, count: int) -> Bytes:
    fill = reader.byte(255, "fill value")
    mask = read_mask(reader, count)
    values = np.full(count, fill, np.uint8)
    values[mask] = read_chunk(reader, int(mask.sum()), nested=True)
    return values


def write_mask(mask: NDArray[np.bool_]) -> bytes:
    """Which of many are there: a bitmap, lowest bit first."""
    return write_chunk(np.packbits(mask, bitorder="little"), nested=True)


def read_mask(reader: Reader, count: int) -> NDArray[np.bool_]:
    """The ``count`` marks that ``write_mask`` wrote."""
    bitmap = read_chunk(reader, (count + 7) // 8, nested=True)
    return np.unpackbits(bitmap, count=count, bitorder="little").view(np.bool_)
