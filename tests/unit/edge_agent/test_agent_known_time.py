"""The time floor of a gateway that loses its clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.known_time import FLOOR_FILE, STEADY_S, KnownTime


class Clocks:
    def __init__(self, wall_s: float) -> None:
        self.wall_s = wall_s
        self.monotonic_s = 5.0

    def pass_s(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds

    def known(self, folder: Path) -> KnownTime:
        return KnownTime(folder, clock=lambda: self.wall_s, monotonic=lambda: self.monotonic_s)


def test_signed_time_holds_over_a_restart_that_loses_the_clock(tmp_path: Path) -> None:
    Clocks(2_000.0).known(tmp_path).raise_to(1_000_000.0)
    after = Clocks(0.0).known(tmp_path)
    assert after.now_s() == 1_000_000.0
    after.raise_to(5.0)
    assert after.now_s() == 1_000_000.0


def test_a_clock_that_keeps_step_counts_and_one_that_jumps_does_not(tmp_path: Path) -> None:
    clocks = Clocks(1_000_000.0)
    known = clocks.known(tmp_path)
    # Wrong by a century for a while after the start, as until NTP answers.
    clocks.wall_s = 4_000_000_000.0
    known.on_tick()
    clocks.pass_s(STEADY_S - 1)
    known.on_tick()
    clocks.wall_s = 1_001_000.0
    known.on_tick()
    assert known.floor_s == 0.0
    clocks.pass_s(STEADY_S)
    known.on_tick()
    assert known.floor_s == clocks.wall_s
    assert Clocks(0.0).known(tmp_path).now_s() == clocks.wall_s


@pytest.mark.parametrize("content", [b"", b"yesterday", b"nan", b"inf", b"-5", b"\xff\xfe", b"1e300"])
def test_a_damaged_floor_costs_only_the_floor(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FLOOR_FILE).write_bytes(content)
    assert Clocks(77.0).known(tmp_path).now_s() == 77.0


def test_a_floor_that_cannot_be_saved_holds_for_this_process(tmp_path: Path) -> None:
    known = Clocks(0.0).known(tmp_path / "gone")
    known.raise_to(9.0)
    assert known.now_s() == 9.0
