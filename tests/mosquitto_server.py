"""A Mosquitto of one's own for tests: started, stopped, killed, frozen and started again on the same port."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from machine import WAIT_S, dying_with_us, free_port


class Mosquitto:
    """A broker of one's own. It keeps nothing over a restart, as the broker is a cache to us."""

    host = "127.0.0.1"

    def __init__(self, program: str, directory: Path) -> None:
        self.port = free_port()
        self.settings = "allow_anonymous true"
        self._program = program
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "start it first"
        return self._process.pid

    def start(self) -> None:
        """Start it, on the same port each time, and return once it accepts connections."""
        config = self._directory / "mosquitto.conf"
        # Started by root, it would give up the rights to read this directory.
        user = f"user {getpass.getuser()}"
        config.write_text(f"{user}\nlistener {self.port} {self.host}\npersistence false\n{self.settings}\n")
        log = (self._directory / "mosquitto.log").open("ab")
        with log:
            command = dying_with_us([self._program, "-c", str(config)])
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until_s = time.monotonic() + WAIT_S
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=5).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > until_s:
                    text = (self._directory / "mosquitto.log").read_text(errors="replace")
                    raise AssertionError(f"mosquitto did not start: {text[-2000:]}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End it as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without any goodbye."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Keep its connections open but have it do nothing, like a host that vanished."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(how)
            if how is not signal.SIGKILL:
                process.send_signal(signal.SIGCONT)  # one that is frozen would never hear of it
            process.wait(WAIT_S)
