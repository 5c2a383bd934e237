"""Stands beside a Ray runtime of our own and clears up after it. Run as a script; standard library only.

Standard input is a pipe whose other end only the process that started Ray holds: end of file means that it
left or was killed, SIGKILL included. The kernel then ends what that process started itself, but Ray's agents
are grandchildren and would linger for a minute. Whatever has a file open in the runtime's folder is one of
Ray's processes; it is killed, and the folder removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

LIMIT_S = 10.0


def users(folder: str, spared: frozenset[int]) -> list[int]:
    """Processes of ours with a file open below ``folder``, but for those that are spared."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) in spared:
            continue
        try:
            if any(str(link.readlink()).startswith(folder + "/") for link in (process / "fd").iterdir()):
                found.append(int(process.name))
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
    return found


def main(folder: str) -> None:
    # Who started the runtime may have left it and go on, with one of its log files still open.
    spared = frozenset({os.getpid(), os.getppid()})
    sys.stdin.buffer.read()
    limit_s = time.monotonic() + LIMIT_S
    while (pids := users(folder, spared)) and time.monotonic() < limit_s:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
