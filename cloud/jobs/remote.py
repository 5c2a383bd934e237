"""Compute on Ray, driven by a process of its own: what the control plane holds of the cluster.

Ray ends the process that drives it when it loses what it needs (the head of a cluster, the raylet of this
machine), with an abort in native code that nothing here could catch. So that process is a child, and its end
is an event like others. This module imports neither Ray nor what does.

Guarantees, beside those of cloud.jobs.compute:

- ``submit``, ``poll``, ``cancel`` and ``describe`` return at once, from any thread, whatever Ray does.
- A driver that dies, or says nothing for ``SILENCE_S``, is ended and another started, with back-off, until
  ``stop``. One line of the log says why, but not each time while the same keeps Ray away. The next driver
  gets what is unfinished: what had finished is on the shelf and is answered from there, and a training goes
  on after its last whole epoch. What a driver had running ends with it: at once where Ray is our own, on a
  cluster as soon as its head has noticed.
- Each submitted task ends in exactly one ``TaskSucceeded`` or ``TaskFailed``, however many drivers it took.
- The driver, and a Ray of our own with it, dies with this process, even by SIGKILL.
- A token of Ray is in the driver's environment alone.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from cloud.domain.tasks import Task, TaskEvent
from cloud.jobs.driver_process import DriverProcess
from cloud.jobs.messages import (
    Begin,
    Cancel,
    Described,
    Failed,
    Gone,
    Logged,
    Message,
    Progressed,
    Started,
    Stop,
    Submit,
    Succeeded,
    heard,
)
from cloud.jobs.open_tasks import OpenTasks
from edgeloop.backoff import Backoff
from edgeloop.errors import EdgeloopError, TransientError

logger = logging.getLogger(__name__)

#: A driver that lives says something each second. One that hangs in Ray for so long is ended.
SILENCE_S = 30.0
#: Starting or joining Ray takes seconds; the driver itself gives up after two minutes.
START_SILENCE_S = 180.0
#: To end what runs and leave Ray, before it is made to.
STOP_PATIENCE_S = 15.0
#: From the end of its socket until it is gone.
EXIT_PATIENCE_S = 5.0
#: A driver that lived so long was well: the next one is started soon again.
STABLE_S = 60.0
_NOT_STARTED = "Ray, not started"
_WAITING = "waits: Ray was lost and is started again"
#: Names in the environment whose values are secrets of Ray.
_SECRETS = ("RAY_AUTH_TOKEN",)


class Driver(Protocol):
    """``DriverProcess``."""

    pid: int

    def send(self, message: Message) -> None: ...

    def receive(self) -> Message | None: ...

    def silence_after(self, silence_s: float) -> None: ...

    def kill(self) -> None: ...

    def end(self, patience_s: float = 0.0) -> str: ...


def take_secrets(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Take Ray's secrets out of an environment that others are started with, too; for ``RemoteCompute``."""
    return {name: environment.pop(name) for name in _SECRETS if name in environment}


class RemoteCompute:
    """The cluster as the control plane sees it.

    ``address`` is "" for a Ray of our own on this machine with ``num_cpus`` (all when ``None``), else
    ``host:port``. ``work_dir`` holds checkpoints and results; with a cluster of machines it and the registry
    must be storage that all of them share. ``secrets`` go into the driver's environment. ``launch`` starts a
    driver.
    """

    def __init__(
        self,
        *,
        work_dir: Path | str,
        registry_url: str,
        address: str = "",
        num_cpus: int | None = None,
        secrets: Mapping[str, str] | None = None,
        launch: Callable[[], Driver] | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._begin = Begin(
            work_dir=str(Path(work_dir).absolute()),
            registry_url=registry_url,
            address=address,
            num_cpus=num_cpus,
            log_level=logging.getLogger().getEffectiveLevel(),
        )
        self._secrets = dict(secrets or {})
        self._launch = launch or self._new_process
        self._backoff = backoff or Backoff(0.5, 15.0, random.Random())
        self._lock = threading.Lock()
        self._tasks = OpenTasks()
        self._events: list[TaskEvent] = []
        self._driver: Driver | None = None
        self._is_up = False
        self._description = _NOT_STARTED
        #: The problem that the log was told of last, until there is Ray again.
        self._told = ""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Of the driver that has Ray, or None while there is none."""
        with self._lock:
            return self._driver.pid if self._driver is not None and self._is_up else None

    def start(self) -> None:
        """Start or join Ray; takes seconds. Raises ``ConfigError`` when the address cannot be used.

        From then on Ray is kept: when it is lost, it is started again. After an error nothing is kept.
        """
        if self._thread is not None:
            return
        self._stopping.clear()
        first: Future[None] = Future()
        # The kernel ends the driver with the thread that made it, so one thread makes and outlives it.
        thread = threading.Thread(target=self._keep, args=(first,), name="ray-driver", daemon=True)
        self._thread = thread
        thread.start()
        try:
            first.result()
        except EdgeloopError:
            thread.join()
            self._thread = None
            raise

    def submit(self, task: Task) -> None:
        """Have the task done, once. What it gives comes out of ``poll``."""
        with self._lock:
            if self._tasks.submit(task) and self._driver is not None:
                self._driver.send(Submit.of(task))

    def poll(self) -> list[TaskEvent]:
        """What happened since the last call, in order."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def cancel(self, task_id: str) -> None:
        """End the task; the next ``poll`` says so. One that is unknown or has ended is left as it is."""
        with self._lock:
            event = self._tasks.cancel(task_id)
            if event is None:
                return
            self._events.append(event)
            if self._driver is not None and self._is_up:
                self._driver.send(Cancel(task_id=task_id))

    def describe(self) -> str:
        """For people: ``local Ray, 2 CPUs``, or what is waited for."""
        return self._description

    def stop(self) -> None:
        """End what runs and leave Ray. Checkpoints and results stay; ``start`` may follow."""
        with self._lock:
            self._stopping.set()
            self._tasks.clear()
            self._events.clear()
            self._description = _NOT_STARTED
            driver = self._driver
            if driver is not None:
                # One that is still starting Ray reads nothing until that is done.
                driver.send(Stop()) if self._is_up else driver.kill()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(STOP_PATIENCE_S)
            if thread.is_alive() and driver is not None:
                driver.kill()
                thread.join()

    # -- the thread that keeps a driver --------------------------------------------------------------------

    def _keep(self, first: Future[None]) -> None:
        while not self._stopping.is_set():
            began_s = time.monotonic()
            try:
                problem = self._live(first)
            except Exception as error:  # noqa: BLE001 - as long as this thread lives, Ray is kept
                problem = TransientError(f"the driver of Ray cannot be started: {error}", code="ray-driver")
            if not first.done():
                first.set_exception(problem)
                return
            if self._stopping.is_set():
                return
            if time.monotonic() - began_s > STABLE_S:
                self._backoff.reset()
            delay_s = self._backoff.next()
            with self._lock:
                self._description = f"Ray was lost ({problem}); it is started again"
                num_open = len(self._tasks)
            # A head that is away for a day is not told of thousands of times.
            level = logging.DEBUG if str(problem) == self._told else logging.ERROR
            self._told = str(problem)
            logger.log(
                level, "%s; starting it again in %.1f s, with %d unfinished tasks", problem, delay_s, num_open
            )
            self._stopping.wait(delay_s)
        if not first.done():
            first.set_exception(TransientError("stopped while Ray was starting", code="ray-driver"))

    def _live(self, first: Future[None]) -> EdgeloopError:
        """One driver, from its start to its end, and why it ended."""
        driver = self._launch()
        with self._lock:
            self._driver = driver
        if self._stopping.is_set():
            driver.kill()
        driver.send(self._begin)
        gone: EdgeloopError | None = None
        broken, patience_s = "", EXIT_PATIENCE_S
        try:
            while (message := driver.receive()) is not None:
                if isinstance(message, Gone):
                    gone, patience_s = message.error, 0.0
                    break
                self._take(message, driver, first)
        except TimeoutError:
            silence_s = SILENCE_S if self._is_up else START_SILENCE_S
            broken, patience_s = f"did not answer for {silence_s:.0f} s and ", 0.0
        except Exception as error:  # noqa: BLE001 - whatever it said, the next one may say better
            broken, patience_s = f"said what nobody understands ({error}) and ", 0.0
        with self._lock:
            self._driver, self._is_up = None, False
            self._events += self._tasks.driver_went(_WAITING)
        how = driver.end(patience_s)
        return gone or TransientError(
            f"the driver of Ray (process {driver.pid}) {broken}{how}", code="ray-driver"
        )

    def _take(self, message: Message, driver: Driver, first: Future[None]) -> None:
        if isinstance(message, Logged):
            _log(message)
        elif isinstance(message, Started):
            driver.silence_after(SILENCE_S)
            with self._lock:
                self._is_up = True
                self._told = ""
                self._description = message.description
                for task in self._tasks.driver_came():
                    driver.send(Submit.of(task))
                if self._stopping.is_set():
                    driver.send(Stop())
            logger.info("compute: %s, driven by process %d", message.description, driver.pid)
            if not first.done():
                first.set_result(None)
        elif isinstance(message, Described):
            with self._lock:
                self._description = message.description
        elif isinstance(message, Progressed | Failed | Succeeded):
            event = heard(message)
            with self._lock:
                told = self._tasks.hear(event)
                if told is not None:
                    self._events.append(told)

    def _new_process(self) -> DriverProcess:
        environment = {
            # Ray would put its own handler before ours, and print stack traces at every SIGTERM.
            "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
            **os.environ,
            **self._secrets,
        }
        return DriverProcess(environment=environment, silence_s=START_SILENCE_S)


def _log(told: Logged) -> None:
    target = logging.getLogger(told.logger)
    if not target.isEnabledFor(told.level):
        return
    record = logging.LogRecord(told.logger, told.level, "", 0, told.message, told.arguments, None)
    record.created = told.time_s
    record.threadName = told.thread
    target.handle(record)
