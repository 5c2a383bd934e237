"""Messages on their way to a broker, and whether they arrived.

Rules kept here:

- A publication ends exactly once: acknowledged, or lost with its connection.
- The lock is never held while paho is called: paho reports acknowledgements under locks of its own.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError

from edgeloop.errors import TransientError


class Publication:
    """A message on its way. For QoS 1 it is done when the broker acknowledged it."""

    def __init__(self, topic: str, thread: threading.Thread) -> None:
        self.topic = topic
        self.future: Future[None] = Future()
        self._thread = thread

    @property
    def done(self) -> bool:
        """Whether it ended, well or badly."""
        return self.future.done()

    def wait(self, timeout_s: float) -> None:
        """Return once it is acknowledged.

        Raises ``TransientError`` when the connection was lost first ("mqtt-lost") or time ran out
        ("mqtt-timeout"). In both cases the message may have arrived: publish it again, or do not care.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("waiting on the session's own thread would wait for ever")
        try:
            self.future.result(timeout_s)
        except FutureTimeoutError:
            raise TransientError(
                f"the broker did not acknowledge {self.topic} within {timeout_s} s: publish it again",
                code="mqtt-timeout",
            ) from None

    def end(self, error: TransientError | None) -> None:
        with contextlib.suppress(InvalidStateError):  # acknowledged and lost at one moment: the first counts
            if error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(error)


class Acknowledgements:
    """Message ids of one connection that wait for the broker."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, Publication] = {}
        self._early: set[int] = set()
        self._ended: TransientError | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(self, mid: int, publication: Publication) -> None:
        with self._lock:
            if mid not in self._early and self._ended is None:
                self._waiting[mid] = publication
                return
            error = None if mid in self._early else self._ended
            self._early.discard(mid)
        publication.end(error)

    def acknowledged(self, mid: int) -> None:
        with self._lock:
            publication = self._waiting.pop(mid, None)
            if publication is None:
                self._early.add(mid)  # faster than the thread that published it
        if publication is not None:
            publication.end(None)

    def end(self, error: TransientError) -> None:
        with self._lock:
            self._ended = error
            waiting, self._waiting = self._waiting, {}
        for publication in waiting.values():
            publication.end(error)
