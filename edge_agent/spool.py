"""Reports and deployment statuses that the cloud has not acknowledged yet, in one SQLite file.

Rules that this module keeps:

- What ``append`` or ``enqueue_status`` returned from survives kill -9 and power loss (WAL, synchronous=FULL).
- (boot_id, sequence) is given here, once: sequences of a boot start at 1 and have no gaps and no repeats,
  also when the spool is opened again under the same boot id.
- Only what was acknowledged by its exact key is deleted. A status that was replaced by a newer one while
  the older was on its way stays.
- The spool is bounded in rows and bytes. For want of room the oldest reports go, and a counter that
  outlives the process says how many.
- A damaged file never stops the agent: it is moved aside (one is kept), counted, and a fresh one begun.
- A full or failing disk is a ``TransientError`` (``spool-write``) that changes nothing.
- Of a deployment, only what still matters is kept: the newest event of each state, and once a terminal
  state is there, that alone.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from edgeloop.errors import ConfigError, TransientError
from edgeloop.v1 import deployment_pb2, telemetry_pb2

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA_VERSION: Final = 1
MAX_STATUSES: Final = 1000
TERMINAL_STATES: Final = frozenset(
    {
        deployment_pb2.DEPLOYMENT_STATE_ACTIVE,
        deployment_pb2.DEPLOYMENT_STATE_REJECTED,
        deployment_pb2.DEPLOYMENT_STATE_ROLLED_BACK,
        deployment_pb2.DEPLOYMENT_STATE_SUPERSEDED,
    }
)

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
_DROPPED: Final = "dropped_reports"
_REJECTED: Final = "rejected_reports"
_CORRUPTIONS: Final = "corruptions"


class _DamagedError(Exception):
    """The file is no spool, or no longer."""


class ReportSpool:
    """Safe to call from any thread; each call is one transaction."""

    def __init__(
        self, path: Path, *, boot_id: str, max_rows: int = 20_000, max_bytes: int = 32 << 20
    ) -> None:
        if max_rows < 1 or max_bytes < 1:
            raise ValueError("max_rows and max_bytes must be at least 1")
        self._path = path
        self._boot_id = boot_id
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._closed = False
        self._last_sequence = 0
        self._num_rows = 0
        self._num_bytes = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection: sqlite3.Connection | None = self._open_or_renew()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"cannot open the report spool {path}: {error}; check the state directory's owner and room",
                code="spool-open",
            ) from error

    def append(self, report: telemetry_pb2.LatencyReport) -> int:
        """Stores a copy under this boot's next sequence, which it returns once it is durable.

        Fills in ``boot_id``, ``sequence`` and ``num_dropped_reports`` of the copy.
        """
        stored = telemetry_pb2.LatencyReport()
        stored.CopyFrom(report)

        def write(connection: sqlite3.Connection) -> int:
            sequence = self._last_sequence + 1
            stored.boot_id = self._boot_id
            stored.sequence = sequence
            stored.num_dropped_reports = _counter(connection, _DROPPED)
            payload = stored.SerializeToString()
            connection.execute(
                "INSERT INTO reports (boot_id, sequence, payload) VALUES (?, ?, ?)",
                (self._boot_id, sequence, payload),
            )
            connection.execute(
                "INSERT OR REPLACE INTO sequences VALUES (?, ?)",
                (self._boot_id, sequence),
            )
            num_rows, num_bytes = self._drop_oldest(connection, len(payload))
            connection.commit()
            self._last_sequence, self._num_rows, self._num_bytes = sequence, num_rows, num_bytes
            return sequence

        return self._transact(write)

    def batch(self, limit: int, *, max_bytes: int = 1 << 20) -> list[telemetry_pb2.LatencyReport]:
        """The oldest reports, at least one where there are any; they stay until acknowledged."""

        def read(connection: sqlite3.Connection) -> list[telemetry_pb2.LatencyReport]:
            reports: list[telemetry_pb2.LatencyReport] = []
            unreadable: list[int] = []
            num_bytes = 0
            for row_id, payload in connection.execute(
                "SELECT id, payload FROM reports ORDER BY id LIMIT ?", (limit,)
            ):
                num_bytes += len(payload)
                if reports and num_bytes > max_bytes:
                    break
                try:
                    reports.append(telemetry_pb2.LatencyReport.FromString(payload))
                except DecodeError:
                    unreadable.append(row_id)
            if unreadable:
                connection.executemany("DELETE FROM reports WHERE id = ?", [(row,) for row in unreadable])
                _count(connection, _DROPPED, len(unreadable))
                connection.commit()
                self._measure(connection)
            return reports

        return self._transact(read)

    def acknowledge(self, keys: Iterable[tuple[str, int]]) -> int:
        """Deletes exactly these (boot_id, sequence); how many were there."""
        return self._transact(lambda connection: self._delete(connection, keys))

    def reject(self, keys: Iterable[tuple[str, int]]) -> int:
        """Deletes reports that the cloud will never accept, and counts them."""

        def write(connection: sqlite3.Connection) -> int:
            return self._delete(connection, keys, counter=_REJECTED)

        return self._transact(write)

    def enqueue_status(self, status: deployment_pb2.DeploymentStatus) -> None:
        """Stores a status, durably, for delivery in the order of arrival."""
        key = (status.generation, status.state)
        payload = status.SerializeToString()

        def write(connection: sqlite3.Connection) -> None:
            if status.state in TERMINAL_STATES:
                connection.execute("DELETE FROM statuses WHERE generation = ?", key[:1])
            # A new row, not an update: the id says which event was delivered.
            connection.execute("INSERT OR REPLACE INTO statuses VALUES (NULL, ?, ?, ?)", (*key, payload))
            connection.execute(
                "DELETE FROM statuses WHERE id NOT IN (SELECT id FROM statuses ORDER BY id DESC LIMIT ?)",
                (MAX_STATUSES,),
            )
            connection.commit()

        self._transact(write)

    def pending_statuses(self, limit: int = 100) -> list[tuple[int, deployment_pb2.DeploymentStatus]]:
        """(row id, status), oldest first."""

        def read(connection: sqlite3.Connection) -> list[tuple[int, deployment_pb2.DeploymentStatus]]:
            found = connection.execute("SELECT id, payload FROM statuses ORDER BY id LIMIT ?", (limit,))
            try:
                return [(row, deployment_pb2.DeploymentStatus.FromString(payload)) for row, payload in found]
            except DecodeError as error:
                raise _DamagedError(str(error)) from error

        return self._transact(read)

    def status_delivered(self, row_id: int) -> None:
        """Deletes the status of this row."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM statuses WHERE id = ?", (row_id,))
            connection.commit()

        self._transact(write)

    @property
    def num_pending(self) -> int:
        """Reports that wait."""
        return self._num_rows

    @property
    def num_bytes(self) -> int:
        """What the waiting reports weigh."""
        return self._num_bytes

    @property
    def num_dropped(self) -> int:
        """Reports dropped for want of room since this device was installed."""
        return self._transact(lambda connection: _counter(connection, _DROPPED))

    @property
    def num_rejected(self) -> int:
        """Reports that the cloud refused for good."""
        return self._transact(lambda connection: _counter(connection, _REJECTED))

    @property
    def num_corruptions(self) -> int:
        """How often a damaged file had to be moved aside."""
        return self._transact(lambda connection: _counter(connection, _CORRUPTIONS))

    def close(self) -> None:
        """Closes the file; what it holds is there at the next start."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            if self._closed:
                raise TransientError("the report spool is closed", code="spool-closed")
            try:
                try:
                    return self._attempt(work)
                except _DamagedError as error:
                    logger.error("the report spool is damaged (%s); beginning a fresh one", error)
                    self._disconnect()
                    self._move_aside()
                    return self._attempt(work)
            except (OSError, sqlite3.Error, _DamagedError) as error:
                raise TransientError(
                    f"cannot use the report spool {self._path}: {error}; is the disk full?",
                    code="spool-write",
                ) from error

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:  # an earlier attempt could not open it again
            self._connection = self._open()
        try:
            return work(self._connection)
        except sqlite3.Error as error:
            try:
                self._connection.rollback()
            except sqlite3.Error:
                self._disconnect()
            if _is_damage(error):
                raise _DamagedError(str(error)) from error
            raise

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open_or_renew(self) -> sqlite3.Connection:
        try:
            return self._open()
        except _DamagedError as error:
            logger.error("the report spool %s is damaged (%s); beginning a fresh one", self._path, error)
            self._move_aside()
            return self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, check_same_thread=False, timeout=5.0)
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
                    _count(connection, _CORRUPTIONS, self._num_moved_aside())
            elif version != SCHEMA_VERSION:
                raise _DamagedError(f"schema version {version}, this agent knows {SCHEMA_VERSION}")
            else:
                (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if verdict != "ok":
                    raise _DamagedError(verdict)
            found = connection.execute("SELECT last FROM sequences WHERE boot_id = ?", (self._boot_id,))
            # In memory too: a file renewed while this boot runs must not begin again at 1.
            self._last_sequence = max(self._last_sequence, *(last for (last,) in found), 0)
            connection.execute("DELETE FROM sequences WHERE boot_id != ?", (self._boot_id,))
            connection.commit()
            self._measure(connection)
        except (sqlite3.Error, _DamagedError) as error:
            connection.close()
            if isinstance(error, sqlite3.Error) and _is_damage(error):
                raise _DamagedError(str(error)) from error
            raise
        return connection

    def _move_aside(self) -> None:
        """Keeps the damaged file for whoever wants to look; the number in its name outlives it."""
        number = self._num_moved_aside() + 1
        older = self._moved_aside()
        self._path.replace(self._path.with_name(f"{self._path.name}.damaged-{number}"))
        for path in [
            *older,
            *(self._path.with_name(self._path.name + suffix) for suffix in ("-wal", "-shm")),
        ]:
            path.unlink(missing_ok=True)

    def _moved_aside(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.name}.damaged-*"))

    def _num_moved_aside(self) -> int:
        numbers = [path.name.rpartition("-")[2] for path in self._moved_aside()]
        return max((int(number) for number in numbers if number.isdigit()), default=0)

    def _measure(self, connection: sqlite3.Connection) -> None:
        found = connection.execute("SELECT COUNT(*), COALESCE(SUM(LENGTH(payload)), 0) FROM reports")
        self._num_rows, self._num_bytes = found.fetchone()

    def _drop_oldest(self, connection: sqlite3.Connection, added_bytes: int) -> tuple[int, int]:
        """Makes room for the row just inserted, which itself stays; rows and bytes as they are then."""
        num_rows, num_bytes = self._num_rows + 1, self._num_bytes + added_bytes
        dropped: list[tuple[int]] = []
        for row_id, size in connection.execute("SELECT id, LENGTH(payload) FROM reports ORDER BY id"):
            if num_rows <= 1 or (num_rows <= self._max_rows and num_bytes <= self._max_bytes):
                break
            dropped.append((row_id,))
            num_rows -= 1
            num_bytes -= size
        if dropped:
            connection.executemany("DELETE FROM reports WHERE id = ?", dropped)
            _count(connection, _DROPPED, len(dropped))
        return num_rows, num_bytes

    def _delete(
        self, connection: sqlite3.Connection, keys: Iterable[tuple[str, int]], *, counter: str = ""
    ) -> int:
        before = connection.total_changes
        connection.executemany("DELETE FROM reports WHERE boot_id = ? AND sequence = ?", keys)
        num_deleted = connection.total_changes - before
        if counter:
            _count(connection, counter, num_deleted)
        connection.commit()
        self._measure(connection)
        return num_deleted


def _counter(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def _count(connection: sqlite3.Connection, name: str, number: int) -> None:
    connection.execute(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        (name, number),
    )


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such table" in str(error)
