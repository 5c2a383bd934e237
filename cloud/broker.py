"""The embedded broker: one MQTT 3.1.1 broker in a process of its own, for one machine.

Rules that this module keeps:

* The broker is a cache. It persists nothing; whoever publishes must be ready to publish everything again.
* The broker never outlives its supervisor, not even when that is killed with SIGKILL: it exits at the end of
  its standard input, whose other end only the supervisor holds.
* A broker that dies comes back on the same port, with full-jitter back-off, until ``stop``.
* It listens on loopback only unless told otherwise, takes anonymous clients, and logs warnings alone: a
  fleet beyond one machine belongs on a broker with certificates.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from edgeloop.backoff import Backoff
from edgeloop.errors import ConfigError, TransientError

logger = logging.getLogger(__name__)

#: Exit statuses of the broker's process that the supervisor understands.
_EXIT_PORT_IN_USE = 98
_EXIT_CANNOT_BIND = 99

_START_TIMEOUT_S = 20.0
#: A predecessor that was killed needs a moment to see the end of its standard input and let go of the port.
_BIND_RETRY_S = 3.0


class EmbeddedBroker:
    """Runs the broker's process and keeps it running.

    ``start`` returns once the port accepts connections. The port that was got first is kept over restarts,
    so that clients find the broker again. Safe to call from any thread; ``stop`` is idempotent.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        work_dir: Path,
        log_path: Path | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.num_restarts = 0
        self._port_file = work_dir / "broker.json"
        self._log_path = log_path
        self._backoff = backoff or Backoff(0.1, 5.0, random.Random())
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._supervisor: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """The broker's process id, or None while it is down."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start the broker and its supervision.

        Raises ``ConfigError`` when the port is taken or cannot be bound, ``TransientError`` when the process
        does not come up.
        """
        self._spawn()
        try:
            self.port = self._wait_ready()
        except BaseException:
            self._kill()
            raise
        self._supervisor = threading.Thread(target=self._supervise, name="broker-supervisor", daemon=True)
        self._supervisor.start()

    def stop(self) -> None:
        """End supervision and the broker."""
        self._stopping.set()
        self._kill()
        if self._supervisor is not None and self._supervisor is not threading.current_thread():
            self._supervisor.join(timeout=5.0)
        self._kill()  # in case the supervisor was just starting a new one
        self._port_file.unlink(missing_ok=True)

    def _spawn(self) -> None:
        self._port_file.parent.mkdir(parents=True, exist_ok=True)
        self._port_file.unlink(missing_ok=True)
        # -P: no module is ever taken from the working directory.
        command = [sys.executable, "-P", "-m", "cloud.broker", "--host", self.host, "--port", str(self.port)]
        command += ["--port-file", str(self._port_file)]
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self._log_path.open("ab")) if self._log_path else subprocess.DEVNULL
            # A session of its own: Ctrl-C reaches the supervisor alone, which stops the broker last.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
            )

    def _wait_ready(self) -> int:
        process = self._process
        assert process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and not self._stopping.is_set():
            status = process.poll()
            if status == _EXIT_PORT_IN_USE:
                raise ConfigError(
                    f"broker_port {self.port} on {self.host} is in use by another program: stop that, "
                    "choose another with --broker-port (0 takes a free one), or use it with --broker",
                    code="port-in-use",
                )
            if status == _EXIT_CANNOT_BIND:
                raise ConfigError(
                    f"the embedded broker cannot listen on {self.host}:{self.port}: check --host and "
                    "--broker-port (ports under 1024 need privileges)",
                    code="port-unavailable",
                )
            if status is not None:
                raise TransientError(
                    f"the embedded broker ended with status {status} while it started"
                    + (f": see {self._log_path}" if self._log_path else ""),
                    code="broker-failed",
                )
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
                ready = json.loads(self._port_file.read_text())
                if ready["pid"] == process.pid:
                    return int(ready["port"])
            time.sleep(0.01)
        raise TransientError(
            f"the embedded broker did not start within {_START_TIMEOUT_S:.0f} s", code="broker-failed"
        )

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            process = self._process
            assert process is not None
            status = process.wait()
            if self._stopping.is_set():
                return
            delay_s = self._backoff.next()
            logger.warning(
                "embedded broker ended with status %s: starting it again in %.1f s", status, delay_s
            )
            if self._stopping.wait(delay_s):
                return
            self.num_restarts += 1
            self._spawn()
            try:
                self._wait_ready()
                self._backoff.reset()
                logger.info("embedded broker is back on port %d", self.port)
            except (ConfigError, TransientError) as error:
                logger.warning("%s", error)
                self._kill()

    def _kill(self) -> None:
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=2.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start_embedded(*, host: str, ports: Sequence[int], state_dir: Path) -> EmbeddedBroker:
    """One that serves on the first port that is free. Raises ``ConfigError`` when none of them is."""
    last: ConfigError | None = None
    for port in ports:
        broker = EmbeddedBroker(
            host=host, port=port, work_dir=state_dir, log_path=state_dir / "logs" / "broker.log"
        )
        try:
            broker.start()
        except ConfigError as error:
            last = error
        else:
            return broker
    assert last is not None
    raise last


def _write_ready(path: Path, port: int) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"port": port, "pid": os.getpid()}))
    temporary.replace(path)


async def _serve(host: str, port: int, port_file: Path) -> int:
    from cloud.amqtt_broker import (
        QuietBroker,
    )  # the import costs 0.1 s, and only the broker's process needs it

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)

    def parent_spoke() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            ended.set()

    loop.add_reader(0, parent_spoke)

    deadline = loop.time() + _BIND_RETRY_S
    while True:
        broker = QuietBroker(host, port)
        try:
            await broker.start()
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                logger.error("cannot listen on %s:%d: %s", host, port, error)
                return _EXIT_CANNOT_BIND
            if loop.time() > deadline or ended.is_set():
                return _EXIT_PORT_IN_USE
            await asyncio.sleep(0.1)
    _write_ready(port_file, broker.port)
    await ended.wait()
    logging.disable(logging.CRITICAL)  # amqtt logs the end of its own tasks as errors, with tracebacks
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The broker's process: ``python -m cloud.broker --port N --port-file F``."""
    parser = argparse.ArgumentParser(prog="python -m cloud.broker", description="The embedded MQTT broker.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883, help="0 takes a free one")
    parser.add_argument("--port-file", type=Path, required=True, help="gets the port as JSON once it serves")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s broker %(name)s: %(message)s"
    )
    return asyncio.run(_serve(options.host, options.port, options.port_file))


if __name__ == "__main__":
    sys.exit(main())
