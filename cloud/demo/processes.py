"""The processes of a demonstration: each started, restarted when it dies, and stopped with the demonstration.

A child that dies is started again with the same command, as a service manager would do it; that is also how
one can try, during the demonstration, what ``kill -9`` does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeloop.errors import TransientError

STOP_TIMEOUT_S = 15.0
#: A child that dies more often than this within a minute has a reason that a restart does not cure.
MAX_RESTARTS_A_MINUTE = 6


def _die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, however that comes about."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


@dataclass(kw_only=True, slots=True)
class Child:
    """One process. Its output goes to ``log``, appended over restarts."""

    name: str
    command: Sequence[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    restarts_s: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Start the process in a session of its own, so that Ctrl-C reaches the demonstration alone."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll() if self.process else None

    def last_lines(self, count: int = 5) -> str:
        """The end of its log, for messages."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])
        except OSError:
            return ""


class Processes:
    """All children. ``say`` is told when one is restarted."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._children: dict[str, Child] = {}
        self._say = say

    def add(self, child: Child) -> None:
        """Start a child and look after it from now on."""
        child.start()
        self._children[child.name] = child

    def tend(self) -> None:
        """Restart what died. Raises ``TransientError`` with the log's end when one keeps dying."""
        now = time.monotonic()
        for child in self._children.values():
            code = child.exit_code
            if code is None:
                continue
            child.restarts_s = [moment for moment in child.restarts_s if now - moment < 60] + [now]
            if len(child.restarts_s) > MAX_RESTARTS_A_MINUTE:
                raise TransientError(
                    f"{child.name} keeps ending (exit code {code}); {child.log} ends with:\n"
                    f"{child.last_lines()}",
                    code="demo-child",
                )
            self._say(f"{child.name} ended (exit code {code}): starting it again")
            child.start()

    def stop(self) -> None:
        """Stop all, the last started first: politely, then by force."""
        running = [
            child for child in reversed(self._children.values()) if child.process and child.exit_code is None
        ]
        for child in running:
            assert child.process is not None
            child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in running:
            assert child.process is not None
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._say(f"{child.name} did not stop within {STOP_TIMEOUT_S:.0f} s: ending it by force")
                child.process.kill()
                child.process.wait()
        self._children.clear()
