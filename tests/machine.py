"""What tests ask of the machine that they run on."""

from __future__ import annotations

import os
import random
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

REQUIRE_ALL = os.environ.get("EDGELOOP_REQUIRE_ALL") == "1"
#: How long something may take that takes a moment on an idle machine: a bound for what hangs, no measure.
WAIT_S = 60.0

_FIRST_PORT = 10_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: As many processes of tests may look for ports side by side without meeting.
_MAX_WORKERS = 16
_given: set[int] = set()


def missing(what: str) -> None:
    """Skip for want of a program, or fail where nothing may be skipped (EDGELOOP_REQUIRE_ALL=1)."""
    if REQUIRE_ALL:
        pytest.fail(f"{what} is not installed, and EDGELOOP_REQUIRE_ALL=1 forbids to skip")
    pytest.skip(f"{what} is not installed")


def free_port() -> int:
    """A port that nobody listens on now, and that nobody is given who asks the system for any.

    It stays free until the test uses it, also while a test's broker is down: one that the system gives out
    could become the near end of another test's connection meanwhile.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _MAX_WORKERS
    ports = list(range(_FIRST_PORT + worker, _first_ephemeral(), _MAX_WORKERS))
    random.SystemRandom().shuffle(ports)
    # Where the system gives out nearly all of them, one of those.
    for port in [*ports, *[0] * 100]:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found = int(probe.getsockname()[1])
        if found not in _given:
            _given.add(found)
            return found
    raise AssertionError("no port is free")


def _first_ephemeral() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def wait_until(
    condition: Callable[[], object], what: str | Callable[[], str] = "it", timeout_s: float = WAIT_S
) -> None:
    """Return as soon as the condition holds; fail, naming ``what``, when it does not in time.

    A function as ``what`` is asked at the end: it says what was seen instead.
    """
    until_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= until_s:
            seen = what() if callable(what) else what
            raise AssertionError(f"waited {timeout_s:g} s for {seen}")
        time.sleep(0.01)


def dying_with_us(command: list[str]) -> list[str]:
    """The command, to be killed when the process of the tests ends, however that ends. Its pid stays its own.

    Started from the main thread only: it is that thread's end which counts.
    """
    setpriv = shutil.which("setpriv")
    return command if setpriv is None else [setpriv, "--pdeathsig", "KILL", "--", *command]
