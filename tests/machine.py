"""What tests ask of the machine that they run on."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

import pytest

REQUIRE_ALL = os.environ.get("EDGELOOP_REQUIRE_ALL") == "1"


def missing(what: str) -> None:
    """Skip for want of a program, or fail where nothing may be skipped (EDGELOOP_REQUIRE_ALL=1)."""
    if REQUIRE_ALL:
        pytest.fail(f"{what} is not installed, and EDGELOOP_REQUIRE_ALL=1 forbids to skip")
    pytest.skip(f"{what} is not installed")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], what: str = "it", timeout_s: float = 15.0) -> None:
    """Return as soon as the condition holds; fail, naming ``what``, when it does not in time."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.01)
