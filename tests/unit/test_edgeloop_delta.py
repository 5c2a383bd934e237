"""Deltas: round trips, and everything that must not come of bytes that are not what they say."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeloop import delta
from edgeloop.artifact import BLOCK_SIZE_BYTES, sha256_hex
from edgeloop.errors import RejectedError
from edgeloop.v1 import artifact_pb2, deployment_pb2

BASE = np.random.default_rng(1).bytes(600_000)
TARGET = BASE[:300_000] + b"changed" * 500 + BASE[300_000:]


def manifest_of(data: bytes) -> artifact_pb2.Manifest:
    return artifact_pb2.Manifest(digest=sha256_hex(data), size_bytes=len(data))


def offer_of(data: bytes, base: bytes = BASE) -> deployment_pb2.Delta:
    return delta.make_offer(sha256_hex(base), data)


def frame(content: bytes, base: bytes = BASE, **options: bool) -> bytes:
    prefix = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=prefix, **options).compress(content)


def refusal(data: bytes, *, base: bytes = BASE, target: bytes = TARGET) -> str:
    """Under an offer that names these bytes, as a stolen director's key could sign it."""
    with pytest.raises(RejectedError) as caught:
        delta.apply_delta(offer_of(data), data, base, manifest_of(target))
    return caught.value.code


def test_what_is_made_is_small_gives_the_artifact_back_and_is_the_same_again() -> None:
    data = delta.make_delta(BASE, TARGET)
    assert len(data) < 0.02 * len(TARGET)
    assert data == delta.make_delta(BASE, TARGET)
    delta.check_offer(offer_of(data), size_bytes=len(TARGET))
    assert delta.apply_delta(offer_of(data), data, BASE, manifest_of(TARGET)) == TARGET


@settings(max_examples=50, deadline=None)
@given(base=st.binary(min_size=1, max_size=300), target=st.binary(min_size=1, max_size=300))
def test_any_two_files(base: bytes, target: bytes) -> None:
    data = delta.make_delta(base, target)
    assert delta.apply_delta(offer_of(data, base), data, base, manifest_of(target)) == target


def test_the_base_is_in_reach_to_the_end_of_a_file_of_the_largest_size() -> None:
    base = np.random.default_rng(2).bytes(1 << 20)
    # As much new as there can be, and then the base's first bytes.
    target = np.random.default_rng(3).bytes(1 << 20) + base[:100_000]
    assert len(delta.make_delta(base, target)) < (1 << 20) + 20_000


def test_a_bomb_is_refused_before_anything_is_allocated() -> None:
    zeros = bytes(64 << 20)
    assert refusal(frame(zeros)) == "delta-size"
    assert refusal(frame(zeros, write_content_size=False)) == "delta-size"


def test_a_frame_that_lies_about_its_length_ends_at_that_length() -> None:
    honest = bytearray(frame(bytes(100_000)))
    # The content size of a frame of 64 KiB to 4 GiB lies at byte 5.
    where = bytes(honest).index((100_000).to_bytes(4, "little"))
    honest[where : where + 4] = len(TARGET).to_bytes(4, "little")
    assert refusal(bytes(honest)) in ("delta-malformed", "delta-result")
    honest[where : where + 4] = (1000).to_bytes(4, "little")
    assert refusal(bytes(honest), target=TARGET[:1000]) in ("delta-malformed", "delta-result")


def test_a_wrong_base_makes_nothing_that_passes() -> None:
    data = delta.make_delta(BASE, TARGET)
    assert refusal(data, base=BASE[::-1]) in ("delta-malformed", "delta-result")
    assert refusal(data, base=b"") in ("delta-malformed", "delta-result")


def test_a_foreign_delta_makes_nothing_that_passes() -> None:
    foreign = delta.make_delta(BASE, TARGET[::-1])
    assert refusal(foreign) in ("delta-malformed", "delta-result")


def test_truncated_altered_and_lengthened_bytes_are_not_even_decoded() -> None:
    data = delta.make_delta(BASE, TARGET)
    offer = offer_of(data)
    for wrong in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), data + b"\0", b""):
        with pytest.raises(RejectedError) as caught:
            delta.apply_delta(offer, wrong, BASE, manifest_of(TARGET))
        assert caught.value.code == "delta-altered"


@settings(max_examples=200, deadline=None)
@given(data=st.binary(min_size=1, max_size=400))
def test_nonsense_that_was_signed_for_is_refused(data: bytes) -> None:
    assert refusal(data) in ("delta-malformed", "delta-size", "delta-result")


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_that_was_signed_for_is_refused(at: int, bit: int) -> None:
    data = bytearray(delta.make_delta(BASE[:2000], TARGET[:3000]))
    data[at % len(data)] ^= 1 << bit
    code, made = "", b""
    try:
        made = delta.apply_delta(offer_of(bytes(data)), bytes(data), BASE[:2000], manifest_of(TARGET[:3000]))
    except RejectedError as error:
        code = error.code
    # A bit without meaning may be another one.
    assert code in ("delta-malformed", "delta-size", "delta-result") or made == TARGET[:3000]


def test_two_frames_are_no_delta() -> None:
    assert refusal(frame(TARGET) + frame(b"more")) == "delta-malformed"


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("base_digest", "../../etc/passwd", "delta-field"),
        ("digest", "", "delta-field"),
        ("size_bytes", 0, "delta-field"),
        ("size_bytes", 2**63, "delta-field"),
        ("size_bytes", BLOCK_SIZE_BYTES + 1, "delta-field"),
        ("block_digests", [b"short"], "delta-field"),
        ("block_digests", [], "delta-field"),
        ("format", "zstd-prefix-v2", "delta-unsupported"),
    ],
)
def test_an_offer_out_of_bounds_is_refused(field: str, value: object, code: str) -> None:
    offer = offer_of(delta.make_delta(BASE, TARGET))
    kept = {"block_digests": list(offer.block_digests)}
    values = {
        name: kept.get(name, getattr(offer, name))
        for name in ("base_digest", "digest", "size_bytes", "block_digests", "format")
    }
    with pytest.raises(RejectedError) as caught:
        delta.check_offer(deployment_pb2.Delta(**{**values, field: value}), size_bytes=len(TARGET))
    assert caught.value.code == code


def test_artifacts_over_the_bound_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "MAX_SIDE_BYTES", 1000)
    with pytest.raises(RejectedError, match="made up to 1000"):
        delta.make_delta(b"a", bytes(1001))
    with pytest.raises(RejectedError) as caught:
        delta.check_offer(offer_of(b"d"), size_bytes=1001)
    assert caught.value.code == "delta-field"
