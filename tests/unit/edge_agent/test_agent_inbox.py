"""What waits for the agent's thread is bounded, and a flood costs nothing that does not come again."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue

import pytest

from edge_agent.inbox import AGAIN_S, MAX_WAITING_BYTES, BrokerWire, MessageReceived, Post


class Session:
    """A broker that sends what it retains at each subscription, and whatever else it likes."""

    def __init__(self, retained: dict[str, bytes]) -> None:
        self.retained = retained
        self.handler: Callable[[str, bytes], None] = lambda topic, payload: None

    def subscribe(self, topic: str, handler: Callable[[str, bytes], None]) -> None:
        self.handler = handler
        if topic in self.retained:
            handler(topic, self.retained[topic])

    def unsubscribe(self, topic: str) -> None:
        """Nothing to forget."""


class Device:
    def __init__(self, retained: dict[str, bytes]) -> None:
        self.inbox: SimpleQueue[Post] = SimpleQueue()
        self.wire = BrokerWire("gw-1", self.inbox)
        self.session = Session(retained)
        self.wire.attach(self.session)  # type: ignore[arg-type]  # all of a session that it uses

    def take(self) -> list[str]:
        """The topics of what waits."""
        topics = []
        while not self.inbox.empty():
            post = self.inbox.get()
            assert isinstance(post, MessageReceived)
            self.wire.taken(post.payload)
            topics.append(post.topic)
        return topics


@pytest.mark.parametrize("size_bytes", [0, 1, 2 * 1024 * 1024])
def test_a_flood_takes_no_more_memory_than_is_allowed(size_bytes: int) -> None:
    device = Device({})
    device.wire.subscribe("flood")
    payload = bytes(size_bytes)
    num_sent = 3 * MAX_WAITING_BYTES // (size_bytes + 512)
    for _ in range(num_sent):
        device.session.handler("flood", payload)
    assert 0 < device.inbox.qsize() * (size_bytes + 512) <= MAX_WAITING_BYTES + 512


def test_what_was_dropped_is_asked_for_again_once_there_is_room() -> None:
    device = Device({})
    device.wire.subscribe("flood")
    for _ in range(40):
        device.session.handler("flood", bytes(1024 * 1024))
    # Retained, and it came when there was no room.
    device.session.retained["deployment"] = bytes(1024 * 1024)
    device.wire.subscribe("deployment")
    device.wire.on_tick(0.0)
    assert "deployment" not in device.take()
    device.wire.on_tick(1.0)
    assert device.take() == ["deployment"]
    # Nothing is missing now, and a second flood is not answered by subscribing without end.
    device.wire.on_tick(2.0)
    assert device.take() == []
    for _ in range(40):
        device.session.handler("flood", bytes(1024 * 1024))
    device.take()
    device.wire.on_tick(3.0)
    assert device.take() == []
    device.wire.on_tick(1.0 + AGAIN_S)
    assert device.take() == ["deployment"]
