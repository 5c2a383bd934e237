"""The one thread that steps the job runner and the controller.

Jobs are looked at a few times a second; the controller at its interval, and at once when something happened
that it may wait for (a device registered or reported, a job ended, a person asked for something). A step over
a large fleet may take longer than the interval: then it rests for longer, since reports are acknowledged by
the same process.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from cloud.controller import Controller
from cloud.departures import Departures
from cloud.job_parts import Compute
from cloud.jobrunner import JobRunner
from cloud.presence import PresenceBook

logger = logging.getLogger(__name__)

_TICK_S = 0.2
#: Whatever its interval and however often it is poked, the controller rests for this multiple of what its
#: last step took: it has at most a third of a processor.
_REST_RATIO = 2.0


class ComputeSource(Protocol):
    """ComputeHost, or NoCompute."""

    @property
    def ready(self) -> Compute | None: ...

    @property
    def message(self) -> str: ...


def rested_at(began_s: float, ended_s: float) -> float:
    """When the controller may step again after a step of this length, whoever wants it to."""
    return ended_s + _REST_RATIO * (ended_s - began_s)


class ControlLoop:
    """``start`` and ``stop`` once each; ``poke`` from any thread, as often as one likes."""

    def __init__(
        self,
        *,
        controller: Controller,
        runner: JobRunner,
        compute: ComputeSource,
        presence: PresenceBook,
        departures: Departures,
        step_interval_s: float,
    ) -> None:
        self._controller = controller
        self._runner = runner
        self._compute = compute
        self._presence = presence
        self._departures = departures
        self._step_interval_s = step_interval_s
        self._poked = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it after the step under way."""
        self._stopping.set()
        self._poked.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30.0)

    def poke(self) -> None:
        """Something happened: look at once."""
        self._poked.set()

    def _run(self) -> None:
        next_step_s = rested_s = time.monotonic()
        due = False
        while not self._stopping.is_set():
            due |= self._poked.is_set()
            self._poked.clear()
            try:
                self._runner.attach(self._compute.ready, waiting_for=self._compute.message)
                due |= self._runner.step()
                due |= self._presence.write(time.time())
                began_s = time.monotonic()
                if began_s >= next_step_s or (due and began_s >= rested_s):
                    left = self._departures.look()
                    due = self._controller.step(time.time())
                    self._departures.clear(left, time.time())
                    rested_s = rested_at(began_s, time.monotonic())
                    next_step_s = max(began_s + self._step_interval_s, rested_s)
            except Exception:
                logger.exception("a control step failed; going on")
            self._poked.wait(_TICK_S)
