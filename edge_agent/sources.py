"""Feeds the engine with samples from a file, as a sensor would.

Rules that this module keeps:

- Ticks lie on a fixed grid from the start, so one late tick does not delay those after it.
- A sensor does not burst: ticks that passed while the source or the engine was behind are skipped and
  counted, and no second request is submitted while one is under way.
- The file is read without pickle, and checked before the first sample goes out.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.inference import InferenceResult
from edgeloop.errors import ConfigError, EdgeloopError

logger = logging.getLogger(__name__)

INPUTS_KEY: Final = "inputs"
MAX_REPLAY_BYTES: Final = 256 << 20


def load_replay(path: Path) -> NDArray[np.float32]:
    """The samples [n, ...] of an ``.npz`` file. Raises ``ConfigError`` (``replay-file``)."""
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(member.file_size for member in archive.infolist())
        if size_bytes > MAX_REPLAY_BYTES:
            raise _bad_file(path, f"holds {size_bytes} bytes unpacked, at most {MAX_REPLAY_BYTES} are read")
        with np.load(path, allow_pickle=False) as archive:
            if INPUTS_KEY not in archive:
                raise _bad_file(path, f"has no array {INPUTS_KEY!r}, only {sorted(archive)}")
            inputs = archive[INPUTS_KEY]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _bad_file(path, f"cannot be read as .npz: {error}") from error
    if inputs.dtype != np.float32:
        raise _bad_file(path, f"{INPUTS_KEY!r} is {inputs.dtype}, float32 is wanted")
    if inputs.ndim < 2 or not inputs.size:
        raise _bad_file(path, f"{INPUTS_KEY!r} has shape {list(inputs.shape)}, [n, ...] is wanted")
    if not np.isfinite(inputs).all():
        raise _bad_file(path, f"{INPUTS_KEY!r} holds values that are not finite")
    return np.ascontiguousarray(inputs)


class Schedule:
    """The grid of ticks; pure, so that it can be tried in virtual time."""

    def __init__(self, *, rate_hz: float, start_s: float) -> None:
        if not (math.isfinite(rate_hz) and rate_hz > 0):
            raise ConfigError(f"rate_hz is {rate_hz}; give a number above 0", code="rate-hz")
        self._rate_hz = rate_hz
        self._start_s = start_s
        self._next = 0

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next tick, 0 when it is due."""
        return max(0.0, self._start_s + self._next / self._rate_hz - now_s)

    def take(self, now_s: float) -> int:
        """Takes the tick that is due, and returns how many before it passed unused."""
        newest = max(self._next, math.floor((now_s - self._start_s) * self._rate_hz))
        num_missed = newest - self._next
        self._next = newest + 1
        return num_missed


class ReplaySource:
    """Submits the samples in order, one a tick, from a thread of its own."""

    def __init__(
        self,
        inputs: NDArray[np.float32],
        *,
        rate_hz: float,
        submit: Callable[[NDArray[np.float32]], Future[InferenceResult]],
        loop: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inputs = inputs
        self._schedule = Schedule(rate_hz=rate_hz, start_s=clock())
        self._rate_hz = rate_hz
        self._submit = submit
        self._loop = loop
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._replay, name="replay", daemon=True)
        self._under_way: Future[InferenceResult] | None = None
        self.num_submitted = 0
        #: Ticks without a request: the source or the engine was behind, or no model was there.
        self.num_skipped = 0
        self.num_failed = 0

    def start(self) -> None:
        """Begins with the first sample now."""
        self._schedule = Schedule(rate_hz=self._rate_hz, start_s=self._clock())
        self._thread.start()

    def close(self) -> None:
        """Stops at once; a request under way is not waited for."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def join(self, timeout_s: float) -> bool:
        """Waits for the end of a source that does not loop; whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _replay(self) -> None:
        position = 0
        while not self._stop.wait(self._schedule.wait_s(self._clock())):
            self.num_skipped += self._schedule.take(self._clock())
            if self._under_way is not None and not self._under_way.done():
                self.num_skipped += 1
                continue
            if self._send(self._inputs[position : position + 1]):
                position += 1
            if position == len(self._inputs):
                if not self._loop:
                    return
                position = 0

    def _send(self, sample: NDArray[np.float32]) -> bool:
        try:
            future = self._submit(sample)
        except EdgeloopError as error:
            # No model yet, or others keep the engine busy: a sensor goes on.
            self.num_skipped += 1
            logger.debug("sample skipped: %s", error)
            return False
        self.num_submitted += 1
        self._under_way = future
        future.add_done_callback(self._count)
        return True

    def _count(self, future: Future[InferenceResult]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            return
        self.num_failed += 1
        # The first is worth a line; a thousand of the same are not.
        level = logging.WARNING if self.num_failed == 1 else logging.DEBUG
        logger.log(level, "a replayed sample failed: %s", error)


def _bad_file(path: Path, what: str) -> ConfigError:
    return ConfigError(f"replay file {path} {what}", code="replay-file")
