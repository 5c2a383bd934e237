"""From the workers to the driver: how far each task is.

Only the newest word of each task is kept, so the mailbox stays small however slowly the driver reads. It is
lossy on purpose: results never travel here.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, Self

#: A worker says something at most this often for each task...
MIN_INTERVAL_S = 0.2
#: ...and, while a heartbeat runs, at least this often.
HEARTBEAT_S = 0.8


class Mailbox:
    """Becomes a Ray actor: workers post, the driver drains."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[float, str]] = {}

    def post(self, run_key: str, fraction: float, message: str) -> None:
        self._newest[run_key] = (fraction, message)

    def drain(self) -> dict[str, tuple[float, str]]:
        newest, self._newest = self._newest, {}
        return newest


class Reporter:
    """Used by a worker: ``report(fraction, message)``. Never raises and never waits."""

    def __init__(self, mailbox: Any, run_key: str) -> None:
        self._mailbox = mailbox
        self._run_key = run_key
        self._next_s = 0.0
        self._lock = threading.Lock()

    def __call__(self, fraction: float, message: str) -> None:
        now_s = time.monotonic()
        with self._lock:
            if now_s < self._next_s and fraction < 1.0:
                return
            self._next_s = now_s + MIN_INTERVAL_S
        bounded = min(1.0, max(0.0, float(fraction)))
        try:
            self._mailbox.post.remote(self._run_key, bounded, str(message)[:500])
        except Exception:  # noqa: BLE001  # losing a word about progress must not cost the work
            return


class Heartbeat:
    """A reporter that says the newest word again, with the time since, while nothing else is said."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._word = (0.0, "")
        self._said_s = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __call__(self, fraction: float, message: str) -> None:
        self._word, self._said_s = (fraction, message), time.monotonic()
        self._report(fraction, message)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        repeated_s = self._said_s
        while not self._stop.wait(HEARTBEAT_S / 4):
            now_s = time.monotonic()
            fraction, message = self._word
            if message and now_s - max(self._said_s, repeated_s) >= HEARTBEAT_S * 0.75:
                repeated_s = now_s
                self._report(fraction, f"{message}, {now_s - self._said_s:.0f} s")
