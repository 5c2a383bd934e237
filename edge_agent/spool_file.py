"""The SQLite file under the report spool: opened late, set aside when damaged, done without when it fails.

Rules that this module keeps:

- Nothing is opened before it is used. Each use is one transaction, by one thread at a time.
- What cannot be opened, read or written (full, failing or read-only disk) leaves the file degraded: that is
  said once at WARNING, and until the next try every use is a ``TransientError`` (``spool-write``) at once.
- Tries follow a back-off with full jitter. A try begins with ``on_ready``, whose write shows whether the disk
  takes writes again; the failures after it are new ones only once something was kept (``stood``).
- A damaged file is moved aside (one is kept), counted in its name, and a fresh one begun.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from edgeloop.backoff import Backoff
from edgeloop.errors import TransientError

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA_VERSION: Final = 1
CORRUPTIONS: Final = "corruptions"
WRITE: Final = "spool-write"
# One agent owns the file; whoever else holds it is a person who looks, and the agent does not wait long.
_BUSY_TIMEOUT_S: Final = 1.0

_SCHEMA: Final = (
    """CREATE TABLE reports (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        boot_id TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        payload BLOB NOT NULL,
        UNIQUE (boot_id, sequence))""",
    """CREATE TABLE statuses (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        generation INTEGER NOT NULL,
        state INTEGER NOT NULL,
        payload BLOB NOT NULL,
        UNIQUE (generation, state))""",
    "CREATE TABLE sequences (boot_id TEXT PRIMARY KEY, last INTEGER NOT NULL)",
    "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class DamagedError(Exception):
    """The file is no spool, or no longer."""


class SpoolFile:
    """Safe to use from any thread."""

    def __init__(
        self,
        path: Path,
        *,
        on_ready: Callable[[sqlite3.Connection, bool], None],
        on_set_aside: Callable[[], None],
        backoff: Backoff | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``on_ready(connection, must_write)`` is called with a file just opened, or to be tried again."""
        self._path = path
        self._on_ready = on_ready
        self._on_set_aside = on_set_aside
        self._backoff = backoff or Backoff(1.0, 60.0)
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._closed = False
        self._connection: sqlite3.Connection | None = None
        self._complained = False
        self._retry_at_s = 0.0
        #: Why nothing can be kept now; empty while all is well, and before the first use.
        self.problem = ""

    def transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What ``work`` returns, which must commit what it wrote. Raises TransientError."""
        with self._lock:
            if self._closed:
                raise TransientError("the report spool is closed", code="spool-closed")
            if self.problem and self._monotonic() < self._retry_at_s:
                raise TransientError(
                    f"the report spool {self._path} waits for the disk ({self.problem})", code=WRITE
                )
            try:
                try:
                    return self._attempt(work)
                except DamagedError as error:
                    logger.error(
                        "the report spool %s is damaged (%s); beginning a fresh one", self._path, error
                    )
                    self._disconnect()
                    self._set_aside()
                    return self._attempt(work)
            except (OSError, sqlite3.Error, DamagedError) as error:
                self._degrade(error)
                raise TransientError(
                    f"cannot use the report spool {self._path}: {error}; is the disk full?", code=WRITE
                ) from error

    def stood(self) -> None:
        """Something was kept: the next failure is a new one."""
        with self._lock:
            if self._complained:
                logger.info("the report spool %s works again", self._path)
            self._complained = False
            self._backoff.reset()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._disconnect()

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is None:
                self._connection = self._open()
                self._on_ready(self._connection, bool(self.problem))
            elif self.problem:
                self._on_ready(self._connection, True)
            self.problem = ""
            return work(self._connection)
        except sqlite3.Error as error:
            self._roll_back()
            if _is_damage(error):
                raise DamagedError(str(error)) from error
            raise

    def _degrade(self, error: Exception) -> None:
        self.problem = str(error)
        self._retry_at_s = self._monotonic() + self._backoff.next()
        if _primary_code(error) not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY):
            # What is on the disk now is for the next one to open it to find out. (A full disk is no such
            # case, and the room that the file has already is not to be given up.)
            self._disconnect()
        logger.log(
            logging.DEBUG if self._complained else logging.WARNING,
            "the report spool %s cannot be used (%s): serving does not need it, but reports are dropped and "
            "deployment statuses wait; free some room on that disk, or check its health and the owner of the "
            "state folder; it is tried again without a restart",
            self._path,
            error,
        )
        self._complained = True

    def _roll_back(self) -> None:
        if self._connection is not None:
            try:
                self._connection.rollback()
            except sqlite3.Error:
                self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error as error:  # its last checkpoint; the next to open the file makes it
                logger.debug("the report spool closed badly reason=%s", error)

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, check_same_thread=False, timeout=_BUSY_TIMEOUT_S)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA cache_size = -256")  # KiB: a spool is read once, front to back
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    for statement in _SCHEMA:
                        connection.execute(statement)
                    count(connection, CORRUPTIONS, self._num_set_aside())
            elif version != SCHEMA_VERSION:
                raise DamagedError(f"schema version {version}, this agent knows {SCHEMA_VERSION}")
            else:
                (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if verdict != "ok":
                    raise DamagedError(verdict)
        except (sqlite3.Error, DamagedError):
            connection.close()
            raise
        return connection

    def _set_aside(self) -> None:
        """Keeps the damaged file for whoever wants to look; the number in its name outlives it."""
        self._on_set_aside()
        number = self._num_set_aside() + 1
        older = self._were_set_aside()
        self._path.replace(self._path.with_name(f"{self._path.name}.damaged-{number}"))
        for path in [
            *older,
            *(self._path.with_name(self._path.name + suffix) for suffix in ("-wal", "-shm")),
        ]:
            path.unlink(missing_ok=True)

    def _were_set_aside(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.name}.damaged-*"))

    def _num_set_aside(self) -> int:
        numbers = [path.name.rpartition("-")[2] for path in self._were_set_aside()]
        return max((int(number) for number in numbers if number.isdigit()), default=0)


def counter(connection: sqlite3.Connection, name: str) -> int:
    """A number that outlives the process."""
    row = connection.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def count(connection: sqlite3.Connection, name: str, number: int) -> None:
    connection.execute(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        (name, number),
    )


def _primary_code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _is_damage(error: sqlite3.Error) -> bool:
    damage = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return _primary_code(error) in damage or "no such table" in str(error)
