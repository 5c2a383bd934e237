"""The time floor of a gateway that loses its clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.known_time import ASK_INTERVAL_S, FLOOR_FILE, STEADY_S, KnownTime, reset


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


NOW_S = 1_790_000_000.0
IN_2090_S = 3_800_000_000.0


def jumped(folder: Path, *, signed_s: float = NOW_S - 86_400) -> tuple[Clocks, KnownTime]:
    """A device whose clock was in 2090 for long enough to be believed, and has come back."""
    clocks = Clocks(NOW_S)
    known = clocks.known(folder)
    known.raise_to(signed_s)
    clocks.wall_s = IN_2090_S
    known.on_tick()
    clocks.pass_s(STEADY_S)
    known.on_tick()
    assert known.floor_s > IN_2090_S
    clocks.wall_s = NOW_S + STEADY_S
    return clocks, known


def test_the_control_plane_puts_right_what_a_clock_far_ahead_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clocks, known = jumped(tmp_path)
    assert known.now_s() > IN_2090_S
    assert known.wants_server_time()
    known.hear(clocks.wall_s + 1)
    assert known.now_s() == clocks.wall_s + 1
    assert "raised its time floor to 2090-" in caplog.text
    assert "the control plane says 2026-" in caplog.text
    assert not known.wants_server_time()
    assert clocks.known(tmp_path).floor_s == clocks.wall_s + 1


def test_no_answer_goes_below_what_was_signed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, known = jumped(tmp_path)
    known.hear(NOW_S - 30 * 86_400)
    assert known.floor_s == NOW_S - 86_400
    known.hear(NOW_S - 60 * 86_400)
    assert known.floor_s == NOW_S - 86_400
    assert "set the clocks of the control plane" in caplog.text
    # A lost clock, and years of answers, change nothing of that.
    assert Clocks(0.0).known(tmp_path).now_s() == NOW_S - 86_400


@pytest.mark.parametrize("said_s", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_what_is_no_time_is_not_heard(tmp_path: Path, said_s: float) -> None:
    _, known = jumped(tmp_path)
    known.hear(said_s)
    assert known.floor_s > IN_2090_S


def test_a_clock_that_is_still_ahead_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clocks, known = jumped(tmp_path)
    clocks.wall_s = IN_2090_S
    known.hear(NOW_S)
    assert "clock is ahead of the control plane's" in caplog.text
    # It is lowered once more when the clock has come back.
    clocks.pass_s(STEADY_S)
    known.on_tick()
    clocks.wall_s = NOW_S + 2 * STEADY_S
    assert known.wants_server_time()
    known.hear(clocks.wall_s)
    assert known.now_s() == clocks.wall_s


def test_the_control_plane_is_asked_now_and_then_and_only_for_what_it_can_put_right(tmp_path: Path) -> None:
    clocks, known = jumped(tmp_path)
    assert [known.wants_server_time() for _ in range(3)] == [True, False, False]
    clocks.pass_s(ASK_INTERVAL_S)
    assert known.wants_server_time()
    # A clock that was lost is behind what was signed, and that stays.
    lost = Clocks(0.0).known(tmp_path / "other")
    (tmp_path / "other").mkdir()
    lost.raise_to(NOW_S)
    assert not lost.wants_server_time()


def test_a_floor_of_an_earlier_version_is_put_right_too(tmp_path: Path) -> None:
    (tmp_path / FLOOR_FILE).write_text(f"{IN_2090_S:.3f}\n")
    known = Clocks(NOW_S).known(tmp_path)
    assert known.now_s() == IN_2090_S
    known.hear(NOW_S)
    assert known.now_s() == NOW_S


def test_a_reset_leaves_the_clock_alone_to_count(tmp_path: Path) -> None:
    clocks, _ = jumped(tmp_path)
    reset(tmp_path)
    assert clocks.known(tmp_path).now_s() == clocks.wall_s
    reset(tmp_path)
