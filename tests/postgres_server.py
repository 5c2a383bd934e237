"""A PostgreSQL server of one's own for tests: found, started on a socket in a private folder, and ended.

Nothing is listened on but a Unix socket. The server refuses to run as root, so root starts it as another
user. It does not flush to the disk: what tests kill is its clients, not the machine.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from machine import WAIT_S, dying_with_us

#: Debian keeps the server's programs out of the PATH.
_DEBIAN = Path("/usr/lib/postgresql")
_SETTINGS = (
    "fsync=off",
    "full_page_writes=off",
    "listen_addresses=",
    "max_connections=60",
    "shared_buffers=16MB",
)


def find_programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres``, the newest there is; None when none is installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    folders = [path.parent for path in _DEBIAN.glob("*/bin/initdb")]
    return max(folders, key=lambda path: int(path.parent.name), default=None)


class PostgresServer:
    """``url(name)`` is a database's address for SQLAlchemy."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="elpg-"))
        self._user = _unprivileged_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._num_databases = 0
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        data = self._folder / "data"
        self._run(
            "initdb", "-D", str(data), "-U", "edgeloop", "-A", "trust", "-E", "UTF8", "-N", "--no-locale"
        )

    def start(self) -> None:
        """Start it, and return once it answers."""
        settings = [word for setting in _SETTINGS for word in ("-c", setting)]
        command = [
            self._program("postgres"),
            "-D",
            str(self._folder / "data"),
            "-k",
            str(self._folder),
            *settings,
        ]
        with (self._folder / "log").open("ab") as log:
            command = dying_with_us(command)
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._as_user())
        until_s = time.monotonic() + WAIT_S
        while time.monotonic() < until_s:
            if self._try("pg_isready", "-h", str(self._folder), "-q"):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"postgres did not start: {(self._folder / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End it at once, whoever is connected."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGQUIT)
            process.wait(WAIT_S)

    def close(self) -> None:
        """End it and remove all of it."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def new_database(self) -> str:
        """Create an empty one; its URL."""
        self._num_databases += 1
        name = f"edgeloop{self._num_databases}"
        self._run("createdb", "-h", str(self._folder), "-U", "edgeloop", "-T", "template0", name)
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://edgeloop@/{name}?host={self._folder}"

    def _program(self, name: str) -> str:
        return str(self._programs / name)

    def _as_user(self) -> dict[str, object]:
        if self._user is None:
            return {"cwd": self._folder}
        return {
            "cwd": self._folder,
            "user": self._user.pw_uid,
            "group": self._user.pw_gid,
            "extra_groups": [],
        }

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._program(program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            **self._as_user(),
        )
        assert done.returncode == 0, f"{program} failed: {done.stderr[-2000:]}"

    def _try(self, program: str, *arguments: str) -> bool:
        done = subprocess.run([self._program(program), *arguments], capture_output=True, check=False)
        return done.returncode == 0


def _unprivileged_user() -> pwd.struct_passwd | None:
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("neither a user postgres nor nobody: run the tests as an unprivileged user")
