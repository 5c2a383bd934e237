"""Where one MQTT packet ends and the next begins, in bytes as they come off a socket. No I/O.

Rules:
- A packet that is larger than the limit is refused by its length alone, before its body is read; so is a
  length that MQTT does not allow.
- Room is made for one packet: what is read reaches a little beyond it at most, and a buffer that had to grow
  for a large one is given back after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PUBLISH: Final = 0x30
SUBACK: Final = 0x90
UNSUBACK: Final = 0xB0

_MIN_ROOM_BYTES: Final = 16 << 10  # read at once where no large packet is under way
_AHEAD_BYTES: Final = 4 << 10  # read beyond a packet: what comes next is often small
_KEPT_BYTES: Final = 512 << 10  # a block and what surrounds it; a larger buffer is not kept
_MAX_LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Packet:
    """``body`` is what follows the fixed header; valid until the next call of the buffer that gave it."""

    header: int
    body: memoryview

    @property
    def kind(self) -> int:
        return self.header & 0xF0


@dataclass(frozen=True, slots=True)
class Published:
    """A PUBLISH of MQTT 3.1.1."""

    topic: str
    payload: bytes
    qos: int
    #: 0 for QoS 0, which has none.
    packet_id: int


class PacketBuffer:
    """Read into ``room()``, say how much with ``add``, take packets with ``next`` until there is none."""

    def __init__(self, max_packet_bytes: int) -> None:
        self._max_packet_bytes = max_packet_bytes
        self._buffer = memoryview(bytearray(_MIN_ROOM_BYTES))
        self._start = self._end = 0
        self._wanted_bytes = 0  # of the packet under way, its header included; 0 while its length is unknown

    @property
    def is_empty(self) -> bool:
        """Whether no packet has begun."""
        return self._start == self._end

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        have_bytes = self._end - self._start
        wanted_bytes = max(self._wanted_bytes + _AHEAD_BYTES, _MIN_ROOM_BYTES)
        if len(self._buffer) < wanted_bytes or (
            len(self._buffer) > _KEPT_BYTES and wanted_bytes <= _KEPT_BYTES
        ):
            larger = memoryview(bytearray(wanted_bytes))
            larger[:have_bytes] = self._buffer[self._start : self._end]
            self._buffer, self._start, self._end = larger, 0, have_bytes
        elif self._start:
            self._buffer[:have_bytes] = self._buffer[self._start : self._end]
            self._start, self._end = 0, have_bytes
        return self._buffer[self._end : wanted_bytes]

    def add(self, num_bytes: int) -> None:
        self._end += num_bytes

    def next(self) -> Packet | None:
        """The next packet that has come whole.

        Raises ``ValueError`` for one that is too large and for a length that is none.
        """
        have_bytes = self._end - self._start
        if have_bytes < max(2, self._wanted_bytes):
            return None
        length = shift = 0
        for position in range(self._start + 1, min(self._end, self._start + 1 + _MAX_LENGTH_BYTES)):
            byte = self._buffer[position]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        else:
            if have_bytes <= _MAX_LENGTH_BYTES:
                return None
            raise ValueError("it sends a packet whose length is none that MQTT allows")
        if length > self._max_packet_bytes:
            raise ValueError(f"it sends a message of {length} bytes: more than any of ours")
        body = position + 1
        end = body + length
        if end > self._end:
            self._wanted_bytes = end - self._start
            return None
        self._wanted_bytes = 0
        packet = Packet(self._buffer[self._start], self._buffer[body:end])
        self._start = end
        return packet


def parse_publish(packet: Packet) -> Published:
    """Raises ``ValueError`` for what is no PUBLISH of MQTT 3.1.1, a topic that is no UTF-8 included."""
    body, qos = packet.body, packet.header >> 1 & 3
    topic_end = 2 + int.from_bytes(body[:2])
    start = topic_end + (2 if qos else 0)
    if qos == 3 or topic_end == 2 or start > len(body):
        raise ValueError("it sends a message that is none of MQTT 3.1.1")
    return Published(
        str(body[2:topic_end], "utf-8"),
        bytes(body[start:]),
        qos,
        int.from_bytes(body[topic_end:start]),
    )
