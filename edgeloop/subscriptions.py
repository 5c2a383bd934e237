"""Which topics a session listens to, who hears them, and what the broker is still to be told. No I/O.

Rules:
- The last word on a topic counts: what was subscribed and left between two times of telling is only left, and
  what was left and subscribed is only subscribed, which brings what is retained once more.
- An exact topic has the say over wildcards.
- Not safe from several threads: the session has the lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from paho.mqtt.client import topic_matches_sub

#: Called with the topic and the payload.
Handler = Callable[[str, bytes], None]

MAX_TOPICS_PER_PACKET: Final = 50


@dataclass(frozen=True, slots=True)
class Changes:
    """In pieces for a packet each; to be told in this order."""

    gone: list[list[str]]
    wanted: list[list[tuple[str, int]]]


class Subscriptions:
    def __init__(self) -> None:
        self._handlers: dict[str, tuple[Handler, int]] = {}
        # By topic: the QoS to subscribe with, None to unsubscribe.
        self._untold: dict[str, int | None] = {}

    def add(self, topic: str, handler: Handler, qos: int) -> None:
        """Again or anew. Raises ``ValueError`` for a filter that MQTT does not allow."""
        check_filter(topic)
        self._handlers[topic] = (handler, qos)
        self._untold[topic] = qos

    def remove(self, topic: str) -> bool:
        """Whether it was there."""
        if self._handlers.pop(topic, None) is None:
            return False
        self._untold[topic] = None
        return True

    def handlers_of(self, topic: str) -> list[Handler]:
        """Who hears a message under this topic."""
        exact = self._handlers.get(topic)
        if exact is not None:
            return [exact[0]]
        return [
            handler
            for pattern, (handler, _) in self._handlers.items()
            if ("+" in pattern or "#" in pattern) and topic_matches_sub(pattern, topic)
        ]

    def begin_again(self) -> None:
        """A new connection: the broker knows of nothing."""
        self._untold = {topic: qos for topic, (_, qos) in self._handlers.items()}

    def take_changes(self) -> Changes | None:
        """What the broker is to be told; None for nothing."""
        if not self._untold:
            return None
        gone = [topic for topic, qos in self._untold.items() if qos is None]
        wanted = [(topic, qos) for topic, qos in self._untold.items() if qos is not None]
        self._untold = {}
        size = MAX_TOPICS_PER_PACKET
        return Changes(
            [gone[start : start + size] for start in range(0, len(gone), size)],
            [wanted[start : start + size] for start in range(0, len(wanted), size)],
        )


def check_filter(topic: str) -> None:
    """Raises ``ValueError`` for what MQTT does not allow to be subscribed."""
    levels = topic.split("/")
    stray = any(("+" in level and level != "+") or ("#" in level and level != "#") for level in levels)
    if not 1 <= len(topic.encode()) <= 65_535 or stray or "#" in levels[:-1] or "\0" in topic:
        raise ValueError(f"{topic[:80]!r} is no MQTT topic filter")
