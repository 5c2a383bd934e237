"""The Ray runtime behind the jobs: one of our own on this machine, or a cluster that runs already.

Rules that this module keeps:

- Whoever reaches a Ray port can run code. A runtime of our own listens on loopback alone and wants a token
  that exists only in the memory of this process, which drives Ray and nothing else, and its children.
- A runtime of our own dies with this process, even by SIGKILL. The kernel ties Ray's processes to the
  *thread* that started them, so a thread that lives as long as the runtime does it.
- Ray lets a driver join only on a node of the cluster: where this machine is none, it becomes one that lends
  no processors, for as long as we are joined.
- Nothing of it stays behind: a reaper process outlives this one, ends Ray's last processes and removes the
  private folder that holds its files. The next start removes what a killed reaper could not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from cloud.jobs.node import has_node, node_command
from edgeloop.errors import ConfigError, TransientError

logger = logging.getLogger(__name__)

NAMESPACE = "edgeloop"
#: Tasks carry names and figures; data and weights go through the registry. Ray would take 30 % of memory.
OBJECT_STORE_BYTES = 96 * 1024 * 1024
CONNECT_TIMEOUT_S = 5.0
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
#: Ray puts Unix sockets some 65 characters below its folder, and their paths may have 107.
MAX_TEMP_PATH_CHARS = 30
_TEMP_PREFIX = "elray-"

#: Read by Ray when it is imported or by the processes it starts. A value that the operator set stays.
_LOCAL_ENVIRONMENT = {
    # Despite the name, this is what makes every server of Ray listen on loopback only, on Linux too.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # Exporters that nobody scrapes: each would open a port on all interfaces.
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
    "RAY_enable_metrics_collection": "0",
    # Agents and servicers on the same machine go first.
    "RAY_worker_niceness": "15",
}


class Cluster:
    """Start, join and leave Ray. ``address`` is "" for a runtime of our own, else ``host:port`` of a head."""

    def __init__(self, *, address: str = "", num_cpus: int | None = None) -> None:
        if address and num_cpus is not None:
            raise ConfigError(
                "compute.num_cpus is set beside compute.address: a cluster has its own CPUs; leave one out",
                code="ray-address",
            )
        if num_cpus is not None and num_cpus < 1:
            raise ConfigError(f"compute.num_cpus is {num_cpus}: it must be 1 or more", code="ray-num-cpus")
        self._address = address
        self._num_cpus = num_cpus
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._leave = threading.Event()
        self._error: BaseException | None = None
        self._servers: list[psutil.Process] = []
        self.log_dir = ""

    def start(self) -> None:
        """Block until Ray answers. Raises ``ConfigError`` when the address cannot be used."""
        if self._thread is not None:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self._address:
            _check_reachable(self._address)
        self._ready.clear()
        self._leave.clear()
        self._error = None
        self._thread = threading.Thread(target=self._live, name="ray-owner", daemon=True)
        self._thread.start()
        started = self._ready.wait(START_TIMEOUT_S)
        if not started or self._error is not None:
            self._leave.set()
            self._thread = None
            error = self._error or TimeoutError(f"no answer in {START_TIMEOUT_S:.0f} s")
            if self._address:
                raise ConfigError(
                    f"compute.address is {self._address}: Ray does not let us in: {error}", code="ray-address"
                ) from error
            raise TransientError(
                f"Ray cannot be started on this machine: {error}", code="ray-start"
            ) from error

    def stop(self) -> None:
        """Leave, and end a runtime of our own with everything that it runs. Safe to call twice."""
        thread, self._thread = self._thread, None
        self._servers = []
        if thread is not None:
            self._leave.set()
            thread.join(2 * STOP_TIMEOUT_S)

    @property
    def is_lost(self) -> bool:
        """Whether a process of Ray on this machine without which we cannot work has died."""
        return self._thread is not None and any(
            not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in self._servers
        )

    def describe(self) -> str:
        """For people: where the work runs."""
        where = f"Ray at {self._address}" if self._address else "local Ray"
        if self._thread is None:
            return f"{where}, not started"
        import ray

        resources = ray.cluster_resources()
        parts = [where]
        for kind in ("CPU", "GPU"):
            number = int(resources.get(kind, 0))
            if number or kind == "CPU":
                parts.append(f"{number} {kind}" + ("" if number == 1 else "s"))
        return ", ".join(parts)

    def _live(self) -> None:
        reaper: subprocess.Popen[bytes] | None = None
        node: subprocess.Popen[bytes] | None = None
        try:
            if self._address:
                node = self._become_node()
                self._join()
            else:
                folder = _private_folder()
                reaper = _start_reaper(folder)
                self._start_local(folder)
        except BaseException as error:  # noqa: BLE001  # it is raised again, in the thread that called start()
            self._error = error
        self._ready.set()
        if self._error is None:
            self._leave.wait()
        with contextlib.suppress(Exception):
            import ray

            ray.shutdown()
        if node is not None:
            _end(node)
        if reaper is not None and reaper.stdin is not None:
            reaper.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                reaper.wait(STOP_TIMEOUT_S)

    def _start_local(self, folder: Path) -> None:
        if "ray" in sys.modules and "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ:
            logger.warning("Ray was imported before its settings were made: only the token guards its ports")
        for name, value in _LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if not any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        import ray

        _quiet()

        context: Any = ray.init(
            address="local",
            num_cpus=self._num_cpus,
            include_dashboard=False,
            configure_logging=False,
            log_to_driver=False,
            namespace=NAMESPACE,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
            job_config=_job_config(),
        )
        self._servers = [
            process for process in psutil.Process().children() if process.name() in ("raylet", "gcs_server")
        ]
        self.log_dir = str(Path(str(context.address_info["session_dir"]), "logs"))

    def _become_node(self) -> subprocess.Popen[bytes] | None:
        if has_node(self._address):
            return None
        node = subprocess.Popen(node_command(self._address), stdout=subprocess.DEVNULL, stderr=None)
        until_s = time.monotonic() + START_TIMEOUT_S / 2
        while not has_node(self._address):
            if node.poll() is not None or time.monotonic() > until_s:
                _end(node)
                raise TransientError("this machine cannot become a node of the cluster", code="ray-node")
            time.sleep(0.2)
        self._servers = [psutil.Process(node.pid)]
        return node

    def _join(self) -> None:
        import ray

        _quiet()

        ray.init(
            address=self._address,
            configure_logging=False,
            log_to_driver=False,
            namespace=NAMESPACE,
            job_config=_job_config(),
        )


def _job_config() -> Any:
    """Keeps the working directory out of the workers' import path.

    Ray puts it first, so that a folder that happens to be called ``cloud`` where somebody starts us would be
    imported in place of ours.
    """
    from ray.job_config import JobConfig

    return JobConfig(_client_job=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _quiet() -> None:
    """Ray tells its own life at INFO; what a user must know is said by us."""
    logging.getLogger("ray").setLevel(logging.ERROR)


def _check_reachable(address: str) -> None:
    """Ray itself would retry for minutes, and then end the process."""
    if "://" in address:
        raise ConfigError(
            f"compute.address is {address!r}: give host:port of the cluster's head (its GCS port, 6379), and "
            "run edgeloop on a node of the cluster; Ray Client addresses are not supported",
            code="ray-address",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"compute.address is {address!r}: it must be host:port", code="ray-address")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(
            f"compute.address is {address}: cannot be reached: {error.strerror or error}; start the cluster "
            "(`ray start --head`), or leave the address out to run Ray on this machine",
            code="ray-address",
        ) from error


def _private_folder() -> Path:
    parent = tempfile.gettempdir()
    if len(parent) > MAX_TEMP_PATH_CHARS:
        parent = "/tmp"  # noqa: S108  # mkdtemp makes the folder private; a longer path breaks Ray's sockets
    _sweep(Path(parent))
    return Path(tempfile.mkdtemp(prefix=f"{_TEMP_PREFIX}{os.getpid()}-", dir=parent))


def _start_reaper(folder: Path) -> subprocess.Popen[bytes]:
    """In a session of its own, so that Ctrl-C in our terminal does not end it before its work begins."""
    command = [sys.executable, "-I", str(Path(__file__).with_name("reaper.py")), str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _sweep(parent: Path) -> None:
    """Remove the folders of processes of ours that were killed together with their reapers."""
    for folder in parent.glob(f"{_TEMP_PREFIX}*"):
        pid = folder.name.removeprefix(_TEMP_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and folder.stat().st_uid == os.getuid() and not Path("/proc", pid).exists():
                shutil.rmtree(folder, ignore_errors=True)
