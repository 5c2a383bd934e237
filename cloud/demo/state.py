"""What a demonstration must remember, so that ``--resume`` goes on where Ctrl-C stopped it.

Everything else (teacher, students, deployments, reports) is in the state of the control plane and the agents,
which resume by themselves.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgeloop.errors import ConfigError

FILE = "demo.json"
VERSION = 1


@dataclass(kw_only=True, slots=True)
class DemoState:
    """``objectives`` are p95 in ms by profile, empty until calibrated. Times are seconds since the epoch."""

    example: str
    control_port: int
    fleet_port: int
    broker_port: int
    start_s: float
    objectives: dict[str, float] = field(default_factory=dict)
    objective_time_s: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    version: int = VERSION

    def save(self, folder: Path) -> None:
        """Write it so that a crash leaves the old or the new state, never half of one."""
        temporary = folder / f".{FILE}"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / FILE)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


def hold(folder: Path) -> int:
    """Take the folder until the process ends, or the descriptor that this returns is closed.

    Raises ``ConfigError`` while another demonstration runs there. The lock is on the folder itself and leaves
    no file behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError(
            f"another demonstration runs in {folder}: stop that with Ctrl-C, or choose another --out",
            code="demo-running",
        ) from None
    return descriptor


def open_state(folder: Path, example: Path, *, resume: bool, now_s: float) -> DemoState:
    """Begin in an empty folder, or go on with what is there.

    Without ``resume`` an earlier demonstration's folder is cleared; a folder that holds anything else is
    never touched. Raises ``ConfigError``.
    """
    path = folder / FILE
    if resume:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            state = DemoState(**values)
        except FileNotFoundError:
            raise ConfigError(
                f"nothing to resume in {folder}: leave out --resume", code="demo-resume"
            ) from None
        except (ValueError, TypeError):
            raise ConfigError(
                f"{path} is damaged: start again without --resume", code="demo-resume"
            ) from None
        if state.version != VERSION:
            raise ConfigError(
                f"{path} is of version {state.version}, this edgeloop reads {VERSION}: leave out --resume",
                code="demo-resume",
            )
        if state.example != str(example.resolve()):
            raise ConfigError(
                f"{folder} holds a demonstration of {state.example}: resume that, or choose another --out",
                code="demo-resume",
            )
        return state
    if folder.exists() and any(folder.iterdir()):
        if not path.exists():
            raise ConfigError(
                f"{folder} holds something that is no demonstration: choose another --out", code="demo-folder"
            )
        for entry in folder.iterdir():  # the folder itself carries the lock
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    control, fleet, broker = free_ports(3)
    state = DemoState(
        example=str(example.resolve()),
        control_port=control,
        fleet_port=fleet,
        broker_port=broker,
        start_s=now_s,
    )
    state.save(folder)
    return state
