"""How a model on trial is doing: the meter that also counts for the update rules.

Rules:
- Counts belong to one (digest, generation); requests that another model answered do not count.
- "Clean" is the time, by a clock that never jumps, since the trial began in this process or last saw an
  error: a device that gets no requests commits after a while, a device whose clock is set does not.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.meter import LatencyMeter, WindowKey
from edge_agent.update_events import TrialProgress


def process_age_s() -> float:
    """Seconds since the kernel started this process, imports included; 0 where it does not say."""
    try:
        # The field after the name in parentheses is number 3; 22 is the start in clock ticks since boot.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up_s = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(up_s - ticks / os.sysconf("SC_CLK_TCK"), 0.0)


class TrialMeter(LatencyMeter):
    """Records on whichever thread has the turn to run the model, is asked on the agent's own."""

    def __init__(self, *, window_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__(window_s=window_s)
        self._monotonic = monotonic
        self._trial_lock = threading.Lock()
        self._key: WindowKey | None = None
        self._num_good = 0
        self._num_errors = 0
        self._clean_since_s = 0.0
        # Over the life of the process, for people. Only whoever has the turn writes them.
        self.num_served = 0
        self.num_failed = 0
        # From the start of the process to its first answer.
        self.first_record_s = 0.0

    def begin_trial(self, key: WindowKey) -> None:
        with self._trial_lock:
            self._key = key
            self._num_good = self._num_errors = 0
            self._clean_since_s = self._monotonic()

    def end_trial(self) -> None:
        self._key = None

    def record(self, key: WindowKey, latency_ms: float, now_s: float) -> None:
        super().record(key, latency_ms, now_s)
        if not self.num_served:
            self.first_record_s = process_age_s()
        self.num_served += 1
        if self._key is not None:
            with self._trial_lock:
                self._num_good += key == self._key

    def record_error(self, key: WindowKey, now_s: float) -> None:
        super().record_error(key, now_s)
        self.num_failed += 1
        if self._key is not None:
            with self._trial_lock:
                if key == self._key:
                    self._num_errors += 1
                    self._clean_since_s = self._monotonic()

    def progress(self) -> TrialProgress | None:
        """None while nothing is on trial."""
        with self._trial_lock:
            if self._key is None:
                return None
            return TrialProgress(
                generation=self._key.generation,
                num_good=self._num_good,
                num_errors=self._num_errors,
                clean_s=self._monotonic() - self._clean_since_s,
            )
