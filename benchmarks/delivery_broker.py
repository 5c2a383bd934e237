"""A real Mosquitto of a benchmark's own, with what deploy/mosquitto sets for a fleet, without TLS."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOST = "127.0.0.1"


class Broker:
    """A real Mosquitto of its own, with what deploy/mosquitto sets for a fleet, without TLS."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        if program is None:
            raise SystemExit("mosquitto is not installed: this benchmark measures it")
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port = int(probe.getsockname()[1])
        config = folder / f"mosquitto-{self.port}.conf"
        config.write_text(
            f"user root\nlistener {self.port} {HOST}\nallow_anonymous true\npersistence false\n"
            "max_packet_size 1048576\nmax_inflight_messages 20\nmax_queued_messages 1000\n"
            "set_tcp_nodelay true\n"
        )
        self._process = subprocess.Popen(
            [program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until_s = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((HOST, self.port), timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > until_s:
                    raise RuntimeError("mosquitto did not start") from None
                time.sleep(0.02)

    @property
    def peak_rss_bytes(self) -> int:
        return memory_bytes(self._process.pid, "VmHWM")

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


def memory_bytes(pid: int, field: str) -> int:
    """One line of /proc/PID/status; 0 when it is not there."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


@contextmanager
def running_broker(folder: Path) -> Iterator[Broker]:
    broker = Broker(folder)
    try:
        yield broker
    finally:
        broker.stop()
