"""The embedded broker as a fleet needs it: big retained blocks, many clients, and coming back by itself."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from machine import free_port

from cloud.broker import EmbeddedBroker
from edgeloop.artifact import BLOCK_SIZE_BYTES
from edgeloop.backoff import Backoff
from edgeloop.errors import ConfigError
from edgeloop.mqtt import MqttSession

WAIT_S = 60.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    # Not any that the system gives: while it is down, that may be given to another.
    broker = EmbeddedBroker(host="127.0.0.1", port=free_port(), work_dir=tmp_path, backoff=Backoff(0.05, 0.2))
    broker.start()
    yield broker
    broker.stop()


@contextmanager
def connect(broker: EmbeddedBroker, name: str) -> Iterator[MqttSession]:
    with MqttSession("127.0.0.1", broker.port, name, backoff=Backoff(0.05, 0.2)) as session:
        assert session.wait_connected(WAIT_S)
        yield session


def await_that(condition: object, timeout_s: float = WAIT_S) -> bool:
    assert callable(condition)
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_blocks_of_full_size_reach_a_dozen_clients_four_at_a_time(broker: EmbeddedBroker) -> None:
    blocks = [os.urandom(BLOCK_SIZE_BYTES) for _ in range(8)]
    with connect(broker, "cloud") as cloud:
        for number, block in enumerate(blocks):
            cloud.publish(f"t/{number}", block, retain=True).wait(WAIT_S)

    def fetch(name: str, found: dict[str, bool]) -> None:
        heard: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        with connect(broker, name) as session:
            got: dict[str, bytes] = {}
            for first in range(0, len(blocks), 4):
                for number in range(first, first + 4):
                    session.subscribe(f"t/{number}", lambda topic, payload: heard.put((topic, payload)))
                while len(got) < first + 4:
                    topic, payload = heard.get(timeout=WAIT_S)
                    got[topic] = payload
                for number in range(first, first + 4):
                    session.unsubscribe(f"t/{number}")
            found[name] = [got[f"t/{number}"] for number in range(len(blocks))] == blocks

    found: dict[str, bool] = {}
    threads = [threading.Thread(target=fetch, args=(f"gw-{n}", found)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)
    assert found == {f"gw-{n}": True for n in range(12)}


def test_a_client_hears_only_of_what_it_subscribed_to_itself(broker: EmbeddedBroker) -> None:
    """amqtt as it comes hands every newcomer the retained messages of everybody's subscriptions."""
    heard: list[str] = []
    with connect(broker, "one") as one:
        one.publish("private/one", b"x", retain=True).wait(WAIT_S)
        one.subscribe("private/one", lambda topic, _: None)
        one.publish("public", b"y", retain=True).wait(WAIT_S)
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        two = paho.Client(CallbackAPIVersion.VERSION2, client_id="two", clean_session=False)
        two.on_message = lambda client, userdata, message: heard.append(message.topic)
        two.connect("127.0.0.1", broker.port)
        two.loop_start()
        assert await_that(two.is_connected)
        two.subscribe("public", 1)
        assert await_that(lambda: bool(heard))
        time.sleep(0.3)
        two.disconnect()
        two.loop_stop()
    assert heard == ["public"]


def test_an_empty_payload_clears_what_was_retained(broker: EmbeddedBroker) -> None:
    heard: list[bytes] = []
    with connect(broker, "one") as one:
        one.publish("t", b"old", retain=True).wait(WAIT_S)
        one.publish("t", b"", retain=True).wait(WAIT_S)
        one.publish("u", b"marker", retain=True).wait(WAIT_S)
        with connect(broker, "two") as two:
            two.subscribe("t", lambda _, payload: heard.append(payload))
            two.subscribe("u", lambda _, payload: heard.append(payload))
            assert await_that(lambda: b"marker" in heard)
    assert heard == [b"marker"]


def test_the_will_of_a_client_that_vanishes_is_sent_and_retained(broker: EmbeddedBroker) -> None:
    heard: list[bytes] = []
    script = (
        "import sys, time\nfrom edgeloop.mqtt import MqttSession, Will\n"
        "will = Will(topic='p', payload=b'offline')\n"
        f"s = MqttSession('127.0.0.1', {broker.port}, 'gw', will=will).start()\n"
        "assert s.wait_connected(60)\ns.publish('p', b'online', retain=True).wait(60)\n"
        "print('up', flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as gateway:
        try:
            assert gateway.stdout is not None
            assert gateway.stdout.readline() == b"up\n"
            with connect(broker, "cloud") as cloud:
                cloud.subscribe("p", lambda _, payload: heard.append(payload))
                assert await_that(lambda: heard == [b"online"])
                gateway.kill()
                assert await_that(lambda: heard[-1] == b"offline")
        finally:
            gateway.kill()
    with connect(broker, "late") as late:
        late.subscribe("p", lambda _, payload: heard.append(payload))
        assert await_that(lambda: len(heard) == 3)
    assert heard == [b"online", b"offline", b"offline"]


def test_it_comes_back_on_the_same_port_with_nothing_kept(broker: EmbeddedBroker) -> None:
    port, pid = broker.port, broker.pid
    assert pid is not None
    heard: list[bytes] = []
    with connect(broker, "cloud") as cloud:
        cloud.publish("t", b"before", retain=True).wait(WAIT_S)
        states: list[bool] = []
        cloud.on_state(states.append)
        cloud.subscribe("t", lambda _, payload: heard.append(payload))
        assert await_that(lambda: heard == [b"before"])
        os.kill(pid, signal.SIGKILL)
        assert await_that(lambda: states == [False, True])
        cloud.publish("t", b"after", retain=True).wait(WAIT_S)
        assert await_that(lambda: b"after" in heard)
    # What is published while the subscription is being made may come for both reasons.
    assert heard[0] == b"before"
    assert set(heard[1:]) == {b"after"}
    assert (broker.port, broker.num_restarts) == (port, 1)


def test_it_ends_with_its_supervisor_even_when_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom cloud.broker import EmbeddedBroker\n"
        "broker = EmbeddedBroker(host='127.0.0.1', port=0, work_dir=Path(sys.argv[1]))\n"
        "broker.start()\nprint(broker.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert is_alive(pid)
        supervisor.kill()
    assert await_that(lambda: not is_alive(pid))


def test_a_port_in_use_is_said_with_the_flag_that_changes_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        broker = EmbeddedBroker(host="127.0.0.1", port=port, work_dir=tmp_path)
        with pytest.raises(ConfigError) as caught:
            broker.start()
    assert caught.value.code == "port-in-use"
    assert str(port) in caught.value.message
    assert "--broker-port" in caught.value.message


def test_an_address_that_is_not_ours_is_said(tmp_path: Path) -> None:
    broker = EmbeddedBroker(host="192.0.2.1", port=0, work_dir=tmp_path)
    with pytest.raises(ConfigError) as caught:
        broker.start()
    assert caught.value.code == "port-unavailable"


def test_stopping_twice_is_harmless_and_leaves_no_process(broker: EmbeddedBroker) -> None:
    pid = broker.pid
    assert pid is not None
    broker.stop()
    broker.stop()
    assert not is_alive(pid)
