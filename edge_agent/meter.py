"""Latency windows: what one model cost during one stretch of time.

Rules that this module keeps:

- A window holds requests of exactly one digest and generation. The first record under another key ends it.
- No clock is read here; whoever records passes the time. A clock that steps back ends the window, and no
  window ends before it starts.
- A window that nobody rolled in time, because the device slept, does not span the sleep.
- A window in which nothing happened is not reported: silence is no measurement.
- Finished windows wait here only until the next ``roll``, and at most ``MAX_FINISHED`` of them: when nobody
  rolls, the oldest go, and are counted.

Whoever runs the model records, the agent's own thread rolls; a lock joins the two.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

from edgeloop.sketch import LatencySketch, SketchBuilder

MAX_FINISHED: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowKey:
    """What served."""

    digest: str
    generation: int
    workload: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowReport:
    """One finished window."""

    key: WindowKey
    start_s: float
    end_s: float
    latency: LatencySketch
    reference: LatencySketch
    num_errors: int


class _Window:
    """The window that is open."""

    __slots__ = ("key", "last_s", "latency", "num_errors", "reference", "start_s")

    def __init__(self, key: WindowKey, start_s: float) -> None:
        self.key = key
        self.start_s = start_s
        self.last_s = start_s
        self.latency = SketchBuilder()
        self.reference = SketchBuilder()
        self.num_errors = 0

    def finish(self, end_s: float) -> WindowReport:
        return WindowReport(
            key=self.key,
            start_s=self.start_s,
            end_s=max(end_s, self.start_s),
            latency=self.latency.build(),
            reference=self.reference.build(),
            num_errors=self.num_errors,
        )


class LatencyMeter:
    """Collects what the inference thread measures into windows of ``window_s``."""

    def __init__(self, *, window_s: float) -> None:
        self._window_s = window_s
        self._open: _Window | None = None
        self._finished: deque[WindowReport] = deque()
        self._lock = threading.Lock()
        self.num_lost_windows = 0

    def set_window(self, window_s: float) -> None:
        """Changes how long windows are; the open one ends by the new length."""
        with self._lock:
            self._window_s = window_s

    def record(self, key: WindowKey, latency_ms: float, now_s: float) -> None:
        """One request that was served."""
        with self._lock:
            self._window(key, now_s).latency.add(latency_ms)

    def record_reference(self, key: WindowKey, elapsed_ms: float, now_s: float) -> None:
        """One timing of the reference kernel, taken while ``key`` serves."""
        with self._lock:
            self._window(key, now_s).reference.add(elapsed_ms)

    def record_error(self, key: WindowKey, now_s: float) -> None:
        """One request that the model failed to serve."""
        with self._lock:
            self._window(key, now_s).num_errors += 1

    def roll(self, now_s: float) -> list[WindowReport]:
        """The windows that ended since the last call: by time, or because another model began to serve."""
        with self._lock:
            window = self._open
            if window is not None and not 0 <= now_s - window.start_s < self._window_s:
                self._end(window, now_s)
            return self._take()

    def flush(self, now_s: float) -> list[WindowReport]:
        """Ends the open window too: before shutdown, or when its model is withdrawn."""
        with self._lock:
            if self._open is not None:
                self._end(self._open, now_s)
            return self._take()

    def _window(self, key: WindowKey, now_s: float) -> _Window:
        window = self._open
        if window is not None:
            same = window.key is key or window.key == key
            if same and 0 <= now_s - window.start_s < 2 * self._window_s:
                window.last_s = now_s
                return window
            self._end(window, now_s)
        self._open = window = _Window(key, now_s)
        return window

    def _end(self, window: _Window, now_s: float) -> None:
        # Where the clock stepped back, the last record's time is the best that is known.
        end_s = now_s if now_s >= window.start_s else window.last_s
        if end_s - window.start_s >= 2 * self._window_s:
            end_s = max(window.last_s, window.start_s + self._window_s)
        self._open = None
        self._finished.append(window.finish(end_s))
        if len(self._finished) > MAX_FINISHED:
            self._finished.popleft()
            self.num_lost_windows += 1

    def _take(self) -> list[WindowReport]:
        taken = list(self._finished)
        self._finished.clear()
        return taken
