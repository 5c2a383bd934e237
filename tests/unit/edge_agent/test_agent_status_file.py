"""The status file: whole for its readers, and written also where no new file fits."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_agent import status_file
from edge_agent.cli import main
from edge_agent.sensors.counts import ANSWERED, DROPPED, SourceCounts
from edge_agent.status_board import MAX_CHARS, StatusBoard
from edge_agent.status_file import STATUS_FILE, AgentStatus, WorkloadStatus, read_status, write_status
from edgeloop.errors import ConfigError
from edgeloop.v1.fleet_service_pb2 import HostedProfile, RegisterResponse

STATUS = AgentStatus(
    pid=1,
    running=True,
    device_id="gw-1",
    boot_id="b",
    agent_version="1",
    state="active",
    message="a long word about what happened",
    start_time_s=1.0,
    update_time_s=2.0,
)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(old: Path, new: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)


@pytest.mark.parametrize("message", ["", "short", "long " * 100])
def test_on_a_full_disk_it_is_written_over(tmp_path: Path, request: pytest.FixtureRequest, message) -> None:
    write_status(tmp_path, STATUS)
    request.getfixturevalue("full_disk")
    changed = replace(STATUS, message=message, spool_problem="database or disk is full")
    write_status(tmp_path, changed)
    assert read_status(tmp_path) == changed
    assert [path.name for path in tmp_path.iterdir()] == [STATUS_FILE]


def test_without_a_file_a_full_disk_is_an_error(tmp_path: Path, full_disk: None) -> None:
    with pytest.raises(OSError, match="No space"):
        write_status(tmp_path, STATUS)


def test_a_reader_that_meets_half_of_it_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / STATUS_FILE).write_text('{"format_version": 1,')
    # The writer comes to its end while the reader waits.
    meanwhile = SimpleNamespace(sleep=lambda seconds: write_status(tmp_path, STATUS))
    with monkeypatch.context() as patched:
        patched.setattr(status_file, "time", meanwhile)
        assert read_status(tmp_path) == STATUS
    (tmp_path / STATUS_FILE).write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_status(tmp_path)


def test_the_counts_of_sources_are_written_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = SourceCounts(["line-1", "drop"])
    counts.add("line-1", ANSWERED, 7)
    counts.add("line-1", DROPPED)
    write_status(tmp_path, replace(STATUS, sources=counts.by_source()))
    assert read_status(tmp_path).sources["line-1"] == {"answered": 7, "failed": 0, "dropped": 1}
    with pytest.raises(SystemExit) as ended:
        main(["status", "--state-dir", str(tmp_path)])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "source line-1" in printed
    assert "7 answered, 0 failed, 1 dropped" in printed


def test_status_has_a_line_for_each_workload_with_its_profile(tmp_path: Path, capsys) -> None:
    eyes = WorkloadStatus(workload="eyes", state="active", generation=3, profile="small")
    ears = WorkloadStatus(workload="ears", state="idle", profile_message="no profile has class=x")
    write_status(tmp_path, replace(STATUS, workloads=[eyes, ears]))
    with pytest.raises(SystemExit):
        main(["status", "--state-dir", str(tmp_path)])
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "profile small, active, generation 3" in lines["workload eyes"]
    assert "no profile: no profile has class=x" in lines["workload ears"]
    assert read_status(tmp_path).workloads == [eyes, ears]


def test_what_the_cloud_says_of_each_workload_is_shown_until_it_says_otherwise() -> None:
    workloads: list[Any] = [
        SimpleNamespace(name=name, profile="", profile_message="") for name in ("eyes", "ears")
    ]
    nothing: Any = None
    board = StatusBoard(
        nothing,
        boot_id="b",
        start_s=0.0,
        workloads=workloads,  # type: ignore[arg-type]  # it only goes through them
        network=nothing,
        spool=nothing,
        sensors=nothing,
        api=nothing,
    )
    said = [
        HostedProfile(workload="eyes", profile="small"),
        HostedProfile(workload="ears", message="x" * 9999),
        HostedProfile(workload="a stranger", profile="large"),
    ]
    board.on_registered(RegisterResponse(profile="small", profiles=said))
    assert [(one.profile, one.profile_message) for one in workloads] == [("small", ""), ("", "x" * MAX_CHARS)]
    # A control plane of an older version says nothing of them.
    board.on_registered(RegisterResponse(profile="small"))
    assert [(one.profile, one.profile_message) for one in workloads] == [("", ""), ("", "")]
