"""One end of the socket between the control plane and the driver of Ray.

A frame is four bytes, the length of what follows in network order, and a message as JSON. Either side sends
from any thread; one thread receives.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from cloud.jobs.messages import Message, from_bytes, to_bytes

#: A task is a few kilobytes; an elastic family with its many widths is the largest.
MAX_FRAME_BYTES = 16 * 1024 * 1024
_LENGTH = struct.Struct("!I")


class Link:
    """Owns its socket. ``silence_s`` is how long a send or receive may move nothing; None waits for ever."""

    def __init__(self, end: socket.socket, *, silence_s: float | None = None) -> None:
        self._end = end
        self._end.settimeout(silence_s)
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Raises ``OSError`` when the other side is gone, and ``ValueError`` for what is too long."""
        data = to_bytes(message)
        if len(data) > MAX_FRAME_BYTES:
            raise ValueError(f"a {type(message).__name__} of {len(data)} bytes is longer than a frame may be")
        with self._sending:
            self._end.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self) -> Message | None:
        """The next message, or None when the other side is gone.

        Raises ``TimeoutError`` after ``silence_s`` in which nothing came, ``ValueError`` for a broken frame.
        """
        head = self._read(_LENGTH.size)
        if head is None:
            return None
        (num_bytes,) = _LENGTH.unpack(head)
        if num_bytes > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {num_bytes} bytes: at most {MAX_FRAME_BYTES} are sent")
        body = self._read(num_bytes)
        return None if body is None else from_bytes(body)

    def silence_after(self, silence_s: float) -> None:
        """Change how long may be waited, from the next call on."""
        self._end.settimeout(silence_s)

    def close(self) -> None:
        """Wakes whoever sends or receives on this end. Safe to call twice."""
        with contextlib.suppress(OSError):  # the other side may have been faster
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def _read(self, num_bytes: int) -> bytes | None:
        data = bytearray()
        while len(data) < num_bytes:
            try:
                part = self._end.recv(min(num_bytes - len(data), 1 << 20))
            except TimeoutError:
                raise
            except OSError:
                return None  # reset, or closed by ourselves
            if not part:
                return None
            data += part
        return bytes(data)
