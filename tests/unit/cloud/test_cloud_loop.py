"""The loop steps a controller at its interval, and leaves time to others when a step takes long."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest

from cloud import loop as loop_module
from cloud.loop import ControlLoop

WAIT_S = 60.0


class Clock:
    """Time passes in steps and waits alone."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s


class Controller:
    """Each step takes ``step_s``; after ``num_steps`` the loop ends."""

    def __init__(self, clock: Clock, step_s: float, num_steps: int, has_more: bool = False) -> None:
        self.clock, self.step_s, self.num_steps, self.has_more = clock, step_s, num_steps, has_more
        self.began_s: list[float] = []
        self.done = threading.Event()

    def step(self, now_s: float) -> bool:
        self.began_s.append(self.clock.now_s)
        self.clock.now_s += self.step_s
        if len(self.began_s) == self.num_steps:
            self.done.set()
        return self.has_more


class Idle:
    """No jobs, no compute, nobody comes, goes or is deleted."""

    ready, message = None, ""

    def attach(self, *_: object, **__: object) -> None: ...

    def step(self) -> bool:
        return False

    def write(self, now_s: float) -> bool:
        return False

    def look(self) -> dict[str, object]:
        return {}

    def clear(self, left: dict[str, object], now_s: float) -> None: ...


class Poked(threading.Event):
    """Waiting takes the time that it says, on the test's clock; ``always`` pokes without end."""

    def __init__(self, clock: Clock, always: bool) -> None:
        super().__init__()
        self.clock, self.always = clock, always

    def wait(self, timeout: float | None = None) -> bool:
        self.clock.now_s += timeout or 0.0
        if self.always:
            self.set()
        return self.is_set()


@pytest.mark.parametrize(
    ("step_s", "always_poked", "has_more", "gap_s"),
    [
        pytest.param(0.1, False, False, 2.0, id="quick: at the interval"),
        pytest.param(1.0, False, False, 3.0, id="slow: two thirds of the time are for others"),
        pytest.param(10.0, False, False, 30.0, id="slower than the interval: still"),
        pytest.param(0.5, True, False, 1.5, id="poked without end: no more often than that"),
        pytest.param(0.5, False, True, 1.5, id="more to say than fits a turn: as soon as it rested"),
    ],
)
def test_how_often_the_controller_steps(
    monkeypatch: pytest.MonkeyPatch, step_s: float, always_poked: bool, has_more: bool, gap_s: float
) -> None:
    clock, idle = Clock(), Idle()
    monkeypatch.setattr(loop_module, "time", clock)
    controller = Controller(clock, step_s, num_steps=5, has_more=has_more)
    loop = ControlLoop(
        controller=controller,  # type: ignore[arg-type]
        runner=idle,  # type: ignore[arg-type]
        compute=idle,
        presence=idle,  # type: ignore[arg-type]
        departures=idle,  # type: ignore[arg-type]
        step_interval_s=2.0,
    )
    loop._poked = Poked(clock, always_poked)
    loop.start()
    assert controller.done.wait(WAIT_S)
    loop.stop()
    begun = controller.began_s[:5]
    gaps = [later - earlier for earlier, later in pairwise(begun)]
    # The loop looks five times a second.
    assert all(gap_s <= gap + 1e-6 and gap <= gap_s + 0.41 for gap in gaps), gaps
