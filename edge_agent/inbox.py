"""What the owner thread's inbox holds, and the updater's way to the broker that fills it.

Rules:
- Nothing here acts on what arrives. A message becomes a value in the inbox, and the thread that owns the
  agent's state decides.
- What waits there is bounded: a broker that sends faster than this device decides costs it no more memory.
  What comes beyond is dropped, as lost messages are harmless, and once the inbox is empty everything is
  subscribed to again, so that what is retained comes again.
"""

import logging
import threading
from collections.abc import Hashable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from edge_agent import fetch
from edge_agent.selftest import SelfTestProcess, SelfTestResult
from edge_agent.update_state import Slot
from edgeloop import topics
from edgeloop.errors import TransientError
from edgeloop.v1 import deployment_pb2, fleet_service_pb2

if TYPE_CHECKING:
    from edgeloop.mqtt import MqttSession

logger = logging.getLogger(__name__)

# Sixteen workloads that fetch, each with four blocks under way, stay below the half of it.
MAX_WAITING_BYTES = 32 * 1024 * 1024
# What a message weighs beside its payload.
_MESSAGE_BYTES = 512
# Between two times of asking for everything again.
AGAIN_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MessageReceived:
    topic: str
    payload: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerChanged:
    connected: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTestEnded:
    process: SelfTestProcess
    result: SelfTestResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    response: fleet_service_pb2.RegisterResponse


@dataclass(frozen=True, kw_only=True, slots=True)
class StopAsked:
    reason: str


Post = MessageReceived | BrokerChanged | SelfTestEnded | Registered | StopAsked


class BrokerWire:
    """The updater's port to the broker. Works before there is a session: it remembers what to subscribe."""

    def __init__(self, device_id: str, inbox: "SimpleQueue[Post]") -> None:
        self._device_id = device_id
        self._inbox = inbox
        self._session: MqttSession | None = None
        self._early: list[str] = []
        # Two workloads may fetch the same bytes: the last one that leaves a topic unsubscribes it.
        self._users: dict[str, set[Hashable]] = {}
        # Counted up by the session's thread, down by the owner's.
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._num_dropped = 0
        self._again_at_s = float("-inf")

    def attach(self, session: "MqttSession") -> None:
        self._session = session
        for topic in self._early:
            self._subscribe(topic)
        self._early.clear()

    def _post(self, topic: str, payload: bytes) -> None:
        with self._lock:
            if self._waiting_bytes + len(payload) > MAX_WAITING_BYTES:
                self._num_dropped += 1
                return
            self._waiting_bytes += len(payload) + _MESSAGE_BYTES
        self._inbox.put(MessageReceived(topic=topic, payload=payload))

    def taken(self, payload: bytes) -> None:
        """The owner has this message out of the inbox."""
        with self._lock:
            self._waiting_bytes -= len(payload) + _MESSAGE_BYTES

    def on_tick(self, now_s: float) -> None:
        """Asks again for what was dropped, by the monotonic clock."""
        with self._lock:
            if not self._num_dropped or self._waiting_bytes or now_s < self._again_at_s:
                return
            num_dropped, self._num_dropped = self._num_dropped, 0
        self._again_at_s = now_s + AGAIN_S
        logger.warning(
            "%d messages came faster than they could be looked at and were dropped; what the broker retains "
            "is asked for again",
            num_dropped,
        )
        for topic in list(self._users):
            self._subscribe(topic)

    def port(self) -> "WirePort":
        """For one workload: what it unsubscribes goes on coming for the others."""
        return WirePort(self)

    def subscribe(self, topic: str, user: Hashable = None) -> None:
        """Each time anew, so that what is retained comes again."""
        self._users.setdefault(topic, set()).add(user)
        self._subscribe(topic)

    def _subscribe(self, topic: str) -> None:
        if self._session is None:
            self._early.append(topic)
        else:
            self._session.subscribe(topic, self._post)

    def unsubscribe(self, topic: str, user: Hashable = None) -> None:
        users = self._users.get(topic, set())
        users.discard(user)
        if users:
            return
        self._users.pop(topic, None)
        if self._session is None:
            self._early = [early for early in self._early if early != topic]
        else:
            self._session.unsubscribe(topic)

    def request(self, slot: Slot, request: fetch.Request) -> None:
        message = deployment_pb2.BlockRequest(
            device_id=self._device_id,
            digest=request.digest or slot.digest,
            manifest_digest=slot.manifest_digest,
            manifest=request.manifest,
            blocks=request.blocks,
        )
        self.publish(topics.requests(self._device_id), message.SerializeToString(), retain=False)

    @property
    def fed_at_s(self) -> float | None:
        """When bytes of a message that is not whole yet came last, by the monotonic clock; else None."""
        return self._session.fed_at_s if self._session is not None else None

    def request_metadata(self) -> None:
        """The current TUF metadata, once more."""
        message = deployment_pb2.BlockRequest(device_id=self._device_id, tuf=True)
        self.publish(topics.requests(self._device_id), message.SerializeToString(), retain=False)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if self._session is None:
            return
        try:
            self._session.publish(topic, payload, retain=retain)
        except TransientError as error:
            # The fetch asks again by its timer, presence is said at the next connect.
            logger.debug("not published topic=%s reason=%s", topic, error)


class WirePort:
    """One user's way to the wire that several share."""

    def __init__(self, wire: BrokerWire) -> None:
        self._wire = wire

    def subscribe(self, topic: str) -> None:
        self._wire.subscribe(topic, self)

    def unsubscribe(self, topic: str) -> None:
        self._wire.unsubscribe(topic, self)

    def request(self, slot: Slot, request: fetch.Request) -> None:
        self._wire.request(slot, request)

    @property
    def fed_at_s(self) -> float | None:
        return self._wire.fed_at_s

    def request_metadata(self) -> None:
        self._wire.request_metadata()
