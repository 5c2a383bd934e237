"""``python -m benchmarks``: what there is, and how options reach the one that they are for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as runner

FOLDER = Path(runner.__file__).parent


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been run; a benchmark named ``rules`` fails with a usage error."""
    ran: list[list[str]] = []

    def run(command: list[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
        assert not check
        ran.append(command[1:])
        return subprocess.CompletedProcess(command, 2 if command[2] == "benchmarks.rules" else 0)

    monkeypatch.setattr(runner.subprocess, "run", run)
    return ran


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return runner.main()


def test_every_program_of_the_folder_is_listed_with_what_it_measures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--help") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    # Those that say how to call them; triton_load is a part that another one starts.
    programs = {
        path.stem
        for path in FOLDER.glob("*.py")
        if path.stem not in ("__main__", "triton_load")
        and "python -m benchmarks" in path.read_text(encoding="utf-8")[:1500]
    }
    assert len(programs) > 10
    assert programs <= set(lines)
    assert all(len(lines[name].split()) > 4 for name in programs)


def test_options_go_to_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch, commands: list[list[str]]
) -> None:
    assert call(monkeypatch, "fleet", "--devices", "500", "--json") == 0
    assert commands == [["-m", "benchmarks.fleet", "--devices", "500", "--json"]]


def test_several_run_one_after_the_other_and_all_are_all_but_the_longest(
    monkeypatch: pytest.MonkeyPatch, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "rules", "agent") == 1
    assert [command[1] for command in commands] == ["benchmarks.rules", "benchmarks.agent"]
    assert "failed: rules" in capsys.readouterr().err
    commands.clear()
    call(monkeypatch)
    assert {command[1] for command in commands} == {f"benchmarks.{name}" for name in runner.BENCHMARKS}
    assert not set(runner.BENCHMARKS) & set(runner.LONG_BENCHMARKS)


def test_what_one_alone_refuses_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, commands: list[list[str]]
) -> None:
    assert call(monkeypatch, "rules", "--split", "x") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fleeet"], "no such benchmark: fleeet; there are agent,"),
        (["fleet", "agent", "--json"], "--json goes to one benchmark"),
        (["--json"], "--json goes to one benchmark"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    commands: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert commands == []
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
