"""What time it is at least: gateways lose their clocks, and nothing expired may become fresh by that.

Rules:
- The floor only rises: with the issue time of everything that the director signed and this device accepted,
  at once; and with the device's own clock, once that has kept step with the monotonic one for ten minutes, so
  that a clock that is wrong for a moment after the start leaves no mark.
- "Now" is the clock, or the floor while the clock is behind it.
- Losing the file costs only the floor. One that a clock far ahead has raised is a person's to delete, and the
  message of the refusal says so.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.journal import write_atomically

logger = logging.getLogger(__name__)

FLOOR_FILE = "time-floor"
STEADY_S = 600.0
MAX_DRIFT_S = 30.0
_MAX_TIME_S = 253_402_300_800.0  # the end of the year 9999
_MAX_FILE_BYTES = 64


class KnownTime:
    """Owned by the agent's thread."""

    def __init__(
        self,
        state_dir: Path,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = state_dir / FLOOR_FILE
        self._clock = clock
        self._monotonic = monotonic
        self.floor_s = self._read()
        self._began = (clock(), monotonic())

    def now_s(self) -> float:
        return max(self._clock(), self.floor_s)

    def raise_to(self, time_s: float) -> None:
        """Time that somebody trusted has signed. While it cannot be saved it holds for this process."""
        if not self.floor_s < time_s < _MAX_TIME_S:
            return
        self.floor_s = time_s
        try:
            write_atomically(self._path, f"{time_s:.3f}\n".encode())
        except OSError as error:
            logger.warning("the time floor is not saved reason=%s", error.strerror)

    def on_tick(self) -> None:
        """Lets the clock count once it has been steady for long enough."""
        clock_s, monotonic_s = self._clock(), self._monotonic()
        walked_s, passed_s = clock_s - self._began[0], monotonic_s - self._began[1]
        if abs(walked_s - passed_s) > MAX_DRIFT_S:
            self._began = (clock_s, monotonic_s)
        elif passed_s >= STEADY_S:
            self._began = (clock_s, monotonic_s)
            self.raise_to(clock_s)

    def _read(self) -> float:
        try:
            with self._path.open("rb") as file:
                floor_s = float(file.read(_MAX_FILE_BYTES))
        except FileNotFoundError:
            return 0.0
        except (OSError, ValueError) as error:
            logger.warning("the time floor is unreadable and starts afresh reason=%s", error)
            return 0.0
        return floor_s if 0.0 <= floor_s < _MAX_TIME_S else 0.0
