"""What a sensor sends, as an input of the model. Pure.

Rules that this module keeps:

- Whatever comes in is hostile until checked: the result is float32, of the model's shape and finite, or a
  ``RejectedError`` says what is wrong. Nothing is allocated by a size that a sender merely claims.
- No value is bent to fit, and nothing is ever unpickled.
- One sample, or a batch of at most ``MAX_BATCH``; which of the two it was is kept for the answer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from edge_agent.inference import MAX_BATCH
from edge_agent.serving.tensors import from_values
from edgeloop.errors import RejectedError

Array = NDArray[np.float32]
SampleId = str | int
Shape = tuple[int, ...]

MAX_ID_CHARS: Final = 256
_INPUTS: Final = "inputs"
_FLOATS: Final = ("<f4", ">f4")
_NPY_MAGIC: Final = b"\x93NUMPY"
#: Version -> how many bytes say the length of the header.
_NPY_LENGTHS: Final = {b"\x01\x00": 2, b"\x02\x00": 4}
#: As every writer of the format lays it out.
_NPY_HEADER: Final = re.compile(
    rb"\{'descr': '(?P<descr>[<>|=][a-zA-Z][0-9]{0,4})', 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>(?:[0-9]{1,12}, ?){0,16}(?:[0-9]{1,12})?)\),? ?\} *\n"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """``inputs`` always have the batch dimension."""

    inputs: Array
    is_batch: bool
    id: SampleId | None = None


def parse_sample(payload: bytes, *, sample_format: str, sample_shape: Shape) -> Sample:
    """Raises ``RejectedError`` (``input-...``). ``sample_format`` is json, raw or npy."""
    return _PARSERS[sample_format](payload, sample_shape)


def _parse_raw(payload: bytes, shape: Shape) -> Sample:
    num_bytes = 4 * math.prod(shape)
    num_samples, rest = divmod(len(payload), num_bytes)
    if rest or not 0 < num_samples <= MAX_BATCH:
        raise RejectedError(
            f"{len(payload)} bytes; a sample of shape {list(shape)} has {num_bytes} (little-endian float32), "
            f"and up to {MAX_BATCH} may follow each other",
            code="input-size",
        )
    array = np.frombuffer(payload, "<f4").reshape((num_samples, *shape))
    return _checked(array, is_batch=num_samples > 1)


def _parse_json(payload: bytes, shape: Shape) -> Sample:
    try:
        said = json.loads(payload.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise RejectedError(f"is not valid JSON: {str(error)[:200]}", code="input-json") from None
    sample_id: SampleId | None = None
    if isinstance(said, dict):
        if _INPUTS not in said:
            raise RejectedError(
                f"the object has no {_INPUTS!r}; send a list, or an object with it", code="input-json"
            )
        sample_id = _checked_id(said.get("id"))
        said = said[_INPUTS]
    try:
        return _from_lists(said, shape, sample_id)
    except RejectedError as error:
        if sample_id is not None:
            raise UnfitError(error.message, code=error.code, sample_id=sample_id) from None
        raise


class UnfitError(RejectedError):
    """A refused sample whose id could be read."""

    def __init__(self, message: str, *, code: str, sample_id: SampleId) -> None:
        super().__init__(message, code=code)
        self.sample_id = sample_id


def _from_lists(said: object, shape: Shape, sample_id: SampleId | None) -> Sample:
    if not isinstance(said, list) or not said:
        raise RejectedError(
            f"{_INPUTS} is {type(said).__name__ if said != [] else 'empty'}; a list of numbers is expected",
            code="input-shape",
        )
    depth, inner = 0, said
    while isinstance(inner, list) and inner and depth <= len(shape) + 1:
        depth, inner = depth + 1, inner[0]
    is_batch = depth == len(shape) + 1
    if is_batch and len(said) > MAX_BATCH:
        raise RejectedError(
            f"{len(said)} samples; at most {MAX_BATCH} at a time are taken", code="input-shape"
        )
    array = from_values(_INPUTS, "FP32", (len(said), *shape) if is_batch else shape, said)
    return _checked(array if is_batch else array[np.newaxis], is_batch=is_batch, sample_id=sample_id)


def _parse_npy(payload: bytes, shape: Shape) -> Sample:
    descr, fortran_order, found_shape, data = _npy_parts(payload)
    if descr not in _FLOATS:
        raise RejectedError(f"holds {descr[:80]!r}; float32 ('<f4') is wanted", code="input-type")
    batch = found_shape[:1] if len(found_shape) == len(shape) + 1 else ()
    if found_shape != (*batch, *shape) or (batch and not 0 < batch[0] <= MAX_BATCH):
        raise RejectedError(
            f"has shape {str(list(found_shape))[:80]}; {list(shape)} is wanted, or 1 to {MAX_BATCH} of these",
            code="input-shape",
        )
    if len(data) != 4 * math.prod(found_shape):
        raise RejectedError(
            f"has {len(data)} bytes of data; its shape {list(found_shape)} has {4 * math.prod(found_shape)}",
            code="input-size",
        )
    array = np.frombuffer(data, descr).reshape(found_shape, order="F" if fortran_order else "C")
    return _checked(array if batch else array[np.newaxis], is_batch=bool(batch))


def _npy_parts(payload: bytes) -> tuple[str, bool, Shape, bytes]:
    """Type, order, shape and data. numpy's own reader evaluates the header, and raises whatever that does."""
    if payload[:6] == _NPY_MAGIC and payload[6:8] in _NPY_LENGTHS:
        begin = 8 + _NPY_LENGTHS[payload[6:8]]
        end = begin + int.from_bytes(payload[8:begin], "little")
        header = _NPY_HEADER.fullmatch(payload, begin, end) if end <= len(payload) else None
        if header is not None:
            sizes = tuple(int(size) for size in header["shape"].split(b",") if size.strip())
            return header["descr"].decode(), header["order"] == b"True", sizes, payload[end:]
    raise RejectedError("is no .npy file of numbers (version 1 or 2)", code="input-npy")


def _checked(array: NDArray[Any], *, is_batch: bool, sample_id: SampleId | None = None) -> Sample:
    if not np.isfinite(array).all():
        raise RejectedError("holds values that are not finite", code="input-value")
    return Sample(inputs=np.ascontiguousarray(array, np.float32), is_batch=is_batch, id=sample_id)


def _checked_id(value: object) -> SampleId | None:
    fits = (isinstance(value, str) and len(value) <= MAX_ID_CHARS) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    )
    if value is None or fits:
        return value  # type: ignore[return-value]  # a text or a whole number, as was just seen
    raise RejectedError(
        f"id is {type(value).__name__}; a text of at most {MAX_ID_CHARS} characters or a whole number of 64 "
        "bits is expected",
        code="input-id",
    )


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


_PARSERS: Final[Mapping[str, Callable[[bytes, Shape], Sample]]] = {
    "json": _parse_json,
    "raw": _parse_raw,
    "npy": _parse_npy,
}
