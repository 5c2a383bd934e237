"""What the MQTT session says on the wire, and what it makes of a broker that sends slowly or oddly."""

from __future__ import annotations

import queue
import random
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from machine import wait_until

from edgeloop.backoff import Backoff
from edgeloop.mqtt import MqttSession
from edgeloop.network_loop import Wakeup
from edgeloop.packets import PacketBuffer

CONNECT, PUBLISH, PUBACK, PUBREC = 0x10, 0x30, 0x40, 0x50
SUBSCRIBE, UNSUBSCRIBE, PINGREQ = 0x80, 0xA0, 0xC0
CONNACK = b"\x20\x02\0\0"


class Peer:
    """The broker's end of one connection, byte by byte in the hands of a test."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(60)
        self.port = int(self._server.getsockname()[1])
        self.heard: queue.Queue[tuple[int, bytes]] = queue.Queue()
        self.sock: socket.socket | None = None

    def accept(self) -> None:
        self.sock, _ = self._server.accept()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._hear, args=(self.sock,), daemon=True).start()
        assert self.next(CONNECT)
        self.send(CONNACK)

    def _hear(self, sock: socket.socket) -> None:
        buffer = PacketBuffer(1 << 20)
        try:
            while num_bytes := sock.recv_into(buffer.room()):
                buffer.add(num_bytes)
                while (packet := buffer.next()) is not None:
                    self.heard.put((packet.kind, bytes(packet.body)))
        except OSError:
            pass

    def next(self, kind: int) -> bytes:
        """The body of the next packet, which must be of this kind."""
        found, body = self.heard.get(timeout=60)
        assert found == kind, hex(found)
        return body

    def send(self, data: bytes) -> None:
        assert self.sock is not None
        self.sock.sendall(data)

    def close(self) -> None:
        self._server.close()
        if self.sock is not None:
            self.sock.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    one = Peer()
    yield one
    one.close()


def session_with(peer: Peer, **options: int) -> MqttSession:
    return MqttSession(
        "127.0.0.1", peer.port, "agent", backoff=Backoff(0.05, 0.1, random.Random(1)), **options
    )


def topics_in(body: bytes, *, with_qos: bool) -> list[tuple[str, int]]:
    rest, found = body[2:], []
    while rest:
        end = 2 + int.from_bytes(rest[:2])
        found.append((rest[2:end].decode(), rest[end] if with_qos else 0))
        rest = rest[end + with_qos :]
    return found


def message(topic: bytes, payload: bytes, *, qos: int = 0, packet_id: int = 7) -> bytes:
    body = len(topic).to_bytes(2) + topic + (packet_id.to_bytes(2) if qos else b"") + payload
    length = len(body)
    assert length < 128 * 128 * 128
    digits = bytes((length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14))
    return bytes((PUBLISH | qos << 1,)) + digits + body


def test_what_a_handler_subscribes_and_leaves_goes_as_one_packet_of_each_kind(peer: Peer) -> None:
    def take(topic: str, _payload: bytes) -> None:
        session.unsubscribe(topic)
        session.subscribe(topic + "/next", take, qos=0)

    session = session_with(peer)
    for name in ("a", "b"):
        session.subscribe(name, take, qos=0)
    with session:
        peer.accept()
        assert topics_in(peer.next(SUBSCRIBE), with_qos=True) == [("a", 0), ("b", 0)]
        peer.send(message(b"a", b"1") + message(b"b", b"2"))
        assert topics_in(peer.next(UNSUBSCRIBE), with_qos=False) == [("a", 0), ("b", 0)]
        assert topics_in(peer.next(SUBSCRIBE), with_qos=True) == [("a/next", 0), ("b/next", 0)]


def test_the_last_word_on_a_topic_is_what_the_broker_hears_and_before_a_message(peer: Peer) -> None:
    session = session_with(peer)

    def act(_topic: str, _payload: bytes) -> None:
        session.subscribe("left", act)
        session.unsubscribe("left")
        session.unsubscribe("kept")
        session.subscribe("kept", act)
        session.publish("said", b"", qos=0)

    session.subscribe("kept", act)
    with session:
        peer.accept()
        peer.next(SUBSCRIBE)
        peer.send(message(b"kept", b""))
        assert topics_in(peer.next(UNSUBSCRIBE), with_qos=False) == [("left", 0)]
        assert topics_in(peer.next(SUBSCRIBE), with_qos=True) == [("kept", 1)]
        assert peer.next(PUBLISH) == b"\0\4said"


def test_messages_come_through_whatever_the_pieces_and_are_acknowledged(peer: Peer) -> None:
    inbox: queue.Queue[tuple[str, bytes]] = queue.Queue()
    session = session_with(peer)
    session.subscribe("t", lambda topic, payload: inbox.put((topic, payload)))
    with session:
        peer.accept()
        peer.next(SUBSCRIBE)
        for byte in b"\x90\3\0\1\1" + message(b"t", b"first", qos=1):
            peer.send(bytes((byte,)))
        assert inbox.get(timeout=60) == ("t", b"first")
        assert peer.next(PUBACK) == b"\0\7"
        large = random.Random(1).randbytes(1_500_000)
        peer.send(message(b"t", large) + message(b"t", b"last", qos=1, packet_id=9))
        assert inbox.get(timeout=60) == ("t", large)
        assert inbox.get(timeout=60) == ("t", b"last")
        assert peer.next(PUBACK) == b"\0\x09"
        # One of QoS 2, which is paho's to answer.
        peer.send(message(b"t", b"twice", qos=2, packet_id=11))
        assert peer.next(PUBREC) == b"\0\x0b"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"\x30\xff\xff\xff\x7f", "more than any of ours"),
        (b"\x30\xff\xff\xff\xff", "length"),
        (b"\x30\x05\xff\xffabc", "none of MQTT"),
    ],
)
def test_a_broker_that_breaks_the_rules_is_left_and_found_again(
    peer: Peer, caplog: pytest.LogCaptureFixture, sent: bytes, said: str
) -> None:
    inbox: queue.Queue[bytes] = queue.Queue()
    session = session_with(peer)
    session.subscribe("t", lambda _topic, payload: inbox.put(payload))
    with session:
        peer.accept()
        peer.next(SUBSCRIBE)
        peer.send(sent)
        peer.accept()
        assert topics_in(peer.next(SUBSCRIBE), with_qos=True) == [("t", 1)]
        peer.send(message(b"t", b"again"))
        assert inbox.get(timeout=60) == b"again"
    assert said in caplog.text


def test_a_block_on_a_slow_link_keeps_the_connection_though_pings_go_unanswered(peer: Peer) -> None:
    inbox: queue.Queue[bytes] = queue.Queue()
    session = session_with(peer, keepalive_s=2)
    session.subscribe("t", lambda _topic, payload: inbox.put(payload))
    with session:
        peer.accept()
        peer.next(SUBSCRIBE)
        data = message(b"t", b"x" * 50)
        begun_s = time.monotonic()
        for byte in data[:-1]:  # more than twice the keepalive; the answer to a ping would come after it
            peer.send(bytes((byte,)))
            time.sleep(5.0 / len(data))
        # It can be told that something is on its way, and that nothing is.
        assert session.fed_at_s is not None
        assert begun_s + 4.0 < session.fed_at_s
        peer.send(data[-1:])
        assert inbox.get(timeout=60) == b"x" * 50
        wait_until(lambda: session.fed_at_s is None)
        assert session.connected
        peer.next(PINGREQ)


def test_a_wakeup_that_comes_while_the_last_one_is_taken_does_not_silence_those_after_it() -> None:
    wakeup = Wakeup()
    taken = wakeup._out

    class Amid:
        """Another thread publishes just as what came before is read."""

        def recv(self, size: int) -> bytes:
            wakeup.set()
            return taken.recv(size)

        def fileno(self) -> int:
            return taken.fileno()

    wakeup.set()
    wakeup._out = Amid()  # type: ignore[assignment]
    wakeup.clear()
    wakeup.set()
    assert select.select([taken], [], [], 0)[0]
    wakeup._out = taken
    wakeup.close()
