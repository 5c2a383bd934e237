"""Retained messages on their way to the broker, so many at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

#: Published, not yet acknowledged: bounds what waits in memory, 16 blocks are 4 MiB.
_NUM_IN_FLIGHT: Final = 16
_ACK_TIMEOUT_S: Final = 20.0


class Delivery(Protocol):
    """One message on its way."""

    def wait(self, timeout_s: float) -> None:
        """Return once the broker has acknowledged it; raise ``TransientError`` when it has not."""
        ...


class Bus(Protocol):
    """The MQTT session as the publisher needs it (edgeloop.mqtt.MqttSession).

    Handlers are called on a thread of the session. ``publish`` raises ``TransientError`` while there is no
    connection.
    """

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> Delivery: ...

    def subscribe(self, topic: str, handler: Callable[[str, bytes], None], *, qos: int = 1) -> None: ...

    def unsubscribe(self, topic: str) -> None: ...


def deliver(bus: Bus, messages: Iterable[tuple[str, bytes]]) -> None:
    """Publish retained and return when all are acknowledged. Raises ``TransientError``."""
    waiting: deque[Delivery] = deque()
    for topic, payload in messages:
        if len(waiting) >= _NUM_IN_FLIGHT:
            waiting.popleft().wait(_ACK_TIMEOUT_S)
        waiting.append(bus.publish(topic, payload, qos=1, retain=True))
    for delivery in waiting:
        delivery.wait(_ACK_TIMEOUT_S)
