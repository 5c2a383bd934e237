"""Keeps on the broker what the database says should be there.

The broker is a cache that may lose everything at any moment. Rules that this module keeps:

* Level-triggered: ``set_desired`` states the whole truth, and one thread makes the broker agree, again and
  again. Nothing depends on having seen an event.
* An artifact's blocks and its manifest are acknowledged by the broker before a deployment that names them is
  published, so that a device never hears of what it cannot fetch; so is TUF metadata, the timestamp last.
* After everything else, a retained sentinel is written that names this process and how much it has published.
  When it is missing or differs after a (re)connect, the broker has forgotten, or is another one: everything
  is published again.
* What was ever put on the broker is written down before it is published, so that artifacts that nobody
  desires any more are cleared even after a restart, and by whichever control plane acts then.
* A delta is published before a deployment that offers it; one that cannot be had holds nothing up, since
  devices do without.
* One artifact that cannot be read does not hold up the others.
"""

from __future__ import annotations

import logging
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from cloud.block_requests import BlockRequests, RequestSettings
from cloud.published import PublishedArtifacts, SharedMemory
from cloud.retained import Bus, deliver
from cloud.shipment import Blobs, Shipment, Stock
from edgeloop import topics
from edgeloop.artifact import MAX_REQUEST_BYTES
from edgeloop.backoff import Backoff
from edgeloop.errors import EdgeloopError, TransientError

logger = logging.getLogger(__name__)

_SENTINEL_WAIT_S = 0.5
_TICK_S = 1.0
_UNREADABLE_RETRY_S = 30.0


class Publisher:
    """One thread between the desired state and the broker. All methods are safe from any thread."""

    def __init__(
        self,
        *,
        bus: Bus,
        blobs: Blobs,
        state_path: Path,
        deltas: Blobs | None = None,
        shared: SharedMemory | None = None,
        settings: RequestSettings | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._stock = Stock(blobs, deltas)
        self._monotonic_s = monotonic_s
        self._requests = BlockRequests(bus, self._stock, settings or RequestSettings(), monotonic_s)
        self._published = PublishedArtifacts(state_path, shared)
        self._session = secrets.token_hex(8)
        self._sequence = 0
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._progress = threading.Condition()
        self._num_posted = 0
        self._num_settled = 0
        self._num_taken = 0
        self._backoff = Backoff(0.2, 10.0, random.Random())

        # Owned by the thread.
        self._desired: dict[str, Shipment] = {}
        self._of_device: dict[str, list[Shipment]] = {}
        self._connected = False
        self._confirmed = False
        self._sentinel: bytes | None = None
        self._blocks_there: dict[str, int] = {}
        self._manifests_there: set[str] = set()
        self._deployments_there: dict[str, bytes] = {}
        self._director_keys = b""
        self._director_keys_there = b""
        self._tuf: dict[str, bytes] = {}
        self._tuf_there: dict[str, bytes] = {}
        self._leaving: list[tuple[set[str], Callable[[], None]]] = []
        self._retry_at_s = 0.0
        self._unreadable: dict[tuple[str, str], float] = {}

    def start(self) -> None:
        """Start the thread. Nothing is published before ``on_connected``."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is on the broker stays there."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def set_desired(self, shipments: Mapping[str, Shipment]) -> None:
        """The whole desired state, replacing what was said before. Each shipment has a key of its own."""
        copy = dict(shipments)
        self._post(lambda: self._take_desired(copy))

    def clear(self, left: Collection[str], on_cleared: Callable[[], None]) -> None:
        """Take these retained messages off the broker, then call ``on_cleared`` on the publisher's thread.

        A topic that is desired is waited for until it is not. What raises ``TransientError`` is tried again.
        """
        self._post(lambda: self._leaving.append((set(left), on_cleared)))

    def set_director_keys(self, chain: bytes) -> None:
        """Every change of the director's keys, for devices to follow; empty when there was none."""
        self._post(lambda: self._take_director_keys(chain))

    def set_tuf(self, files: Mapping[str, bytes]) -> None:
        """All TUF metadata by file name, in the order in which it is published."""
        copy = dict(files)
        self._post(lambda: self._take_tuf(copy))

    def on_connected(self, connected: bool) -> None:
        """Tell it that the session came up or went down."""
        self._post(lambda: self._take_connected(connected))

    def on_request(self, topic: str, payload: bytes) -> None:
        """A message on a device's request topic."""
        if len(payload) <= MAX_REQUEST_BYTES:
            self._post(lambda: self._answer(topic, payload))

    def wait_settled(self, timeout_s: float) -> bool:
        """Whether, within the time, the broker came to hold all that was desired before this call."""
        with self._progress:
            wanted = self._num_posted
            return self._progress.wait_for(lambda: self._num_settled >= wanted, timeout_s)

    @property
    def backlog(self) -> int:
        """How many changes it was told of since the broker last held all that was desired."""
        with self._progress:
            return self._num_posted - self._num_settled

    def _post(self, action: Callable[[], None]) -> None:
        with self._progress:
            self._num_posted += 1
            self._inbox.put(action)

    # -- the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            action: Callable[[], None] | None = _nothing
            try:
                action = self._inbox.get(timeout=self._wait_s())
                self._num_taken += 1
            except queue.Empty:
                pass
            if action is None:
                return
            try:
                action()
                if self._inbox.empty():
                    self._converge()
            except TransientError as error:
                self._retry_at_s = self._monotonic_s() + self._backoff.next()
                logger.debug("publishing is tried again: %s", error)
            except Exception:
                self._retry_at_s = self._monotonic_s() + self._backoff.next()
                logger.exception("publishing failed and is tried again")

    def _wait_s(self) -> float:
        """Until the next try, when one is due; else a tick."""
        return (
            min(_TICK_S, max(0.01, self._retry_at_s - self._monotonic_s())) if self._retry_at_s else _TICK_S
        )

    def _answer(self, topic: str, payload: bytes) -> None:
        if self._connected:
            self._requests.answer(topic, payload, self._of_device, self._tuf)

    def _take_desired(self, shipments: dict[str, Shipment]) -> None:
        self._desired = shipments
        self._of_device = {}
        for _, shipment in sorted(shipments.items()):
            self._of_device.setdefault(shipment.device_id, []).append(shipment)
        self._unreadable.clear()
        self._retry_at_s = 0.0

    def _take_director_keys(self, chain: bytes) -> None:
        self._director_keys = chain
        self._retry_at_s = 0.0

    def _take_tuf(self, files: dict[str, bytes]) -> None:
        self._tuf = files
        self._retry_at_s = 0.0

    def _take_connected(self, connected: bool) -> None:
        self._connected = connected
        self._confirmed = False
        self._retry_at_s = 0.0
        self._backoff.reset()

    def _take_sentinel(self, payload: bytes) -> None:
        self._sentinel = payload

    def _converge(self) -> None:
        if not self._connected or self._monotonic_s() < self._retry_at_s:
            return
        if not self._confirmed:
            self._confirm()
        changed = self._publish_missing() | self._clear_undesired() | self._clear_left()
        if changed or self._sentinel != self._expected_sentinel():
            self._sequence += 1
            deliver(self._bus, [(topics.SENTINEL, self._expected_sentinel())])
            self._sentinel = self._expected_sentinel()
        self._backoff.reset()
        self._retry_at_s = 0.0
        with self._progress:
            self._num_settled = self._num_taken
            self._progress.notify_all()

    def _expected_sentinel(self) -> bytes:
        return f"{self._session}:{self._sequence}".encode()

    def _confirm(self) -> None:
        """Ask the broker what it remembers; forget what it does not."""
        self._sentinel = None
        answered = threading.Event()
        seen: list[bytes] = []

        def heard(_topic: str, payload: bytes) -> None:
            seen.append(payload)
            answered.set()

        self._bus.subscribe(topics.SENTINEL, heard, qos=1)
        try:
            answered.wait(_SENTINEL_WAIT_S if self._sequence else 0.0)
        finally:
            self._bus.unsubscribe(topics.SENTINEL)
        if self._sequence == 0 or not seen or seen[0] != self._expected_sentinel():
            if self._sequence:
                logger.warning("the broker has lost its retained messages: publishing everything again")
            self._blocks_there.clear()
            self._manifests_there.clear()
            self._deployments_there.clear()
            self._director_keys_there = b""
            self._tuf_there.clear()
        else:
            self._sentinel = seen[0]
        self._confirmed = True

    def _publish_missing(self) -> bool:
        changed = False
        if self._director_keys != self._director_keys_there:
            # Before any deployment that only the newest key vouches for.
            deliver(self._bus, [(topics.DIRECTOR_KEYS, self._director_keys)])
            self._director_keys_there = self._director_keys
            changed = True
        changed |= self._publish_tuf()
        ready: set[tuple[str, str]] = set()
        now_s = self._monotonic_s()
        for pair in sorted(
            {(shipment.digest, shipment.manifest_digest) for shipment in self._desired.values()}
        ):
            digest, manifest_digest = pair
            if digest in self._blocks_there and manifest_digest in self._manifests_there:
                ready.add(pair)
                continue
            if now_s < self._unreadable.get(pair, 0.0):
                continue
            try:
                blocks, manifest = self._stock.artifact(digest, manifest_digest)
            except EdgeloopError as error:
                logger.error("artifact %s is desired but cannot be read: %s", digest[:12], error)
                self._unreadable[pair] = now_s + _UNREADABLE_RETRY_S
                continue
            known = self._published.artifacts.get(digest, 0)
            self._published.artifacts[digest] = max(known, len(blocks))
            self._published.manifests.add(manifest_digest)
            self._published.save()
            messages = [(topics.block(digest, number), block) for number, block in enumerate(blocks)]
            deliver(self._bus, [*messages, (topics.manifest(manifest_digest), manifest)])
            self._blocks_there[digest] = len(blocks)
            self._manifests_there.add(manifest_digest)
            ready.add(pair)
            changed = True
        changed |= self._publish_deltas(now_s)
        wanted = [
            (shipment.topic, shipment.payload)
            for _, shipment in sorted(self._desired.items())
            if (shipment.digest, shipment.manifest_digest) in ready
        ]
        wanted += self._left_topics()
        there = self._deployments_there
        stale = [(topic, payload) for topic, payload in wanted if there.get(topic) != payload]
        if stale:
            # One that slept through its lease would put old deployments over those of who acts now.
            self._published.check_ours()
            deliver(self._bus, stale)
            there.update(stale)
            changed = True
        return changed

    def _publish_deltas(self, now_s: float) -> bool:
        changed = False
        for digest in sorted({shipment.delta for shipment in self._desired.values()} - {""}):
            if digest in self._blocks_there or now_s < self._unreadable.get((digest, ""), 0.0):
                continue
            try:
                blocks = self._stock.delta(digest)
            except EdgeloopError as error:
                logger.warning("delta %s cannot be had, devices do without: %s", digest[:12], error)
                self._unreadable[digest, ""] = now_s + _UNREADABLE_RETRY_S
                continue
            if self._published.artifacts.get(digest) != len(blocks):
                self._published.artifacts[digest] = len(blocks)
                self._published.save()
            deliver(self._bus, [(topics.block(digest, number), block) for number, block in enumerate(blocks)])
            self._blocks_there[digest] = len(blocks)
            changed = True
        return changed

    def _left_topics(self) -> list[tuple[str, bytes]]:
        """Empty payloads where a device was told what it hears elsewhere now that it hosts more, or fewer."""
        desired = {shipment.topic for shipment in self._desired.values()}
        alone = {
            topics.deployment(device_id)
            for device_id, shipments in self._of_device.items()
            if all(shipment.workload for shipment in shipments)
        }
        there = {
            topic
            for topic in self._deployments_there
            if topic not in desired and topics.device_of(topic) in self._of_device
        }
        return [(topic, b"") for topic in sorted(alone | there)]

    def _publish_tuf(self) -> bool:
        """What is new, in its order, and then empty payloads for what the newest no longer leads to."""
        stale = {name: raw for name, raw in self._tuf.items() if self._tuf_there.get(name) != raw}
        old = sorted(self._published.tuf - self._tuf.keys()) if self._tuf else []
        if not stale and not old:
            return False
        self._published.tuf |= stale.keys()
        self._published.save()
        # One after the other: a device that hears the last of them finds the others.
        for name, raw in stale.items():
            deliver(self._bus, [(topics.tuf(name), raw)])
            self._tuf_there[name] = raw
        deliver(self._bus, [(topics.tuf(name), b"") for name in old])
        if old:
            for name in old:
                self._tuf_there.pop(name, None)
            self._published.tuf -= set(old)
            self._published.save()
        return True

    def _clear_undesired(self) -> bool:
        """Empty retained payloads for what no deployment names, whoever published it."""
        if not self._desired:
            return False  # before the first word on what is desired, nothing is known to be undesired
        digests = {shipment.digest for shipment in self._desired.values()}
        digests |= {shipment.delta for shipment in self._desired.values()}
        manifests = {shipment.manifest_digest for shipment in self._desired.values()}
        old = {digest: count for digest, count in self._published.artifacts.items() if digest not in digests}
        old_manifests = self._published.manifests - manifests
        if not old and not old_manifests:
            return False
        messages = [(topics.block(digest, number), b"") for digest in old for number in range(old[digest])]
        deliver(self._bus, [*messages, *((topics.manifest(digest), b"") for digest in sorted(old_manifests))])
        for digest in old:
            del self._published.artifacts[digest]
            self._blocks_there.pop(digest, None)
        self._published.manifests -= old_manifests
        self._manifests_there -= old_manifests
        self._published.save()
        logger.info("cleared %d artifacts from the broker that no device should run", len(old))
        return True

    def _clear_left(self) -> bool:
        """Empty retained payloads for what deleted devices leave behind."""
        desired = {shipment.topic for shipment in self._desired.values()}
        changed = False
        for left, on_cleared in tuple(self._leaving):
            gone = left - desired
            if gone:
                deliver(self._bus, [(topic, b"") for topic in sorted(gone)])
                for topic in gone:
                    self._deployments_there.pop(topic, None)
                left -= gone
                changed = True
            if not left:
                on_cleared()
                self._leaving.remove((left, on_cleared))
        return changed


def _nothing() -> None:
    return None
