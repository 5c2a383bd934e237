"""From the workers to the driver: how far each task is.

The newest word of each task is a small file beside its checkpoints, in the folder that all machines share: a
process for it alone would cost 70 MB. It is written over in place, since a file that is renamed over another
is found late by other machines on network storage; who reads half a word reads the next one. Words may be
lost: results never travel here.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

FOLDER: Final = "progress"
#: A worker says something at most this often for each task...
MIN_INTERVAL_S = 0.2
#: ...and, while a heartbeat runs, at least this often.
HEARTBEAT_S = 0.8
_MAX_MESSAGE_CHARS: Final = 500
_MAX_FILE_BYTES: Final = 8192


class Words:
    """What the driver reads. One thread."""

    def __init__(self, work_dir: Path) -> None:
        self._folder = work_dir / FOLDER
        self._last: dict[str, bytes] = {}

    def begin(self, run_key: str) -> None:
        """A run is about to start: what an earlier one of that name said is not its own."""
        with contextlib.suppress(OSError):  # without the folder there is no progress, and work all the same
            self._folder.mkdir(parents=True, exist_ok=True)
        self.end(run_key)

    def newest(self, run_key: str) -> tuple[float, str] | None:
        """Fraction and message, if there is another word than the last time."""
        try:
            with (self._folder / run_key).open("rb") as file:
                raw = file.read(_MAX_FILE_BYTES)
        except OSError:
            return None
        if raw == self._last.get(run_key):
            return None
        try:
            word = json.loads(raw)
            fraction, message = float(word["fraction"]), str(word["message"])
        except (ValueError, KeyError, TypeError):
            return None  # half of one
        self._last[run_key] = raw
        if not math.isfinite(fraction):
            return None
        return _bounded(fraction), message[:_MAX_MESSAGE_CHARS]

    def end(self, run_key: str) -> None:
        """Nobody asks for it any more."""
        self._last.pop(run_key, None)
        with contextlib.suppress(OSError):
            (self._folder / run_key).unlink()


class Reporter:
    """Used by a worker: ``report(fraction, message)``. Never raises, and waits for one small write."""

    def __init__(self, work_dir: Path | str, run_key: str) -> None:
        self._path = Path(work_dir, FOLDER, run_key)
        self._next_s = 0.0
        self._num_words = 0
        self._lock = threading.Lock()

    def __call__(self, fraction: float, message: str) -> None:
        now_s = time.monotonic()
        with self._lock:
            if now_s < self._next_s and fraction < 1.0:
                return
            self._next_s = now_s + MIN_INTERVAL_S
            self._num_words += 1
            # The number makes each word another one.
            word = {
                "number": self._num_words,
                "fraction": _bounded(float(fraction)),
                "message": str(message)[:_MAX_MESSAGE_CHARS],
            }
            with contextlib.suppress(OSError):  # losing a word about progress must not cost the work
                self._path.write_bytes(json.dumps(word).encode())


def _bounded(fraction: float) -> float:
    return min(1.0, max(0.0, fraction))


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
