"""The process that drives Ray, as its parent holds it: talked with over a socket, listened to, ended.

Rules that this module keeps:

- It is a fresh interpreter, never a fork of the control plane, and gets of its descriptors one socket alone.
- ``send`` never waits: a driver that reads nothing costs a thread, and is ended by whoever receives.
- What it and Ray's native code print goes into our log line by line, at DEBUG: it is much, and of no use to
  people who run a fleet. The last of it says why it died, and that is said to them.
- It dies with the thread that made it, even by SIGKILL: the driver asks the kernel for that first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence

from cloud.jobs.link import Link
from cloud.jobs.messages import Message

#: What the driver prints is logged as told by this one.
logger = logging.getLogger("cloud.jobs.driver")

#: -P: no module is ever taken from the working directory.
DRIVER = (sys.executable, "-P", "-m", "cloud.jobs.driver")

_MAX_LINE_CHARS = 500
_NUM_LAST_LINES = 3
#: What the driver started has its outputs, too: their end means that none of that is left on this machine, so
#: that the next driver does not join a node that is about to go. It is not waited for longer.
_HELPERS_WAIT_S = 5.0
#: A line of a native stack trace or a part of one: an address, or the linker's name of a function.
_STACK_LINE = re.compile(r"0x[0-9a-f]{6,}|\(\+0x|^\*\*\*|_raylet\.so|_ZN|_ZZ")
#: What is meant by the last words of Ray's native code; advice to report it stands before.
_REASON = re.compile(r"Check failed.*")


class DriverProcess:
    """Started by its constructor. Raises ``OSError`` when it cannot be.

    ``silence_s`` is how long ``receive`` waits for a word. ``environment`` is its whole environment.
    """

    def __init__(
        self, command: Sequence[str] = DRIVER, *, environment: Mapping[str, str], silence_s: float
    ) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            try:
                self._process = subprocess.Popen(
                    [*command, str(number), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(number,),
                    env=dict(environment),
                )
            except OSError:
                ours.close()
                raise
        self.pid = self._process.pid
        self._link = Link(ours, silence_s=silence_s)
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._lines: deque[str] = deque(maxlen=_NUM_LAST_LINES)
        self._writer = threading.Thread(target=self._write, name="driver-writer", daemon=True)
        self._listener = threading.Thread(target=self._listen, name="driver-output", daemon=True)
        self._writer.start()
        self._listener.start()

    def send(self, message: Message) -> None:
        """Returns at once. Nothing happens when the driver is gone: ``receive`` says that."""
        self._outbox.put(message)

    def receive(self) -> Message | None:
        """The next word; None at its end. Raises ``TimeoutError`` and ``ValueError`` as ``Link`` does."""
        return self._link.receive()

    def silence_after(self, silence_s: float) -> None:
        """From the next ``receive`` on, wait that long."""
        self._link.silence_after(silence_s)

    def kill(self) -> None:
        """Make an end of it now; ``receive`` then comes to the end. From any thread, more than once."""
        self._process.kill()

    def end(self, patience_s: float = 0.0) -> str:
        """Have it gone, and how it ended, for people. It is killed unless it exits in that time."""
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._outbox.put(None)
        self._link.close()
        self._writer.join(_HELPERS_WAIT_S)
        self._listener.join(_HELPERS_WAIT_S)
        return _how(self._process.returncode) + self._last_words()

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._link.send(message)
            except OSError:
                self.kill()  # it reads nothing, or it is gone
                return
            except (TypeError, ValueError):
                logger.exception("a %s cannot be said to the driver", type(message).__name__)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError), self._process.stdout as stream:
            while data := stream.readline(_MAX_LINE_CHARS):
                line = data.decode(errors="replace").rstrip()
                if line:
                    logger.debug("%s", line)  # what it wants to be read comes as records, over the socket
                    if not _STACK_LINE.search(line):
                        self._lines.append(line)

    def _last_words(self) -> str:
        lines = list(self._lines)
        reasons = [found.group() for line in lines if (found := _REASON.search(line))]
        return "; it said last: " + " | ".join(reasons or lines) if lines else ""


def _how(code: int) -> str:
    if code >= 0:
        return f"exited with {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"
