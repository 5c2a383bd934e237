"""Which devices are there, as their last will and testament on the broker says.

MQTT's thread notes, the control loop writes: only the newest word of each device is kept in between, so that
a device that comes and goes quickly costs one write.

A broker may lose what it retained, and a database may come back from a backup: then a device that went
meanwhile would be taken for one that is there, for good. So a device of which nothing is heard for
``UNHEARD_S`` after the session came up, neither its word on the broker nor a report, counts as away until it
is heard of.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final, Protocol

from cloud.domain.devices import Device
from edgeloop import topics
from edgeloop.errors import EdgeloopError, RejectedError

logger = logging.getLogger(__name__)

#: Words of devices that never registered may wait here too; more than this many are not kept.
_MAX_PENDING = 100_000
#: Longer than devices take to come back to a broker that was restarted, and to send some reports.
UNHEARD_S: Final = 180.0


class PresenceStore(Protocol):
    """What of the store is used here."""

    def set_presence(self, device_id: str, connected: bool, now_s: float) -> bool: ...
    def device_ids(self) -> set[str]: ...
    def devices(self) -> Sequence[Device]: ...


class PresenceBook:
    """``forget_on_connect`` is for a broker that forgets with every restart: nobody is there until heard."""

    def __init__(self, store: PresenceStore, *, forget_on_connect: bool) -> None:
        self._store = store
        self._forget_on_connect = forget_on_connect
        self._lock = threading.Lock()
        self._pending: dict[str, bool] = {}
        self._forget = False
        #: Of whom the broker spoke since the session came up; None once nobody is waited for.
        self._heard: set[str] | None = None
        self._up_since_s: float | None = None

    def on_connected(self, connected: bool) -> None:
        """The session with the broker came up or went down."""
        with self._lock:
            self._heard, self._up_since_s = (set() if connected else None), None
            if connected and self._forget_on_connect:
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
            if self._heard is not None and len(self._heard) < _MAX_PENDING:
                self._heard.add(device_id)

    def write(self, now_s: float) -> bool:
        """Write what was heard since the last call; whether there was anything.

        What could not be written, since the database is away, is written the next time.
        """
        with self._lock:
            pending, self._pending = self._pending, {}
            forget, self._forget = self._forget, False
            heard, since_s = self._due(now_s)
        try:
            if forget:
                pending = {**dict.fromkeys(self._store.device_ids(), False), **pending}
            if heard is not None:
                pending = {**self._gone(heard, since_s), **pending}
            for device_id, connected in sorted(pending.items()):
                self._store.set_presence(device_id, connected, now_s)
        except EdgeloopError:
            with self._lock:
                self._pending = {**pending, **self._pending}
                self._forget |= forget
                if heard is not None and self._heard is None:
                    self._heard, self._up_since_s = heard, since_s
            raise
        return bool(pending)

    def _due(self, now_s: float) -> tuple[set[str] | None, float]:
        """Who was heard, and since when, once those that were not have had their time. Holds the lock."""
        if self._heard is None:
            return None, 0.0
        since_s = self._up_since_s = now_s if self._up_since_s is None else self._up_since_s
        if now_s - since_s < UNHEARD_S:
            return None, 0.0
        heard, self._heard, self._up_since_s = self._heard, None, None
        return heard, since_s

    def _gone(self, heard: set[str], since_s: float) -> dict[str, bool]:
        gone = {
            device.device_id: False
            for device in self._store.devices()
            if device.connected and device.device_id not in heard and device.last_seen_s < since_s
        }
        if gone:
            logger.info(
                "%d devices count as away: nothing was heard of them in %d s with the broker, as of %s",
                len(gone),
                UNHEARD_S,
                min(gone),
            )
        return gone
