"""The packed container: exact for whatever comes in, small for what weights look like, safe to open."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeloop.errors import RejectedError
from edgeloop.packed import MAGIC, Span, executable_bytes, is_packed, pack, unpack
from edgeloop.packed.reading import number

GOLDEN = Path(__file__).parents[2] / "golden"

KINDS = ("noise", "few", "sparse", "low-bits", "codebook-rows", "codebook-columns", "constant")


def weights(kind: str, dtype: str, rows: int, columns: int, seed: int) -> NDArray[np.generic]:
    rng = np.random.default_rng(seed)
    shape = (rows, columns)
    if kind == "noise":
        found = np.frombuffer(rng.bytes(rows * columns * np.dtype(dtype).itemsize), dtype).reshape(shape)
    elif kind == "few":
        found = rng.choice(rng.normal(size=9) * 50, shape)
    elif kind == "sparse":
        found = rng.normal(size=shape) * 40 * (rng.random(shape) < 0.2)
    elif kind == "low-bits":
        found = rng.integers(-7, 8, shape)
    elif kind == "constant":
        found = np.full(shape, -3)
    else:
        tables = rng.normal(size=(rows if kind == "codebook-rows" else columns, 4)) * 30
        index = rng.integers(0, 4, shape)
        axis = np.arange(rows)[:, None] if kind == "codebook-rows" else np.arange(columns)[None, :]
        found = tables[axis, index]
    return found.astype(dtype)


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, list[Span]]:
    """Tensors of every kind among bytes of other content."""
    data, spans = b"", []
    for _ in range(draw(st.integers(0, 4))):
        data += draw(st.binary(max_size=40))
        dtype = draw(st.sampled_from(["<i1", "<u1", "<f2", "<f4", "<i4", "<f8", "<i8"]))
        rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 40))
        found = weights(draw(st.sampled_from(KINDS)), dtype, rows, columns, draw(st.integers(0, 999)))
        span = Span(
            offset=len(data), num_bytes=found.nbytes, element_bytes=found.dtype.itemsize, num_rows=rows
        )
        spans.append(span)
        data += found.tobytes()
    return data + draw(st.binary(max_size=40)), spans


@given(files())
@settings(deadline=None, max_examples=60)
def test_whatever_is_packed_comes_back_to_the_last_bit(file: tuple[bytes, list[Span]]) -> None:
    data, spans = file
    packed = pack(data, spans)
    assert unpack(packed, executable_bytes=len(data)) == data
    assert packed == pack(data, spans)
    assert is_packed(packed)
    assert executable_bytes(packed) == len(data)


def test_zeros_with_a_sign_and_every_kind_of_nan_come_back() -> None:
    bits = np.array([0x00000000, 0x80000000, 0x7FC00000, 0x7F800001, 0xFFC12345] * 40, "<u4")
    data = bits.tobytes()
    span = Span(offset=0, num_bytes=len(data), element_bytes=4, num_rows=5)
    assert unpack(pack(data, [span]), executable_bytes=len(data)) == data


def ratio(found: NDArray[np.generic], rows: int = 1) -> float:
    data = found.tobytes()
    span = Span(offset=0, num_bytes=len(data), element_bytes=found.dtype.itemsize, num_rows=rows)
    packed = pack(data, [span])
    assert unpack(packed, executable_bytes=len(data)) == data
    return len(packed) / len(data)


def entropy_ratio(found: NDArray[np.int8]) -> float:
    share = np.unique(found, return_counts=True)[1] / found.size
    return float(-(share * np.log2(share)).sum() / 8)


@pytest.mark.parametrize("zeros", [0.5, 0.75, 0.9, 0.95])
def test_int8_weights_come_near_their_entropy_at_any_share_of_zeros(zeros: float) -> None:
    rng = np.random.default_rng(0)
    dense = np.clip(np.round(rng.normal(0, 22, 40_000)), -63, 63)
    found = np.where(np.abs(dense) <= np.quantile(np.abs(dense), zeros), 0, dense).astype(np.int8)
    assert ratio(found) < entropy_ratio(found) * 1.12 + 0.002


def test_two_of_four_costs_less_than_zeros_anywhere() -> None:
    rng = np.random.default_rng(0)
    dense = np.round(rng.normal(0, 22, (64, 400))).astype(np.int8)
    groups = dense.reshape(-1, 4).copy()
    np.put_along_axis(groups, np.argsort(np.abs(groups), axis=1)[:, :2], 0, axis=1)
    anywhere = np.where(rng.random(dense.shape) < 0.5, 0, groups.reshape(dense.shape)[:, ::-1])
    structured = groups.reshape(dense.shape)
    assert ratio(structured, 64) < 0.55
    # The same pattern where it runs down the columns, as in a transposed matrix.
    assert ratio(np.ascontiguousarray(structured.T), 400) < 0.55
    assert np.count_nonzero(anywhere) < np.count_nonzero(structured)


@pytest.mark.parametrize(
    ("kind", "rows", "columns", "most"),
    [
        ("few", 64, 512, 0.15),
        ("low-bits", 64, 512, 0.14),
        ("codebook-rows", 64, 512, 0.09),
        ("codebook-columns", 512, 64, 0.09),
        ("constant", 64, 512, 0.01),
        ("noise", 64, 512, 1.001),
    ],
)
def test_fp32_weights_cost_what_their_distinct_values_cost(
    kind: str, rows: int, columns: int, most: float
) -> None:
    assert ratio(weights(kind, "<f4", rows, columns, 1), rows) < most


def outcome(packed: bytes, size: int) -> int | str:
    """How many bytes came out, or the code of the refusal. Nothing else may escape."""
    try:
        return len(unpack(packed, executable_bytes=size))
    except RejectedError as error:
        return error.code


@given(files(), st.data())
@settings(deadline=None, max_examples=100)
def test_a_container_that_was_altered_gives_other_bytes_or_an_error_with_a_code(
    file: tuple[bytes, list[Span]], data: st.DataObject
) -> None:
    content, spans = file
    packed = bytearray(pack(content, spans))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del packed[data.draw(st.integers(0, len(packed))) :]
    assert outcome(bytes(packed), len(content)) in (len(content), "packed-malformed", "packed-size")


@given(st.binary(max_size=200), st.integers(1, 5000))
@settings(deadline=None, max_examples=300)
def test_what_nobody_packed_is_refused_or_has_the_size_that_was_signed(body: bytes, size: int) -> None:
    assert outcome(MAGIC + number(size) + body, size) in (size, "packed-malformed")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "packed-malformed"),
        (number(0) + b"\x00" + number(99) + bytes(99), "packed-malformed"),  # one byte short
        (number(0) + b"\x00" + number(100) + bytes(100) + b"!", "packed-malformed"),  # one too many
        (number(0) + b"\x09" + number(100) + bytes(100), "packed-malformed"),  # no such codec
        (number(1) + number(101), "packed-malformed"),  # a tensor beyond the end
        (number(1) + number(90) + number(11) + b"\x01", "packed-malformed"),
        (number(1) + number(0) + number(8) + b"\x03" + bytes(40), "packed-malformed"),  # elements of 3
        (number(1) + number(0) + number(0) + b"\x01" + bytes(40), "packed-malformed"),  # of no size
        (number(70_000), "packed-malformed"),  # more tensors than any file has
        (b"\xff" * 12, "packed-malformed"),  # a number without an end
    ],
)
def test_each_lie_of_a_header_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(RejectedError) as caught:
        unpack(MAGIC + number(100) + body, executable_bytes=100)
    assert caught.value.code == code


def test_another_size_than_the_signed_one_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(RejectedError) as caught:
        unpack(MAGIC + number(1 << 40) + b"\x00", executable_bytes=1000)
    assert caught.value.code == "packed-size"


@pytest.mark.parametrize("way", ["deflate", "lzma"])
def test_a_bomb_costs_no_more_memory_than_was_signed(way: str) -> None:
    import zlib

    from edgeloop.packed import chunks

    content = bytes(16 << 20)
    if way == "deflate":
        opener = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = bytes([chunks.DEFLATE]), opener.compress(content) + opener.flush()
    else:
        import lzma

        bomb = (
            bytes([chunks.LZMA]),
            lzma.compress(content, lzma.FORMAT_RAW, filters=chunks._LZMA_FILTERS),
        )
    packed = MAGIC + number(5000) + number(0) + bomb[0] + number(len(bomb[1])) + bomb[1]
    tracemalloc.start()
    with pytest.raises(RejectedError, match="exactly 5000 bytes"):
        unpack(packed, executable_bytes=5000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_container_of_the_first_version_stays_readable() -> None:
    packed = (GOLDEN / "packed_v1.bin").read_bytes()
    found = unpack(packed, executable_bytes=executable_bytes(packed))
    assert hashlib.sha256(found).hexdigest() == (GOLDEN / "packed_v1.sha256").read_text().strip()
