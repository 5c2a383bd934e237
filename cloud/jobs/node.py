"""Makes this machine a node of a Ray cluster that lends it no processors, so that a driver here may join.

This file, run with HOST:PORT, becomes ``ray start --block``, and ends at once with the thread that started
it. (Told by SIGTERM it would first take leave of the head, and wait for one that is gone: whoever comes next
would find a node here that goes down under it.)
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

import psutil

#: The least that Ray takes: what a driver of ours gets from tasks are names and figures.
_OBJECT_STORE_BYTES = 80 * 1024 * 1024
_PR_SET_PDEATHSIG = 1

_LOOPBACK = "127.0.0.1"

#: Nodes with this label get no tasks, not even those that ask for no processor.
ROLE_LABEL = "edgeloop-role"
DRIVER_ROLE = "driver"


def has_node(address: str) -> bool:
    """Whether a node of this cluster runs on this machine already."""
    wanted = _resolved(address)
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] != "raylet":
            continue
        for word in process.info["cmdline"] or ():
            name, _, value = word.partition("=")
            if name.lstrip("-").replace("_", "-") == "gcs-address" and _resolved(value) == wanted:
                return True
    return False


def node_command(address: str) -> list[str]:
    """What to start for one. Its exit means that the node is gone."""
    return [sys.executable, str(Path(__file__)), address]


def _resolved(address: str) -> tuple[str, str]:
    """Address and port; the same for all addresses of this machine, which Ray never calls loopback."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.gethostbyname(host.strip("[]"))
    except OSError:
        return host, port
    own = {item.address for items in psutil.net_if_addrs().values() for item in items}
    return (_LOOPBACK if found in own else found), port


def die_with_parent(by: signal.Signals) -> None:
    """Have the kernel send this process that signal when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)


def main() -> None:
    die_with_parent(signal.SIGKILL)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        *("--address", sys.argv[1], "--num-cpus", "0", "--num-gpus", "0"),
        *("--object-store-memory", str(_OBJECT_STORE_BYTES), "--log-style", "record"),
        *("--labels", f"{ROLE_LABEL}={DRIVER_ROLE}"),
    ]
    os.execv(command[0], command)  # noqa: S606  # a fixed program, and no shell


if __name__ == "__main__":
    main()
