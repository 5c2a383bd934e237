"""The process that drives Ray for a control plane: ``python -m cloud.jobs.driver DESCRIPTOR PARENT``.

Rules that this module keeps:

- It dies with the control plane: the kernel sends it SIGKILL, and the end of the socket says it again.
- The thread that calls Ray also says that it is alive. When a call hangs, the control plane hears nothing
  more and ends this process, which is what Ray itself may do at any moment.
- When Ray is lost it says so and exits; it never tries to go on with what is left. A new process does.
- Ctrl-C in the terminal is the control plane's to hear, which then says ``Stop``.
- It imports no torch: what trains are Ray's workers.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloud.jobs.compute import RayCompute
from cloud.jobs.link import Link
from cloud.jobs.messages import Alive, Begin, Cancel, Described, Gone, Logged, Message, Started, Stop, Submit
from cloud.jobs.messages import said as message_of
from cloud.jobs.node import die_with_parent
from edgeloop.errors import EdgeloopError

logger = logging.getLogger("cloud.jobs.driver")  # also where this module is the program

_POLL_S = 0.2
_ALIVE_S = 1.0
#: How old the description of a cluster gets. A look is also how the loss of a head is noticed: it waits for
#: one that is gone, and Ray aborts once there is another. Nobody but this process waits with it.
_DESCRIBE_S = 5.0
#: To leave Ray after the control plane is gone or has said so; then it ends the hard way.
_STOP_LIMIT_S = 20.0
_OOM_SCORE = "300"


class LinkHandler(logging.Handler):
    """What is logged here goes into the log of the control plane."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; called by ``logging``. One that cannot be sent is lost with its reader."""
        with contextlib.suppress(OSError, ValueError):
            self._link.send(logged(record))


def logged(record: logging.LogRecord) -> Logged:
    """The record as plain values: its sentence and its arguments apart, since logs are searched by those."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    message = str(record.msg) if arguments else record.getMessage().replace("%", "%%")
    plain = tuple(item if _is_plain(item) else str(item) for item in arguments)
    if record.exc_info and record.exc_info[1] is not None:
        plain += (logging.Formatter().formatException(record.exc_info),)
        message += "\n%s"
    if not plain:
        message = record.getMessage()
    return Logged(
        time_s=record.created,
        level=record.levelno,
        logger=record.name,
        thread=f"driver/{record.threadName}",
        message=message,
        arguments=plain,
    )


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


class Driver:
    """``run`` returns when it was told to stop, or when nobody is there any more to drive for.

    ``on_leave`` is called as soon as that is known, while a call into Ray may still hang.
    """

    def __init__(self, link: Link, compute: Any, *, on_leave: Callable[[], None] = lambda: None) -> None:
        self._link = link
        self._compute = compute
        self._on_leave = on_leave
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def run(self) -> None:
        """Raises ``EdgeloopError`` or what Ray raises when the cluster cannot be had or was lost."""
        threading.Thread(target=self._read, name="inbox", daemon=True).start()
        self._compute.start()
        self._link.send(Started(description=self._compute.describe()))
        described_s = spoken_s = time.monotonic()
        while self._work():
            now_s = time.monotonic()
            if now_s - described_s >= _DESCRIBE_S:
                self._link.send(Described(description=self._compute.describe()))
                described_s = time.monotonic()
            for event in self._compute.poll():
                self._link.send(message_of(event))
            if now_s - spoken_s >= _ALIVE_S:
                self._link.send(Alive())
                spoken_s = now_s
        self._compute.stop()

    def _work(self) -> bool:
        """Do what was asked for meanwhile, for so long that being alive can be said; whether to go on."""
        until_s = time.monotonic() + _ALIVE_S
        try:
            message = self._inbox.get(timeout=_POLL_S)
            while True:
                if isinstance(message, Submit):
                    self._compute.submit(message.task)
                elif isinstance(message, Cancel):
                    self._compute.cancel(message.task_id)
                else:
                    return False
                if time.monotonic() > until_s:
                    return True
                message = self._inbox.get_nowait()
        except queue.Empty:
            return True

    def _read(self) -> None:
        while True:
            try:
                message = self._link.receive()
            except ValueError:
                logger.exception("the control plane said what nobody understands")
                message = None
            if message is None or isinstance(message, Stop):
                self._on_leave()
                self._inbox.put(Stop())
                return
            self._inbox.put(message)


def _limit_leaving() -> None:
    limit = threading.Timer(_STOP_LIMIT_S, os._exit, args=(1,))
    limit.daemon = True
    limit.start()


def main(descriptor: int, parent: int) -> int:
    """Returns the exit status: 0 after ``Stop``."""
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        return 1  # it died before that was asked for
    # Not SIG_IGN, which Ray's processes would inherit.
    signal.signal(signal.SIGINT, lambda *_: None)
    os.set_inheritable(descriptor, False)
    # Where memory ends, this and what it starts go before the control plane.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    link = Link(socket.socket(fileno=descriptor))
    begin = link.receive()
    if not isinstance(begin, Begin):
        return 1
    # Ray would load Arrow and numpy to be ready for tables; what goes through here are names and figures.
    sys.modules["pyarrow"] = None  # type: ignore[assignment]
    root = logging.getLogger()
    root.setLevel(begin.log_level)
    root.addHandler(LinkHandler(link))
    try:
        compute = RayCompute(
            work_dir=begin.work_dir,
            registry_url=begin.registry_url,
            address=begin.address,
            num_cpus=begin.num_cpus,
        )
        Driver(link, compute, on_leave=_limit_leaving).run()
    except Exception as error:
        if not isinstance(error, EdgeloopError):
            logger.exception("the driver of Ray fails")
        with contextlib.suppress(OSError):
            link.send(Gone.of(error))
        return 1
    return 0


if __name__ == "__main__":
    status = main(int(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    if status:
        # Ray's own clearing up waits for what is lost. The kernel ends its processes with this one.
        os._exit(status)
