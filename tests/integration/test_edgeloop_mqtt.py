"""The MQTT session against a real broker."""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from machine import free_port, wait_until

from edgeloop import topics
from edgeloop.backoff import Backoff
from edgeloop.errors import TransientError
from edgeloop.mqtt import MqttSession, Will

if TYPE_CHECKING:
    from tests.conftest import Mosquitto

pytestmark = pytest.mark.mosquitto

Inbox = queue.Queue[tuple[str, bytes]]


def post_to(inbox: Inbox) -> Callable[[str, bytes], None]:
    return lambda topic, payload: inbox.put((topic, payload))


def eager() -> Backoff:
    return Backoff(0.05, 0.2, random.Random(1))


@pytest.fixture
def sessions(mosquitto: Mosquitto) -> Iterator[Callable[..., MqttSession]]:
    """Makes started, connected sessions and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def make(client_id: str, **options: object) -> MqttSession:
            session = MqttSession(mosquitto.host, mosquitto.port, client_id, backoff=eager(), **options)
            stack.callback(session.close)
            session.start()
            assert session.wait_connected(60), session.last_error
            return session

        yield make


def test_acknowledged_message_reaches_exact_and_wildcard_subscribers(sessions):
    exact, wild = Inbox(), Inbox()
    receiver, sender = sessions("receiver"), sessions("sender")
    receiver.subscribe(topics.requests("gateway-1"), post_to(exact))
    receiver.subscribe(topics.ALL_REQUESTS, post_to(wild))
    barrier(receiver)

    for device in ("gateway-1", "gateway-2"):
        sender.publish(topics.requests(device), device.encode()).wait(60)

    # The broker may deliver once for each matching subscription; the exact one has the say.
    assert exact.get(timeout=60) == (topics.requests("gateway-1"), b"gateway-1")
    assert wild.get(timeout=60) == (topics.requests("gateway-2"), b"gateway-2")
    assert wild.empty()


def test_retained_blocks_arrive_whole_by_their_exact_topics(sessions):
    digest = "ab" * 32
    blocks = {n: random.Random(n).randbytes(256 * 1024) for n in range(8)}
    sender, receiver = sessions("sender"), sessions("receiver")
    for publication in [
        sender.publish(topics.block(digest, n), data, retain=True) for n, data in blocks.items()
    ]:
        publication.wait(60)

    inbox = Inbox()
    for n in blocks:
        receiver.subscribe(topics.block(digest, n), post_to(inbox))
    received = dict(inbox.get(timeout=60) for _ in blocks)
    assert {topics.block_of(topic)[1]: data for topic, data in received.items()} == blocks


def test_subscribing_again_brings_what_is_retained_once_more(sessions):
    inbox = Inbox()
    session = sessions("agent")
    session.publish("t/1", b"kept", retain=True).wait(60)
    for _ in range(2):
        session.subscribe("t/1", post_to(inbox))
        assert inbox.get(timeout=60) == ("t/1", b"kept")
        session.unsubscribe("t/1")


def test_unsubscribed_topic_is_silent(sessions):
    inbox = Inbox()
    session = sessions("agent")
    session.subscribe("t/1", post_to(inbox))
    session.unsubscribe("t/1")
    session.publish("t/1", b"late").wait(60)
    barrier(session)
    assert inbox.empty()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_broker_restart_is_survived_with_subscriptions(mosquitto, sessions, how):
    states: queue.Queue[bool] = queue.Queue()
    inbox = Inbox()
    session = MqttSession(mosquitto.host, mosquitto.port, "agent", backoff=eager())
    session.on_state(states.put)
    session.subscribe("t/1", post_to(inbox))
    with session:
        assert states.get(timeout=60) is True
        getattr(mosquitto, how)()
        assert states.get(timeout=60) is False
        assert not session.connected
        assert session.wait_connected(0.3) is False

        mosquitto.start()
        assert states.get(timeout=60) is True
        barrier(session)  # that it is connected is told as its subscriptions go out
        sessions("sender").publish("t/1", b"again").wait(60)
        assert inbox.get(timeout=60) == ("t/1", b"again")
    assert states.get(timeout=60) is False
    assert states.empty()


def test_subscription_made_while_the_broker_is_away_works_once_it_is_back(mosquitto, sessions):
    session = sessions("agent")
    mosquitto.kill()
    wait_until(lambda: not session.connected)
    inbox = Inbox()
    session.subscribe("t/1", post_to(inbox))
    mosquitto.start()
    assert session.wait_connected(60)
    session.publish("t/1", b"here").wait(60)
    assert inbox.get(timeout=60) == ("t/1", b"here")


def test_publishing_without_a_connection_is_refused_at_once(mosquitto, sessions):
    session = sessions("agent")
    mosquitto.kill()
    wait_until(lambda: not session.connected)
    with pytest.raises(TransientError) as caught:
        session.publish("t/1", b"x")
    assert caught.value.code == "mqtt-not-connected"


def test_message_that_a_dead_broker_never_acknowledged_is_reported_lost(mosquitto, sessions):
    session = sessions("agent")
    mosquitto.freeze()
    publication = session.publish("t/1", b"x")
    with pytest.raises(TransientError) as caught:
        publication.wait(0.2)
    assert caught.value.code == "mqtt-timeout"
    mosquitto.kill()
    with pytest.raises(TransientError) as caught:
        publication.wait(60)
    assert caught.value.code == "mqtt-lost"


def test_no_more_than_the_limit_is_on_its_way(mosquitto, sessions):
    session = sessions("agent", max_queued=5)
    mosquitto.freeze()
    for _ in range(5):
        session.publish("t/1", b"x")
    with pytest.raises(TransientError) as caught:
        session.publish("t/1", b"x")
    assert caught.value.code == "mqtt-queue-full"


def test_more_messages_than_are_in_flight_at_once_are_all_acknowledged_in_order(sessions):
    inbox = Inbox()
    session = sessions("agent", max_inflight=3)
    session.subscribe("t/1", post_to(inbox))
    publications = [session.publish("t/1", str(n).encode()) for n in range(150)]
    for publication in publications:
        publication.wait(60)
    assert [inbox.get(timeout=60)[1] for _ in publications] == [str(n).encode() for n in range(150)]


def test_many_threads_may_publish(sessions):
    inbox = Inbox()
    session = sessions("agent")
    session.subscribe("t/+", post_to(inbox))
    failures: list[Exception] = []

    def publish(name: str) -> None:
        try:
            for n in range(100):
                session.publish(f"t/{name}", str(n).encode()).wait(60)
        except TransientError as error:
            failures.append(error)

    threads = [threading.Thread(target=publish, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    received = [inbox.get(timeout=60) for _ in range(400)]
    for name in range(4):
        assert [payload for topic, payload in received if topic == f"t/{name}"] == [
            str(n).encode() for n in range(100)
        ]


def test_outbox_that_publishes_until_acknowledged_loses_nothing_to_a_dying_broker(mosquitto, sessions):
    received: set[bytes] = set()
    receiver = sessions("receiver")
    receiver.subscribe("t/1", lambda topic, payload: received.add(payload))
    sender = sessions("sender")
    outbox = [str(n).encode() for n in range(60)]
    for n, payload in enumerate(outbox):
        if n in (15, 30, 45):
            mosquitto.kill()
            mosquitto.start()
        until_s = time.monotonic() + 60
        while payload not in received:  # the receiver may reconnect later, and the broker keeps nothing
            assert time.monotonic() < until_s
            try:
                sender.publish("t/1", payload).wait(60)
            except TransientError:
                time.sleep(0.02)
            else:
                with contextlib.suppress(AssertionError):
                    wait_until(lambda payload=payload: payload in received, timeout_s=0.2)
    assert received == set(outbox)


def test_connection_that_went_silent_is_noticed_by_keepalive(mosquitto, sessions):
    session = sessions("agent", keepalive_s=1)
    mosquitto.freeze()
    # By itself TCP would find nothing wrong for a quarter of an hour.
    wait_until(lambda: not session.connected, timeout_s=30)
    mosquitto.thaw()
    assert session.wait_connected(60)


def test_listener_that_never_answers_is_given_up():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with MqttSession("127.0.0.1", listener.getsockname()[1], "agent", backoff=eager()) as session:
            wait_until(lambda: "does not answer" in session.last_error)


def test_will_is_published_when_the_connection_breaks_and_when_it_is_closed(mosquitto, sessions):
    inbox = Inbox()
    watcher = sessions("watcher")
    watcher.subscribe(topics.ALL_PRESENCE, post_to(inbox))
    barrier(watcher)
    topic = topics.presence("gateway-1")
    agent = sessions("agent", will=Will(topic=topic, payload=topics.OFFLINE))
    agent.publish(topic, topics.ONLINE, retain=True).wait(60)
    assert inbox.get(timeout=60) == (topic, topics.ONLINE)
    agent.close()
    assert inbox.get(timeout=60) == (topic, topics.OFFLINE)

    agent = sessions("agent", will=Will(topic=topic, payload=topics.OFFLINE))
    agent.publish(topic, topics.ONLINE, retain=True).wait(60)
    assert inbox.get(timeout=60) == (topic, topics.ONLINE)
    usurper = sessions("agent")  # the broker ends the older connection of the same client id
    assert inbox.get(timeout=60) == (topic, topics.OFFLINE)
    usurper.close()


def test_broken_handler_costs_neither_connection_nor_later_messages(sessions, caplog):
    inbox = Inbox()
    session = sessions("agent")

    def broken(topic: str, payload: bytes) -> None:
        raise KeyError("handler")

    session.subscribe("t/bad", broken)
    session.subscribe("t/good", post_to(inbox))
    session.publish("t/bad", b"1").wait(60)
    session.publish("t/good", b"2").wait(60)
    assert inbox.get(timeout=60) == ("t/good", b"2")
    assert session.connected
    assert "t/bad" in caplog.text


def test_refused_client_says_why_and_slows_down(mosquitto, caplog):
    mosquitto.stop()
    mosquitto.settings = "allow_anonymous false"
    mosquitto.start()
    backoff = Backoff(0.01, 30.0, random.Random(3))
    with (
        caplog.at_level(logging.DEBUG, "edgeloop.mqtt"),
        MqttSession(mosquitto.host, mosquitto.port, "agent", backoff=backoff) as session,
    ):
        wait_until(lambda: session.last_error)
        assert "Not authorized" in session.last_error
        assert backoff._ceiling_s == 30.0
    warnings = [record for record in of("agent", caplog) if record.levelno >= logging.WARNING]
    assert len(warnings) == 1


def test_unreachable_broker_is_said_once_and_closing_does_not_wait(caplog):
    session = MqttSession("127.0.0.1", free_port(), "agent", backoff=Backoff(0.01, 0.02))
    with caplog.at_level(logging.DEBUG, "edgeloop.mqtt"), session:
        wait_until(lambda: len(of("agent", caplog)) >= 5)
    levels = [record.levelno for record in of("agent", caplog)]
    assert levels[0] == logging.WARNING
    assert set(levels[1:]) == {logging.DEBUG}

    slow = MqttSession("127.0.0.1", free_port(), "agent", backoff=Backoff(600, 600)).start()
    wait_until(lambda: slow.last_error)
    # Its next try is minutes away, and no longer than a minute is waited for its thread.
    slow.close(60)
    assert not slow._thread.is_alive()


def test_closing_twice_or_before_the_start_is_harmless(mosquitto):
    MqttSession(mosquitto.host, mosquitto.port, "never-started").close()
    session = MqttSession(mosquitto.host, mosquitto.port, "agent").start()
    session.close()
    session.close()


def test_waiting_on_the_sessions_own_thread_is_a_programming_error(sessions):
    seen: queue.Queue[str] = queue.Queue()
    session = sessions("agent")

    def wait_inside(topic: str, payload: bytes) -> None:
        try:
            session.publish("t/2", b"x").wait(1)
        except RuntimeError as error:
            seen.put(str(error))

    session.subscribe("t/1", wait_inside)
    session.publish("t/1", b"x").wait(60)
    assert "own thread" in seen.get(timeout=60)


def of(client_id: str, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was said of a client that cannot reach its broker, without the words of other tests' threads."""
    return [record for record in list(caplog.records) if f" as {client_id}: " in record.getMessage()]


def barrier(session: MqttSession) -> None:
    """Return once the broker has handled what this session sent before."""
    passed = threading.Event()
    session.subscribe(f"barrier/{session.client_id}", lambda topic, payload: passed.set())
    session.publish(f"barrier/{session.client_id}", b"").wait(60)
    assert passed.wait(60)


def test_a_message_beyond_any_of_ours_is_not_taken_into_memory_and_the_session_recovers(sessions, caplog):
    sender, inbox = sessions("sender"), Inbox()
    receiver = sessions("receiver")
    sender.publish("edgeloop/v1/huge", b"\0" * (8 << 20), retain=True).wait(60)
    receiver.subscribe("edgeloop/v1/huge", post_to(inbox))
    until_s = time.monotonic() + 60
    while "more than any of ours" not in caplog.text:
        assert time.monotonic() < until_s, caplog.text
        time.sleep(0.01)
    sender.publish("edgeloop/v1/huge", b"", retain=True).wait(60)
    assert receiver.wait_connected(60)
    until_s = time.monotonic() + 60
    while inbox.empty():
        sender.publish("edgeloop/v1/huge", b"small").wait(60)
        assert time.monotonic() < until_s
        time.sleep(0.05)
    assert inbox.get()[1] == b"small"
