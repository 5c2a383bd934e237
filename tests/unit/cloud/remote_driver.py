"""A driver of Ray that does as a test says, and a control plane that keeps one."""

from __future__ import annotations

import queue
import random
import threading
from pathlib import Path

from cloud.jobs.messages import (
    Alive,
    Begin,
    Message,
    Started,
    Stop,
)
from cloud.jobs.remote import RemoteCompute
from edgeloop.backoff import Backoff

#: For what happens at once unless something is wrong.
WAIT_S = 60.0


class FakeDriver:
    """Says what a test has it say. ``say`` returns once that was taken in."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.sent: queue.Queue[Message] = queue.Queue()
        self.silence_s: list[float] = []
        self.killed = threading.Event()
        self.patience_s: float | None = None
        self._words: queue.Queue[Message | Exception | None] = queue.Queue()
        self._is_hearing = False

    def say(self, *words: Message | Exception | None) -> None:
        for word in words:
            self._words.put(word)
        self._words.join()

    def told(self) -> list[Message]:
        """What it was sent since the last look, after ``Begin``."""
        found = []
        while not self.sent.empty():
            found.append(self.sent.get())
        return [message for message in found if not isinstance(message, Begin)]

    # -- what RemoteCompute does with it

    def send(self, message: Message) -> None:
        self.sent.put(message)
        if isinstance(message, Stop):
            self._words.put(None)

    def receive(self) -> Message | None:
        self._taken_in()
        word = self._words.get(timeout=WAIT_S)
        self._is_hearing = True
        if isinstance(word, Exception):
            raise word
        return word

    def silence_after(self, silence_s: float) -> None:
        self.silence_s.append(silence_s)

    def kill(self) -> None:
        self.killed.set()
        self._words.put(None)

    def end(self, patience_s: float = 0.0) -> str:
        self.patience_s = patience_s
        self._taken_in()
        return "was ended by SIGABRT; it said last: Check failed: no head"

    def _taken_in(self) -> None:
        if self._is_hearing:
            self._is_hearing = False
            self._words.task_done()


class World:
    """A compute, and the drivers that it started; they start Ray at once unless ``first_word`` says else."""

    def __init__(self, folder: Path) -> None:
        self.first_word: Message | Exception | None = Started(description="local Ray, 2 CPUs")
        #: Of the first drivers, when not all say the same.
        self.first_words: list[Message | Exception | None] = []
        self.may_launch = threading.Event()
        self.may_launch.set()
        self._drivers: queue.Queue[FakeDriver] = queue.Queue()
        self._num_drivers = 0
        self.compute = RemoteCompute(
            work_dir=folder,
            registry_url=str(folder),
            launch=self._launch,
            backoff=Backoff(0.001, 0.002, random.Random(1)),
        )

    def _launch(self) -> FakeDriver:
        assert self.may_launch.wait(WAIT_S)
        self._num_drivers += 1
        driver = FakeDriver(self._num_drivers)
        word = self.first_words.pop(0) if self.first_words else self.first_word
        if word is not None:
            driver._words.put(word)
        self._drivers.put(driver)
        return driver

    def launched(self) -> FakeDriver:
        """The next one that is started."""
        return self._drivers.get(timeout=WAIT_S)

    def driver(self) -> FakeDriver:
        """The next one that is started, once it has Ray."""
        driver = self.launched()
        driver.say(Alive())
        return driver

    def no_more_drivers(self) -> bool:
        return self._drivers.empty()
