"""Which devices are there, as their last will and testament on the broker says.

MQTT's thread notes, the control loop writes: only the newest word of each device is kept in between, so that
a device that comes and goes quickly costs one write.
"""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from edgeloop import topics
from edgeloop.errors import RejectedError

logger = logging.getLogger(__name__)

#: Words of devices that never registered may wait here too; more than this many are not kept.
_MAX_PENDING = 100_000


class PresenceStore(Protocol):
    """What of the store is used here."""

    def set_presence(self, device_id: str, connected: bool, now_s: float) -> bool: ...
    def device_ids(self) -> set[str]: ...


class PresenceBook:
    """``forget_on_connect`` is for a broker that forgets with every restart: nobody is there until heard."""

    def __init__(self, store: PresenceStore, *, forget_on_connect: bool) -> None:
        self._store = store
        self._forget_on_connect = forget_on_connect
        self._lock = threading.Lock()
        self._pending: dict[str, bool] = {}
        self._forget = False

    def on_connected(self, connected: bool) -> None:
        """The session with the broker came up or went down."""
        if connected and self._forget_on_connect:
            with self._lock:
                self._forget = True
                self._pending.clear()

    def heard(self, topic: str, payload: bytes) -> None:
        """A message on a presence topic."""
        try:
            device_id = topics.device_of(topic)
        except RejectedError:
            return
        if payload not in (topics.ONLINE, topics.OFFLINE):
            return
        with self._lock:
            if len(self._pending) < _MAX_PENDING or device_id in self._pending:
                self._pending[device_id] = payload == topics.ONLINE

    def write(self, now_s: float) -> bool:
        """Write what was heard since the last call; whether there was anything."""
        with self._lock:
            pending, self._pending = self._pending, {}
            forget, self._forget = self._forget, False
        if forget:
            pending = {**dict.fromkeys(self._store.device_ids(), False), **pending}
        for device_id, connected in sorted(pending.items()):
            self._store.set_presence(device_id, connected, now_s)
        return bool(pending)
