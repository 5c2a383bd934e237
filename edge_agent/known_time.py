"""What time it is at least: gateways lose their clocks, and nothing expired may become fresh by that.

Rules:
- The floor rises with the issue time of everything that the director signed and this device accepted, at
  once; and with the device's own clock, once that has kept step with the monotonic one for ten minutes, so
  that a clock that is wrong for a moment after the start leaves no mark.
- "Now" is the clock, or the floor while the clock is behind it.
- A clock far ahead raises the floor too far. So the two parts are kept apart: what the clock raised goes down
  again to what the control plane says in an answer over TLS, which nobody on the way can make, keep for later
  or hold back for longer than a call lasts. What was signed never goes down by that, and nothing goes down by
  what is signed: old signatures can be sent again.
- Losing the files costs only the floor. `edgeloop-agent clock reset` is the last resort, for whoever may
  write to the state folder.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.journal import write_atomically

logger = logging.getLogger(__name__)

# The floor itself, where earlier versions kept it; and what of it was signed.
FLOOR_FILE = "time-floor"
SIGNED_FILE = "time-signed"
STEADY_S = 600.0
MAX_DRIFT_S = 30.0
# Clocks of control planes and delays of calls are below it; what expires does so after hours at least.
TOLERANCE_S = 300.0
ASK_INTERVAL_S = 600.0
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
        self._signed_path = state_dir / SIGNED_FILE
        self._clock = clock
        self._monotonic = monotonic
        self.signed_s = _read(self._signed_path)
        self.floor_s = max(_read(self._path), self.signed_s)
        self._began = (clock(), monotonic())
        self._ask_at_s = float("-inf")

    def now_s(self) -> float:
        return max(self._clock(), self.floor_s)

    def raise_to(self, time_s: float) -> None:
        """Time that somebody trusted has signed. While it cannot be saved it holds for this process."""
        if self.signed_s < time_s < _MAX_TIME_S:
            self.signed_s = time_s
            _write(self._signed_path, time_s)
        self._raise_floor(time_s)

    def on_tick(self) -> None:
        """Lets the clock count once it has been steady for long enough."""
        clock_s, monotonic_s = self._clock(), self._monotonic()
        walked_s, passed_s = clock_s - self._began[0], monotonic_s - self._began[1]
        if abs(walked_s - passed_s) > MAX_DRIFT_S:
            self._began = (clock_s, monotonic_s)
        elif passed_s >= STEADY_S:
            self._began = (clock_s, monotonic_s)
            self._raise_floor(clock_s)

    def wants_server_time(self) -> bool:
        """Whether to ask the control plane now: the clock is behind a floor that it may have raised."""
        is_odd = self.floor_s > max(self._clock(), self.signed_s) + TOLERANCE_S
        if not is_odd or self._monotonic() < self._ask_at_s:
            return False
        self._ask_at_s = self._monotonic() + ASK_INTERVAL_S
        return True

    def hear(self, server_s: float) -> None:
        """What the control plane's clock said just now, over TLS."""
        if not 0.0 < server_s < _MAX_TIME_S:
            return
        clock_s = self._clock()
        if clock_s > server_s + TOLERANCE_S:
            logger.warning(
                "this device's clock is ahead of the control plane's: it says %s instead of %s; set it, "
                "deployments seem expired until then",
                utc(clock_s),
                utc(server_s),
            )
        if self.floor_s <= server_s + TOLERANCE_S:
            return
        lower_s = max(server_s, self.signed_s)
        if lower_s >= self.floor_s:
            logger.warning(
                "the director signed at %s, and the control plane says that it is %s: set the clocks of the "
                "control plane; 'edgeloop-agent clock reset' here if the first was wrong",
                utc(self.signed_s),
                utc(server_s),
            )
            return
        logger.warning(
            "this device's clock was ahead, and raised its time floor to %s: the control plane says %s, and "
            "the floor is %s again",
            utc(self.floor_s),
            utc(server_s),
            utc(lower_s),
        )
        self.floor_s = lower_s
        self._began = (clock_s, self._monotonic())
        _write(self._path, lower_s)

    def describe(self) -> str:
        """For a message that says that something has expired."""
        text = f"this device's clock says {utc(self._clock())}"
        if self.floor_s <= self._clock():
            return text
        if self.floor_s <= self.signed_s:
            return f"{text}, and the director signed at {utc(self.signed_s)}"
        return (
            f"{text}, and said {utc(self.floor_s)} before: if it ran ahead then, the next connection to the "
            "control plane over TLS puts that right, or 'edgeloop-agent clock reset' on the device"
        )

    def _raise_floor(self, time_s: float) -> None:
        if self.floor_s < time_s < _MAX_TIME_S:
            self.floor_s = time_s
            _write(self._path, time_s)


def reset(state_dir: Path) -> None:
    """Forget what is kept of the time. Raises OSError. For whoever holds the folder's lock."""
    for name in (FLOOR_FILE, SIGNED_FILE):
        (state_dir / name).unlink(missing_ok=True)


def utc(time_s: float) -> str:
    """For people, to the second."""
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))
    return f"{time_s:.0f} s"


def _write(path: Path, time_s: float) -> None:
    try:
        write_atomically(path, f"{time_s:.3f}\n".encode())
    except OSError as error:
        logger.warning("the time floor is not saved reason=%s", error.strerror)


def _read(path: Path) -> float:
    try:
        with path.open("rb") as file:
            time_s = float(file.read(_MAX_FILE_BYTES))
    except FileNotFoundError:
        return 0.0
    except (OSError, ValueError) as error:
        logger.warning("the time floor is unreadable and starts afresh reason=%s", error)
        return 0.0
    return time_s if 0.0 <= time_s < _MAX_TIME_S else 0.0
