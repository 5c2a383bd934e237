"""What a service manager hears, on a real datagram socket."""

from __future__ import annotations

import configparser
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent import service
from edge_agent.supervisor import Supervisor

UNIT = Path(__file__).parents[3] / "deploy" / "systemd" / "edgeloop-agent.service"


class Manager:
    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        found = []
        try:
            while True:
                found.append(self.socket.recv(4096).decode())
        except BlockingIOError:
            return found


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Manager, str]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@edgeloop-test-{os.getpid()}"
    made = Manager(name.replace("@", "\0"))
    yield made, name
    made.socket.close()


def test_ready_alive_and_stopping_are_heard_and_the_watchdog_is_fed_at_half_its_time(manager) -> None:
    heard, name = manager
    times_s = [100.0, 101.0, 109.9, 110.0, 115.0, 120.0]
    clock = iter(times_s)
    said = Supervisor({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000000"}, monotonic=lambda: next(clock))
    assert said.interval_s == 10.0
    said.ready("serves abc,\ngeneration 1")
    for _ in times_s:
        said.alive()
    said.stopping()
    assert heard.heard() == [
        "READY=1\nSTATUS=serves abc, generation 1",
        "WATCHDOG=1",
        "WATCHDOG=1",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}],
    ids=["none", "no-number", "zero", "of-another-process"],
)
def test_without_a_watchdog_of_its_own_it_feeds_none(manager, watchdog: dict[str, str]) -> None:
    heard, name = manager
    said = Supervisor({"NOTIFY_SOCKET": name, **watchdog})
    said.alive()
    said.ready("")
    assert (said.interval_s, heard.heard()) == (None, ["READY=1\nSTATUS="])


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": "/gone/away"}])
def test_where_nobody_listens_nothing_happens(environment: dict[str, str]) -> None:
    said = Supervisor({**environment, "WATCHDOG_USEC": "2000000"})
    said.ready("serves")
    said.alive()
    said.stopping()


def test_the_unit_starts_the_agent_as_it_is_and_leaves_configuration_errors_alone() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    unit = parser["Service"]
    assert (unit["Type"], unit["NotifyAccess"]) == ("notify", "main")
    assert unit["RestartPreventExitStatus"] == str(service.EXIT_USAGE)
    program, command, *_ = unit["ExecStart"].split()
    assert (program.rsplit("/")[-1], command) == ("edgeloop-agent", "run")
    assert int(unit["WatchdogSec"]) > 10
    # Else a self-test that the kernel ends for its memory would end the agent, as if on purpose.
    assert unit["OOMPolicy"] == "continue"
