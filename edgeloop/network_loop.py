"""Reading and writing for one paho client, on the thread that calls.

paho's own loops wait with select(), which fails for the high file descriptors of a busy server, and let any
thread that publishes write to the socket. This one waits with the platform's best selector and does all
input and output itself; other threads only queue, and wake it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

from paho.mqtt import client as paho

CONNECT_TIMEOUT_S: Final = 5.0
_TICK_S: Final = 0.5  # how often keepalive is looked at
_GOODBYE_S: Final = 1.0
#: The largest message of ours is a manifest (2 MiB); a topic comes on top.
MAX_PACKET_BYTES: Final = (2 << 20) + (64 << 10)


class BoundedClient(paho.Client):
    """Ends the connection rather than take in a packet that is larger than any of ours.

    MQTT 3.1.1 has no way to tell the broker a limit, and paho collects up to 256 MiB before it says a word.
    """

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > MAX_PACKET_BYTES:
            # No OSError, which paho would turn into a lost connection without a reason.
            raise ValueError(f"it sends a message of {bufsize} bytes: more than any of ours")
        return bytes(super()._sock_recv(bufsize))


class Wakeup:
    """Interrupts a waiting selector from any thread."""

    def __init__(self) -> None:
        self._in, self._out = socket.socketpair()
        self._in.setblocking(False)
        self._out.setblocking(False)

    def fileno(self) -> int:
        return self._out.fileno()

    def set(self) -> None:
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody is there to wake
            self._in.send(b"\0")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._out.recv(4096)

    def close(self) -> None:
        self._in.close()
        self._out.close()


def serve(
    client: paho.Client, wakeup: Wakeup, *, answered: Callable[[], bool], closed: Callable[[], bool]
) -> None:
    """Return once the connection has ended, or was ended because ``closed`` became true.

    Raises ``OSError`` when the broker has not ``answered`` in time.
    """
    sock = client.socket()
    if sock is None:
        return
    if isinstance(sock, socket.socket):  # else each acknowledgement waits for the other side's delayed one
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answer_until_s = time.monotonic() + CONNECT_TIMEOUT_S
    goodbye_until_s: float | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(wakeup, selectors.EVENT_READ)
        watched = selectors.EVENT_READ
        selector.register(sock, watched)
        while client.socket() is not None:
            now_s = time.monotonic()
            if closed() and goodbye_until_s is None:
                goodbye_until_s = now_s + _GOODBYE_S
                client.disconnect()
            if goodbye_until_s is not None and (now_s >= goodbye_until_s or not client.want_write()):
                return
            if now_s >= answer_until_s and not answered():
                raise OSError(f"it accepts connections but does not answer within {CONNECT_TIMEOUT_S:g} s")
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.want_write() else 0)
            if wanted != watched:
                selector.modify(sock, wanted)
                watched = wanted
            # TLS may hold bytes that were read from the socket already: the selector cannot see them.
            readable = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
            for key, mask in selector.select(0 if readable else _TICK_S):
                if key.fileobj is wakeup:
                    wakeup.clear()
                elif mask & selectors.EVENT_READ:
                    readable = True
            if readable:
                client.loop_read()
            if client.want_write():
                client.loop_write()
            client.loop_misc()
