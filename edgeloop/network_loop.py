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
from typing import Any, Final, cast

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edgeloop.packets import PUBLISH, SUBACK, UNSUBACK, Packet, PacketBuffer, parse_publish

CONNECT_TIMEOUT_S: Final = 5.0
_TICK_S: Final = 0.5  # how often keepalive is looked at
_GOODBYE_S: Final = 1.0
#: Before it writes: answers to what came must not wait for all that still comes.
_READS_A_TURN: Final = 4
_MORE: Final = getattr(socket, "MSG_MORE", 0)
_QUICKACK: Final[int | None] = getattr(socket, "TCP_QUICKACK", None)
#: The largest message of ours is a manifest (2 MiB); a topic comes on top.
MAX_PACKET_BYTES: Final = (2 << 20) + (64 << 10)


class BoundedClient(paho.Client):
    """Takes in what has come with few and large reads, and hands messages on without paho's copies of them.

    Packets are put together by ``PacketBuffer``, which ends the connection rather than take in one that is
    larger than any of ours: MQTT 3.1.1 has no way to tell the broker a limit. Messages of QoS 0 and 1 and
    answers to subscriptions are read here; anything else goes to paho whole.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311, **options)
        #: Called with the topic and the payload of each message.
        self.on_published: Callable[[str, bytes], None] = lambda topic, payload: None
        #: Called when the broker refuses a subscription.
        self.on_refused: Callable[[], None] = lambda: None
        self._packets = PacketBuffer(MAX_PACKET_BYTES)
        self._for_paho = memoryview(b"")
        self._lost: OSError | None = None
        #: When bytes of a packet that is not whole yet came last, by the monotonic clock.
        self.fed_at_s: float | None = None

    @property
    def is_amid_packet(self) -> bool:
        """Whether the last read ended within a packet."""
        return not self._packets.is_empty

    def receive(self) -> bool:
        """One read. Whether there may be more to read now.

        Raises ``ValueError`` for what is not MQTT or exceeds our bounds: the connection must end.
        """
        sock = cast(socket.socket | None, self.socket())
        if sock is None:
            return False
        room = self._packets.room()
        try:
            num_bytes = sock.recv_into(room)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except ssl.SSLWantWriteError:
            self._call_socket_register_write()
            return False
        except OSError as error:
            num_bytes, self._lost = 0, error
        if num_bytes == 0:
            self._lost = self._lost or ConnectionResetError("the broker has closed the connection")
            self.loop_read()  # paho meets the error where it reads, and ends the connection
            return False
        self._note_life()
        self._packets.add(num_bytes)
        while (packet := self._packets.next()) is not None:
            self._take(packet)
            if self.socket() is None:
                return False
        self.fed_at_s = time.monotonic() if self.is_amid_packet else None
        # TLS gives out one record at a time.
        return num_bytes == len(room) or isinstance(sock, ssl.SSLSocket)

    def _take(self, packet: Packet) -> None:
        if packet.kind == PUBLISH and not packet.header & 0x04:
            message = parse_publish(packet)
            self.on_published(message.topic, message.payload)
            if message.qos:
                self._send_puback(message.packet_id)
        elif packet.kind == SUBACK:
            if any(code & 0x80 for code in packet.body[2:]):
                self.on_refused()
        elif packet.kind != UNSUBACK:  # of which nothing is to be learned
            self._hand_to_paho(packet)

    def _hand_to_paho(self, packet: Packet) -> None:
        self._for_paho = memoryview(bytes((packet.header, *_encoded(len(packet.body)))) + packet.body)
        self.loop_read()

    def _note_life(self) -> None:
        """Whoever sends is alive, however long the answer to a ping waits behind blocks on a slow link."""
        # Its name in paho 2.2, and in 2.1.
        self._last_bytes_received = self._last_msg_in = time.monotonic()

    def _sock_recv(self, bufsize: int) -> bytes:
        """What paho reads: a packet that has come whole."""
        if self._lost is not None:
            raise self._lost
        if not self._for_paho:
            raise BlockingIOError
        data = bytes(self._for_paho[:bufsize])
        self._for_paho = self._for_paho[bufsize:]
        return data

    def _sock_send(self, buf: bytes | bytearray) -> int:
        sock = self.socket()
        if isinstance(sock, socket.socket) and not isinstance(sock, ssl.SSLSocket) and self._out_packet:
            try:
                # More follows at once: one segment carries it all.
                return sock.send(buf, _MORE)
            except BlockingIOError:
                self._call_socket_register_write()
                raise
        return int(super()._sock_send(buf))


def _encoded(length: int) -> list[int]:
    """As MQTT writes the length of a packet."""
    digits = []
    while True:
        length, digit = length >> 7, length & 0x7F
        digits.append(digit | (0x80 if length else 0))
        if not length:
            return digits


class Wakeup:
    """Interrupts a waiting selector from any thread."""

    def __init__(self) -> None:
        self._in, self._out = socket.socketpair()
        self._is_set = False
        self._in.setblocking(False)
        self._out.setblocking(False)

    def fileno(self) -> int:
        return self._out.fileno()

    def set(self) -> None:
        if self._is_set:
            return
        self._is_set = True
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody is there to wake
            self._in.send(b"\0")

    def clear(self) -> None:
        """Call it before looking for what it was set for: what is set from here on wakes again."""
        # In this order: what is set in between finds it set already, sends nothing, and is looked for later.
        # The other way round its byte would be taken here, and nothing would ever be sent again.
        with contextlib.suppress(BlockingIOError):
            self._out.recv(4096)
        self._is_set = False

    def close(self) -> None:
        self._in.close()
        self._out.close()


def serve(
    client: BoundedClient,
    wakeup: Wakeup,
    *,
    before_writing: Callable[[], None],
    answered: Callable[[], bool],
    closed: Callable[[], bool],
) -> None:
    """Return once the connection has ended, or was ended because ``closed`` became true.

    ``before_writing`` may hand the client what it has gathered. Raises ``OSError`` when the broker has not
    ``answered`` in time, and ``ValueError`` when it sends what it may not.
    """
    sock = client.socket()
    if sock is None:
        return
    if isinstance(sock, socket.socket):  # else each acknowledgement waits for the other side's delayed one
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answer_until_s = time.monotonic() + CONNECT_TIMEOUT_S
    goodbye_until_s: float | None = None
    look_at_s = 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(wakeup, selectors.EVENT_READ)
        watched = selectors.EVENT_READ
        selector.register(sock, watched)
        readable = False
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
            readable |= isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
            for key, mask in selector.select(0 if readable else _TICK_S):
                if key.fileobj is wakeup:
                    wakeup.clear()
                elif mask & selectors.EVENT_READ:
                    readable = True
            was_readable = readable
            for _ in range(_READS_A_TURN):
                readable = readable and client.receive()
            before_writing()
            if client.want_write():
                client.loop_write()
            elif was_readable and not client.is_amid_packet:
                _acknowledge_now(sock)
            if now_s >= look_at_s:
                client.loop_misc()
                look_at_s = now_s + _TICK_S


def _acknowledge_now(sock: object) -> None:
    """What the broker says next may wait for this: Mosquitto, as installed, leaves Nagle's algorithm on."""
    if _QUICKACK is not None and isinstance(sock, socket.socket):
        with contextlib.suppress(OSError):  # it may have ended
            sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
