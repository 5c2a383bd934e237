"""MQTT packets out of bytes that come in any pieces, hostile ones included."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeloop.packets import PUBLISH, Packet, PacketBuffer, Published, parse_publish

LIMIT = 600_000


def framed(header: int, body: bytes) -> bytes:
    """By the letter of MQTT 3.1.1, 2.2.3."""
    length, digits = len(body), bytearray()
    while True:
        length, digit = divmod(length, 128)
        digits.append(digit | (128 if length else 0))
        if not length:
            return bytes((header,)) + bytes(digits) + body


def feed(buffer: PacketBuffer, data: bytes, piece_bytes: int) -> list[tuple[int, bytes]]:
    """Hands it over in pieces of at most so many bytes; what came out, copied at once."""
    found = []
    while data:
        room = buffer.room()
        assert room
        num_bytes = min(len(room), piece_bytes, len(data))
        room[:num_bytes] = data[:num_bytes]
        buffer.add(num_bytes)
        data = data[num_bytes:]
        while (packet := buffer.next()) is not None:
            found.append((packet.header, bytes(packet.body)))
    return found


PACKETS = [
    (0x90, b"\0\1\0"),
    (0xD0, b""),
    (PUBLISH, bytes(range(130))),
    (0xB0, b"\0\2"),
    (0x31, b"x" * 20_000),
]
STREAM = b"".join(framed(header, body) for header, body in PACKETS)


def test_a_stream_may_be_cut_at_every_byte() -> None:
    ends = len(STREAM) - 20_000
    for cut in [*range(ends + 20), *range(len(STREAM) - 20, len(STREAM))]:
        buffer = PacketBuffer(LIMIT)
        found = feed(buffer, STREAM[:cut], LIMIT) + feed(buffer, STREAM[cut:], LIMIT)
        assert found == PACKETS, cut
        assert buffer.is_empty


def test_a_stream_may_come_byte_by_byte() -> None:
    assert feed(PacketBuffer(LIMIT), STREAM, 1) == PACKETS


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(
        st.sampled_from([0, 1, 125, 127, 128, 4_096, 16_383, 16_384, 20_000, 262_243, 590_000]), max_size=6
    ),
    piece_bytes=st.sampled_from([1_000, 4_097, 16_384, 65_483, LIMIT]),
)
def test_whatever_the_sizes_each_packet_comes_out_as_it_was(sizes: list[int], piece_bytes: int) -> None:
    packets = [(0x30 + n, bytes((n,)) * size) for n, size in enumerate(sizes)]
    stream = b"".join(framed(header, body) for header, body in packets)
    buffer = PacketBuffer(LIMIT)
    assert feed(buffer, stream, piece_bytes) == packets
    assert buffer.is_empty


def test_a_large_packet_is_read_in_few_pieces_and_its_room_is_given_back() -> None:
    buffer = PacketBuffer(LIMIT)
    small = len(buffer.room())
    feed(buffer, framed(PUBLISH, b"x" * 590_000)[:5], LIMIT)
    assert len(buffer.room()) >= 590_000 - 5
    buffer = PacketBuffer(LIMIT)
    feed(buffer, framed(PUBLISH, b"x" * 590_000), LIMIT)
    assert len(buffer.room()) == small


@pytest.mark.parametrize("body_bytes", [LIMIT + 1, 2**28 - 1])
def test_a_packet_that_is_too_large_is_refused_by_its_header_alone(body_bytes: int) -> None:
    buffer = PacketBuffer(LIMIT)
    header = framed(PUBLISH, bytes(LIMIT + 1))[:4] if body_bytes == LIMIT + 1 else b"\x30\xff\xff\xff\x7f"
    with pytest.raises(ValueError, match=f"{body_bytes} bytes"):
        feed(buffer, header, 1)
    assert len(buffer.room()) < 20_000


def test_the_largest_that_is_allowed_passes() -> None:
    assert feed(PacketBuffer(1_000), framed(PUBLISH, b"x" * 1_000), 7) == [(PUBLISH, b"x" * 1_000)]


def test_a_length_of_five_bytes_is_refused() -> None:
    buffer = PacketBuffer(LIMIT)
    assert feed(buffer, b"\x30\xff\xff\xff", 1) == []
    with pytest.raises(ValueError, match="length"):
        feed(buffer, b"\xff", 1)


def parsed(header: int, body: bytes) -> Published:
    return parse_publish(Packet(header, memoryview(body)))


def test_topic_payload_and_packet_id_are_read() -> None:
    assert parsed(0x31, b"\0\3a/bhello") == Published("a/b", b"hello", 0, 0)
    assert parsed(0x33, b"\0\3a/b\1\2hello") == Published("a/b", b"hello", 1, 0x0102)
    assert parsed(0x30, b"\0\1a") == Published("a", b"", 0, 0)


@pytest.mark.parametrize(
    ("header", "body"),
    [
        pytest.param(0x30, b"", id="no topic"),
        pytest.param(0x30, b"\0", id="half a length"),
        pytest.param(0x30, b"\0\0hello", id="empty topic"),
        pytest.param(0x30, b"\xff\xffabc", id="topic beyond the packet"),
        pytest.param(0x32, b"\0\1a\1", id="half a packet id"),
        pytest.param(0x36, b"\0\1a\1\2x", id="QoS 3"),
        pytest.param(0x30, b"\0\2\xc3\x28x", id="topic no UTF-8"),
    ],
)
def test_what_is_no_message_is_refused(header: int, body: bytes) -> None:
    with pytest.raises(ValueError, match=r"none of MQTT|utf-8"):
        parsed(header, body)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_packets_or_refused_and_never_anything_else(data: bytes) -> None:
    buffer = PacketBuffer(150)
    try:
        for header, body in feed(buffer, data, 3):
            if header & 0xF0 == PUBLISH:
                parsed(header, body)
    except ValueError:
        pass
