"""Tensors of the Open Inference Protocol, to and from numpy. Pure.

Rules that this module keeps:

- Whatever comes in is hostile until checked: each function returns an array of exactly the datatype and shape
  that was said, or raises ``RejectedError`` with a message that names the tensor. Nothing is allocated by a
  size that a sender merely claims.
- No value is bent to fit: a number that its datatype cannot hold, a text, a null or a truth value among
  numbers is refused, not converted.
- Raw data is little-endian, row by row, without gaps. An array made of raw data shares its memory and is
  read-only.
- Text (``BYTES``) and ``BF16`` are refused by name: no model here takes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeloop.errors import RejectedError

#: Nothing that is served comes near this; it bounds what an error message or a loop may run over.
MAX_RANK: Final = 16
_MAX_ELEMENTS: Final = 1 << 40

DATATYPES: Final = MappingProxyType(
    {
        name: np.dtype(code)
        for name, code in {
            "BOOL": "?",
            "UINT8": "u1",
            "UINT16": "<u2",
            "UINT32": "<u4",
            "UINT64": "<u8",
            "INT8": "i1",
            "INT16": "<i2",
            "INT32": "<i4",
            "INT64": "<i8",
            "FP16": "<f2",
            "FP32": "<f4",
            "FP64": "<f8",
        }.items()
    }
)
_PYTHON_KINDS: Final[dict[str, set[type]]] = {"b": {bool}, "f": {int, float}}
_NAMES: Final = MappingProxyType({dtype: name for name, dtype in DATATYPES.items()})

AnyArray = NDArray[Any]


def datatype_of(array: AnyArray) -> str:
    """What the protocol calls the elements of ``array``."""
    return _NAMES[array.dtype.newbyteorder("<")]


def from_raw(name: str, datatype: str, shape: Sequence[object], raw: bytes | memoryview) -> AnyArray:
    """A tensor from its bytes. ``RejectedError``: ``input-type``, ``input-shape``, ``input-size``."""
    dtype, sizes = _dtype(name, datatype), _sizes(name, shape)
    num_bytes = math.prod(sizes) * dtype.itemsize
    if len(raw) != num_bytes:
        raise RejectedError(
            f"input {name!r} has {len(raw)} bytes of data; shape {list(sizes)} of {datatype} has {num_bytes}",
            code="input-size",
        )
    return np.frombuffer(raw, dtype).reshape(sizes)


def from_values(name: str, datatype: str, shape: Sequence[object], data: object) -> AnyArray:
    """A tensor from a list as JSON has it: all elements in a row, or nested as ``shape`` says.

    ``RejectedError``: ``input-type``, ``input-shape``, ``input-size``, ``input-value``.
    """
    dtype, sizes = _dtype(name, datatype), _sizes(name, shape)
    if not isinstance(data, list):
        raise RejectedError(f"data of input {name!r} is {_say(data)}; a list is expected", code="input-value")
    # Kinds are checked before numpy sees a value: it would turn texts and numbers alike into texts, each
    # as long as the longest.
    values: list[object] = data
    kinds = set(map(type, values))
    if kinds == {list} and len(sizes) > 1:
        values = _flatten(name, values, sizes)
        kinds = set(map(type, values))
    num_elements = math.prod(sizes)
    if len(values) != num_elements:
        raise RejectedError(
            f"input {name!r} has {len(values)} values; shape {list(sizes)} takes {num_elements}",
            code="input-size",
        )
    allowed = _PYTHON_KINDS.get(dtype.kind, {int})
    if not kinds <= allowed:
        found = ", ".join(sorted(kind.__name__ for kind in kinds - allowed))
        raise RejectedError(f"input {name!r} holds {found} among its {datatype} values", code="input-value")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, np.float64 if dtype.kind == "f" else dtype).astype(dtype, copy=False)
    except OverflowError:
        raise _no_fit(name, datatype) from None
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise _no_fit(name, datatype)
    return array.reshape(sizes)


def to_raw(array: AnyArray) -> bytes:
    """The bytes of a tensor."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def to_values(name: str, array: AnyArray) -> list[object]:
    """The elements in a row, for JSON, which has no word for infinity and the like: ``output-value``."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RejectedError(
            f"output {name!r} holds values that are not finite, which JSON cannot say; ask for binary data",
            code="output-value",
        )
    values: list[object] = array.ravel().tolist()
    return values


def _dtype(name: str, datatype: object) -> np.dtype[Any]:
    dtype = DATATYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise RejectedError(
            f"input {name!r} has datatype {_say(datatype)}; known are {', '.join(DATATYPES)}",
            code="input-type",
        )
    return dtype


def _sizes(name: str, shape: Sequence[object]) -> tuple[int, ...]:
    if len(shape) > MAX_RANK:
        raise RejectedError(
            f"input {name!r} has {len(shape)} dimensions, at most {MAX_RANK} are taken", code="input-shape"
        )
    sizes = tuple(shape)
    if not all(type(size) is int and 0 <= size < _MAX_ELEMENTS for size in sizes):
        raise RejectedError(
            f"input {name!r} has shape {_say(list(shape))}; whole numbers from 0 are expected",
            code="input-shape",
        )
    return sizes  # type: ignore[return-value]  # each is an int, as the line above made sure


def _flatten(name: str, values: list[Any], sizes: tuple[int, ...]) -> list[object]:
    """One level of lists after the other, without recursion; each must be as long as its dimension."""
    if len(values) != sizes[0]:
        raise _not_nested(name, sizes)
    for size in sizes[1:]:
        if set(map(type, values)) - {list} or any(len(row) != size for row in values):
            raise _not_nested(name, sizes)
        values = list(chain.from_iterable(values))
    return values


def _not_nested(name: str, sizes: tuple[int, ...]) -> RejectedError:
    return RejectedError(
        f"the lists of input {name!r} are not nested as its shape {list(sizes)} says; nest them so, or send "
        "all values in one row",
        code="input-shape",
    )


def _no_fit(name: str, datatype: str) -> RejectedError:
    return RejectedError(f"input {name!r} holds a value that {datatype} cannot hold", code="input-value")


def _say(value: object) -> str:
    """Short, whatever it is."""
    text = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    if isinstance(value, list):
        text = repr(value[:MAX_RANK])
    return text if len(text) <= 80 else text[:77] + "..."
