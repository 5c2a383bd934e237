"""Topic to topic: samples from a broker to the model, answers back to the broker.

Rules that this module keeps:

- The session's thread only puts samples into a queue; a thread of the bridge asks the model and publishes.
- The queue is bounded. When the model is slower than the sensor the oldest sample goes, is counted, and the
  first of a row is logged: a late answer is worth less than a fresh one.
- Every sample that leaves the queue is answered, on the output topic or on the error topic. An answer that
  the broker did not acknowledge is published again once it is back.
- Whatever would make an answer the next input is never published.
- A broker that is down is said once, by the session; serving goes on.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Final

from edge_agent.sensors.asker import Asker
from edge_agent.sensors.counts import ANSWERED, DROPPED, FAILED, SourceCounts
from edge_agent.serving.addresses import is_local
from edge_agent.source_settings import BridgeSettings
from edgeloop.backoff import Backoff
from edgeloop.errors import EdgeloopError, TransientError
from edgeloop.mqtt import MqttSession

logger = logging.getLogger(__name__)

_ACKNOWLEDGE_S: Final = 5.0
_RETRY_S: Final = 0.1
_JOIN_S: Final = 2.0
_MAX_TOPIC_BYTES: Final = 65_535


class Bridge:
    """``start`` once, ``close`` once."""

    def __init__(
        self,
        settings: BridgeSettings,
        asker: Asker,
        counts: SourceCounts,
        *,
        client_id: str,
        backoff: Backoff | None = None,
    ) -> None:
        self._settings = settings
        self._asker = asker
        self._counts = counts
        self._pending: deque[tuple[str, bytes]] = deque()
        self._changed = threading.Condition()  # guards the queue
        self._stop = threading.Event()
        self._is_behind = False
        self._session = MqttSession(
            settings.broker.host,
            settings.broker.port,
            client_id,
            username=settings.username,
            password=settings.password,
            tls=settings.tls.context if settings.tls is not None else None,
            backoff=backoff or Backoff(0.5, 60.0),
        )
        self._thread = threading.Thread(target=self._work, name=f"source-{settings.name}", daemon=True)

    def start(self) -> None:
        settings = self._settings
        if settings.tls is None and not is_local(settings.broker):
            logger.warning(
                "source %s: samples and password travel to %s unencrypted; set ca_file, or tls = true",
                settings.name,
                settings.broker,
            )
        self._session.subscribe(settings.input_topic, self._on_message, qos=settings.qos)
        self._thread.start()
        self._session.start()
        logger.info("source %s: %s of %s", settings.name, settings.input_topic, settings.broker)

    def stop(self) -> None:
        """Asks its thread to end, and returns at once."""
        self._stop.set()
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Samples that wait are dropped, and counted as that."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
        self._session.close(1.0)
        with self._changed:
            num_left = len(self._pending)
            self._pending.clear()
        if num_left:
            self._counts.add(self._settings.name, DROPPED, num_left)
            logger.warning("source %s: stopped before %d samples", self._settings.name, num_left)

    def _on_message(self, topic: str, payload: bytes) -> None:
        """On the session's thread."""
        with self._changed:
            is_full = len(self._pending) >= self._settings.max_pending
            if is_full:
                self._pending.popleft()
            self._pending.append((topic, payload))
            self._changed.notify()
        if is_full:
            self._counts.add(self._settings.name, DROPPED)
            if not self._is_behind:
                logger.warning(
                    "source %s: samples come faster than the model answers; the oldest of %d are dropped",
                    self._settings.name,
                    self._settings.max_pending,
                )
        self._is_behind = is_full or (self._is_behind and len(self._pending) > 1)

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            try:
                self._serve(*taken)
            except Exception:
                # One sample must not end the thread that serves all the others.
                self._counts.add(self._settings.name, FAILED)
                logger.exception("source %s: a sample failed in an unforeseen way", self._settings.name)

    def _next(self) -> tuple[str, bytes] | None:
        with self._changed:
            while not self._pending and not self._stop.is_set():
                self._changed.wait()
            return None if self._stop.is_set() else self._pending.popleft()

    def _serve(self, topic: str, payload: bytes) -> None:
        settings = self._settings
        reply = self._asker.ask(payload, sample_format=settings.format, source=topic)
        to, outcome = settings.answer_topic(topic), ANSWERED
        if reply.error is not None:
            to, outcome = settings.errors_topic(topic), FAILED
            self._say(topic, reply.error)
        if settings.takes(to) or len(to.encode()) > _MAX_TOPIC_BYTES:
            self._say(topic, TransientError(f"no answer may go to {to[:80]!r}", code="topic-loop"))
            outcome = FAILED
        elif not self._publish(to, reply.data):
            outcome = DROPPED
        self._counts.add(settings.name, outcome)

    def _say(self, topic: str, error: EdgeloopError) -> None:
        # The first is worth a line; a thousand of the same are on the error topic and in the counter.
        is_first = not self._counts.get(self._settings.name, FAILED)
        logger.log(
            logging.WARNING if is_first else logging.DEBUG,
            "source %s: a sample of %s failed code=%s: %s",
            self._settings.name,
            topic,
            error.code,
            error.message,
        )

    def _publish(self, topic: str, payload: bytes) -> bool:
        """Until it is acknowledged, or a stop is asked; whether it was."""
        while True:
            try:
                self._session.publish(topic, payload, qos=self._settings.qos).wait(_ACKNOWLEDGE_S)
                return True
            except TransientError as error:
                logger.debug("source %s: answer kept: %s", self._settings.name, error)
            if self._stop.wait(_RETRY_S):
                return False
