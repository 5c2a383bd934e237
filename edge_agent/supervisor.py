"""What the agent tells the service manager that started it: systemd's notification protocol.

Rules:
- One datagram a message to the socket that the manager named; where none is named, nothing happens at all.
- Nothing here ever waits or fails: a manager that is gone costs a log line at most.
- The watchdog is fed by the thread that owns the agent's state, from its loop. An agent whose loop is stuck
  is killed and started again, and serves what it had committed.
"""

import logging
import os
import socket
from collections.abc import Callable, Mapping
from time import monotonic as _monotonic

logger = logging.getLogger(__name__)


class Supervisor:
    """Made from the environment that the manager gave."""

    def __init__(
        self, environment: Mapping[str, str], *, monotonic: Callable[[], float] = _monotonic
    ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._monotonic = monotonic
        # Half of the time after which the manager gives up; None without a watchdog.
        self.interval_s = _interval_s(environment) if self._address else None
        self._fed_at_s = float("-inf")

    def ready(self, status: str) -> None:
        """What may serve does."""
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def alive(self, status: str = "") -> None:
        """From the loop, as often as it likes."""
        now_s = self._monotonic()
        if self.interval_s is None or now_s - self._fed_at_s < self.interval_s:
            return
        self._fed_at_s = now_s
        self._send("WATCHDOG=1" + (f"\nSTATUS={_line(status)}" if status else ""))

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            logger.debug("the service manager did not hear reason=%s", error)


def _address(name: str) -> str:
    """A path, or "@" and a name in the abstract namespace; anything else is not for us."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _interval_s(environment: Mapping[str, str]) -> float | None:
    try:
        timeout_s = int(environment["WATCHDOG_USEC"]) / 1e6
        # Set for another process, when there is a wrapper that did not take it away.
        is_ours = int(environment.get("WATCHDOG_PID") or os.getpid()) == os.getpid()
    except (KeyError, ValueError):
        return None
    return timeout_s / 2 if timeout_s > 0 and is_ours else None


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
