"""Reads numbers and bytes off a container that anyone may have made.

Rules: nothing is read past the end; a number is refused before it is used where it is over its bound; every
refusal is a ``RejectedError`` with the code "packed-malformed" that says near which byte.
"""

from __future__ import annotations

from edgeloop.errors import RejectedError


def malformed(what: str, at: int) -> RejectedError:
    return RejectedError(
        f"the packed artifact is malformed near byte {at}: {what}; build it again", code="packed-malformed"
    )


class Reader:
    """A position in ``data``, which is not copied."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.at = 0

    @property
    def num_left(self) -> int:
        return len(self._data) - self.at

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes."""
        if count > self.num_left:
            raise malformed(f"{count} bytes are announced, {self.num_left} are left", self.at)
        taken = self._data[self.at : self.at + count]
        self.at += count
        return taken

    def byte(self, most: int, field: str) -> int:
        """One byte, 0 to ``most``."""
        return self._bounded(self.take(1)[0], most, field)

    def number(self, most: int, field: str) -> int:
        """A number, 0 to ``most``: seven bits a byte, lowest first, the top bit set on all but the last."""
        value = shift = 0
        while shift < 63:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return self._bounded(value, most, field)
            shift += 7
        raise malformed(f"{field} has too many digits", self.at)

    def _bounded(self, value: int, most: int, field: str) -> int:
        if value > most:
            raise malformed(f"{field} is {value}, at most {most} is possible", self.at)
        return value


def number(value: int) -> bytes:
    """What ``Reader.number`` reads."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
