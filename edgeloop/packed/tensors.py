"""One tensor's bytes, by what they hold: planes, a codebook, or the values that are not zero.

Rules: elements are compared as bits, never as numbers, so that -0.0 and every NaN come back as they were; a
reader allocates a small multiple of the tensor that it was told of, whatever is stored.

``PLANES``: all first bytes of the elements, then all second bytes, ...: exponents come together.
``CODEBOOK``: a table a row and an index an element, for fp32 weights of few distinct values. ``MASKED``: a
bitmap, then the planes of what is not zero. Each may be stored with rows and columns exchanged, if channels
lie in columns.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeloop.packed.chunks import Bytes, read_chunk, read_mask, write_chunk, write_mask
from edgeloop.packed.reading import Reader, malformed, number

PLANES, CODEBOOK, MASKED = range(3)
ELEMENT_BYTES: Final = (1, 2, 4, 8)
MAX_ROWS: Final = 65_536
MAX_ENTRIES: Final = 256
#: Under this share of zeros a bitmap costs more than it saves.
_MIN_ZERO_RATIO: Final = 0.1

_Elements = NDArray[np.unsignedinteger]


def write_tensor(raw: bytes, *, element_bytes: int, num_rows: int = 1) -> bytes:
    """The shortest form. The reader must be told ``len(raw)`` and ``element_bytes``."""
    elements = np.frombuffer(raw, f"<u{element_bytes}")
    forms = _forms(elements, element_bytes, num_rows, exchanged=0)
    if 1 < num_rows < len(elements) and _may_depend_on_layout(elements, element_bytes):
        columns = np.ascontiguousarray(elements.reshape(num_rows, -1).T).reshape(-1)
        forms += _forms(columns, element_bytes, len(elements) // num_rows, exchanged=num_rows)
    return min(forms, key=len)


def read_tensor(reader: Reader, num_bytes: int, *, element_bytes: int) -> Bytes:
    """The ``num_bytes`` bytes of a tensor. Raises ``RejectedError`` ("packed-malformed")."""
    count = num_bytes // element_bytes
    kind = reader.byte(MASKED, "kind of tensor")
    exchanged = reader.number(MAX_ROWS, "rows")
    if exchanged and count % exchanged:
        raise malformed(f"{count} elements do not fill {exchanged} rows", reader.at)
    if kind == PLANES:
        elements = _read_planes(reader, count, element_bytes)
    elif kind == CODEBOOK:
        elements = _read_codebook(reader, count, element_bytes)
    else:
        mask = read_mask(reader, count)
        elements = np.zeros(count, f"<u{element_bytes}")
        elements[mask] = _read_planes(reader, int(mask.sum()), element_bytes)
    if exchanged:
        elements = np.ascontiguousarray(elements.reshape(-1, exchanged).T).reshape(-1)
    return elements.view(np.uint8)


def _may_depend_on_layout(elements: _Elements, element_bytes: int) -> bool:
    """Codes an element do not see the order; tables a row and patterns of zeros do."""
    return element_bytes > 1 or float(np.mean(elements == 0)) > _MIN_ZERO_RATIO


def _forms(elements: _Elements, element_bytes: int, num_rows: int, *, exchanged: int) -> list[bytes]:
    layout = number(exchanged)
    forms = [bytes([PLANES]) + layout + _planes(elements, element_bytes)]
    if element_bytes > 1:
        mask = elements != 0
        if float(mask.mean()) < 1 - _MIN_ZERO_RATIO:
            packed = write_mask(mask) + _planes(elements[mask], element_bytes)
            forms.append(bytes([MASKED]) + layout + packed)
        for rows in {1, num_rows}:
            table = _codebook(elements, rows)
            if table is not None:
                forms.append(bytes([CODEBOOK]) + layout + _write_codebook(*table, element_bytes))
    return forms


def _planes(elements: _Elements, element_bytes: int) -> bytes:
    by_byte = np.ascontiguousarray(elements).view(np.uint8).reshape(-1, element_bytes).T
    return b"".join(write_chunk(np.ascontiguousarray(plane)) for plane in by_byte)


def _read_planes(reader: Reader, count: int, element_bytes: int) -> _Elements:
    by_byte = np.empty((count, element_bytes), np.uint8)
    for plane in range(element_bytes):
        by_byte[:, plane] = read_chunk(reader, count)
    elements: _Elements = by_byte.reshape(-1).view(f"<u{element_bytes}")
    return elements


def _codebook(elements: _Elements, num_rows: int) -> tuple[_Elements, Bytes] | None:
    """Entries [rows, k] and an index an element; None when a row has too many distinct values to gain."""
    if num_rows > MAX_ROWS or len(elements) % num_rows:
        return None
    rows = elements.reshape(num_rows, -1)
    tables, indices, most = [], np.empty(rows.shape, np.uint8), 0
    for row, values in enumerate(rows):
        table, index = np.unique(values, return_inverse=True)
        most = max(most, len(table))
        if most > MAX_ENTRIES or most > max(1, len(values) // 2):
            return None
        tables.append(table)
        indices[row] = index
    entries = np.zeros((num_rows, most), elements.dtype)
    for row, table in enumerate(tables):
        entries[row, : len(table)] = table
    return entries, indices.reshape(-1)


def _write_codebook(entries: _Elements, indices: Bytes, element_bytes: int) -> bytes:
    num_rows, num_entries = entries.shape
    head = number(num_rows) + number(num_entries)
    return head + _planes(entries.reshape(-1), element_bytes) + write_chunk(indices)


def _read_codebook(reader: Reader, count: int, element_bytes: int) -> _Elements:
    num_rows = reader.number(min(MAX_ROWS, count), "rows of the codebook")
    num_entries = reader.number(MAX_ENTRIES, "entries of the codebook")
    if not num_rows or count % num_rows or not 0 < num_entries <= count // num_rows:
        raise malformed(f"a codebook of {num_rows} rows of {num_entries} for {count} elements", reader.at)
    entries = _read_planes(reader, num_rows * num_entries, element_bytes).reshape(num_rows, num_entries)
    indices = read_chunk(reader, count).reshape(num_rows, -1)
    if int(indices.max()) >= num_entries:
        raise malformed(f"an index over the {num_entries} entries of its codebook", reader.at)
    return np.take_along_axis(entries, indices.astype(np.intp), axis=1).reshape(-1)
