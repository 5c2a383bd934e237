"""Answers to devices that ask for what the broker has lost.

Rules:
- Requests are checked, and answered only for what the device's own deployment names.
- They are bounded per device and per topic: no device can make the cloud publish without end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cloud.retained import Bus, deliver
from cloud.shipment import Shipment, Stock
from edgeloop import topics
from edgeloop.artifact import parse_block_request
from edgeloop.errors import EdgeloopError, RejectedError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestSettings:
    """``requests_a_minute`` bounds one device; a block is not published again within ``block_quiet_s``."""

    requests_a_minute: float = 30.0
    request_burst: int = 20
    block_quiet_s: float = 1.0


class BlockRequests:
    """Owned by the publisher's thread."""

    def __init__(
        self, bus: Bus, stock: Stock, settings: RequestSettings, monotonic_s: Callable[[], float]
    ) -> None:
        self._bus = bus
        self._stock = stock
        self._settings = settings
        self._monotonic_s = monotonic_s
        self._tokens: dict[str, tuple[float, float]] = {}
        self._last_answer_s: dict[str, float] = {}

    def answer(
        self,
        topic: str,
        payload: bytes,
        of_device: Mapping[str, Sequence[Shipment]],
        tuf: Mapping[str, bytes],
    ) -> None:
        """Publish what a device asks for and should run. Raises ``TransientError``."""
        try:
            device_id = topics.device_of(topic)
            request = parse_block_request(payload, device_id=device_id)
        except RejectedError as error:
            logger.warning("ignored a block request on %s: %s", topic, error)
            return
        shipments = of_device.get(device_id)
        if not shipments or not self._allowed(device_id):
            return
        if request.tuf:
            self._again([(topics.tuf(name), raw) for name, raw in tuf.items()])
            return
        shipment = next((shipment for shipment in shipments if shipment.answers(request)), None)
        if shipment is None:
            # It has missed the newest deployment: say that again instead.
            logger.info("%s asks for what it should not run: publishing its deployment again", device_id)
            self._again([(shipment.topic, shipment.payload) for shipment in shipments])
            return
        digest = request.digest if request.blocks else shipment.digest
        try:
            if digest == shipment.digest:
                blocks, manifest = self._stock.artifact(digest, shipment.manifest_digest)
            else:
                blocks, manifest = self._stock.delta(digest), b""
        except EdgeloopError as error:
            logger.error("cannot answer %s: artifact %s: %s", device_id, digest[:12], error)
            return
        numbers = [number for number in sorted(set(request.blocks)) if number < len(blocks)]
        messages = [(topics.block(digest, number), blocks[number]) for number in numbers]
        if request.manifest and manifest:
            messages.insert(0, (topics.manifest(shipment.manifest_digest), manifest))
        self._again(messages)

    def _again(self, messages: list[tuple[str, bytes]]) -> None:
        """Publish once more what was not published a moment ago: the answer is retained, so it serves all."""
        now_s = self._monotonic_s()
        quiet_s = self._settings.block_quiet_s
        self._last_answer_s = {topic: at for topic, at in self._last_answer_s.items() if now_s - at < quiet_s}
        fresh = [(topic, payload) for topic, payload in messages if topic not in self._last_answer_s]
        self._last_answer_s.update((topic, now_s) for topic, _ in fresh)
        if fresh:
            logger.info("publishing %d messages again on request", len(fresh))
            deliver(self._bus, fresh)

    def _allowed(self, device_id: str) -> bool:
        """A token bucket for each device."""
        now_s = self._monotonic_s()
        burst = float(self._settings.request_burst)
        tokens, at_s = self._tokens.get(device_id, (burst, now_s))
        tokens = min(burst, tokens + (now_s - at_s) * self._settings.requests_a_minute / 60.0)
        allowed = tokens >= 1.0
        self._tokens[device_id] = (tokens - 1.0 if allowed else tokens, now_s)
        if not allowed:
            logger.warning("%s asks for blocks too often: ignored for now", device_id)
        return allowed
