"""Reports and deployment statuses that the cloud has not acknowledged yet, in one SQLite file.

Rules that this module keeps:

- What ``append`` or ``enqueue_status`` returned from survives kill -9 and power loss (WAL, synchronous=FULL).
- (boot_id, sequence) is given here, once: sequences of a boot start at 1 and never repeat, also when the
  spool is opened again under the same boot id. A number whose write failed is not given again: the bytes
  may have reached the disk after all.
- Only what was acknowledged by its exact key is deleted. A status that was replaced by a newer one while
  the older was on its way stays.
- The spool is bounded in rows and bytes. For want of room the oldest reports go, and a counter that
  outlives the process says how many.
- A damaged file never stops the agent: it is moved aside (one is kept), counted, and a fresh one begun.
- Nothing depends on the spool. It opens when it is first used, and where it cannot be opened, read or
  written (full, failing or read-only disk) it is degraded: that is said once, reports that come meanwhile
  are counted as dropped, there is nothing to deliver, and every other call is a ``TransientError``
  (``spool-write``) that changes nothing.
- A degraded spool tries the disk again after a back-off, by a write of its own, and is only then whole again:
  what could be sent but not deleted would be sent without end.
- Of a deployment, only what still matters is kept: the newest event of each state, and once a terminal
  state is there, that alone.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from edge_agent.spool_file import CORRUPTIONS, WRITE, DamagedError, SpoolFile, count, counter
from edgeloop.backoff import Backoff
from edgeloop.errors import TransientError
from edgeloop.v1 import deployment_pb2, telemetry_pb2

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_STATUSES: Final = 1000
TERMINAL_STATES: Final = frozenset(
    {
        deployment_pb2.DEPLOYMENT_STATE_ACTIVE,
        deployment_pb2.DEPLOYMENT_STATE_REJECTED,
        deployment_pb2.DEPLOYMENT_STATE_ROLLED_BACK,
        deployment_pb2.DEPLOYMENT_STATE_SUPERSEDED,
    }
)

_DROPPED: Final = "dropped_reports"
_REJECTED: Final = "rejected_reports"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counts:
    rows: int = 0
    num_bytes: int = 0
    dropped: int = 0
    rejected: int = 0
    corruptions: int = 0


class ReportSpool:
    """Safe to call from any thread; each call is one transaction."""

    def __init__(
        self,
        path: Path,
        *,
        boot_id: str,
        max_rows: int = 20_000,
        max_bytes: int = 32 << 20,
        backoff: Backoff | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_rows < 1 or max_bytes < 1:
            raise ValueError("max_rows and max_bytes must be at least 1")
        self._boot_id = boot_id
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._last_sequence = 0
        self._counts = _Counts()
        self._count_lock = threading.Lock()
        # Dropped, and not written down in the file yet.
        self._num_lost = 0
        self._file = SpoolFile(
            path,
            on_ready=self._on_ready,
            on_set_aside=self._on_set_aside,
            backoff=backoff,
            monotonic=monotonic,
        )

    def open(self) -> None:
        """Opens the file now rather than at the first use. Never raises: see ``problem``."""
        try:
            self._file.transact(lambda connection: None)
        except TransientError as error:
            logger.debug("%s", error)

    def append(self, report: telemetry_pb2.LatencyReport) -> int:
        """Stores a copy under this boot's next sequence, which it returns once it is durable.

        Fills in ``boot_id``, ``sequence`` and ``num_dropped_reports`` of the copy. One that cannot be stored
        now (TransientError) is counted as dropped.
        """
        stored = telemetry_pb2.LatencyReport()
        stored.CopyFrom(report)

        def write(connection: sqlite3.Connection) -> int:
            self._last_sequence += 1
            sequence = self._last_sequence
            stored.boot_id = self._boot_id
            stored.sequence = sequence
            stored.num_dropped_reports = self._counts.dropped
            payload = stored.SerializeToString()
            connection.execute(
                "INSERT INTO reports (boot_id, sequence, payload) VALUES (?, ?, ?)",
                (self._boot_id, sequence, payload),
            )
            connection.execute(
                "INSERT OR REPLACE INTO sequences VALUES (?, ?)",
                (self._boot_id, sequence),
            )
            counts = self._drop_oldest(connection, len(payload))
            connection.commit()
            self._counts = counts
            return sequence

        try:
            sequence = self._file.transact(write)
        except TransientError:
            with self._count_lock:
                self._num_lost += 1
            raise
        self._file.stood()
        return sequence

    def batch(self, limit: int, *, max_bytes: int = 1 << 20) -> list[telemetry_pb2.LatencyReport]:
        """The oldest reports, at least one where there are any; they stay until acknowledged.

        None while the spool is degraded.
        """

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
                count(connection, _DROPPED, len(unreadable))
                connection.commit()
                self._measure(connection)
            return reports

        return self._read(read)

    def acknowledge(self, keys: Iterable[tuple[str, int]]) -> int:
        """Deletes exactly these (boot_id, sequence); how many were there."""
        return self._file.transact(lambda connection: self._delete(connection, keys))

    def reject(self, keys: Iterable[tuple[str, int]]) -> int:
        """Deletes reports that the cloud will never accept, and counts them."""

        def write(connection: sqlite3.Connection) -> int:
            return self._delete(connection, keys, counter=_REJECTED)

        return self._file.transact(write)

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

        self._file.transact(write)

    def pending_statuses(self, limit: int = 100) -> list[tuple[int, deployment_pb2.DeploymentStatus]]:
        """(row id, status), oldest first; none while the spool is degraded."""

        def read(connection: sqlite3.Connection) -> list[tuple[int, deployment_pb2.DeploymentStatus]]:
            found = connection.execute("SELECT id, payload FROM statuses ORDER BY id LIMIT ?", (limit,))
            try:
                return [(row, deployment_pb2.DeploymentStatus.FromString(payload)) for row, payload in found]
            except DecodeError as error:
                raise DamagedError(str(error)) from error

        return self._read(read)

    def status_delivered(self, row_id: int) -> None:
        """Deletes the status of this row."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM statuses WHERE id = ?", (row_id,))
            connection.commit()

        self._file.transact(write)

    @property
    def problem(self) -> str:
        """Why nothing can be kept now; empty while all is well, and before the file was first opened."""
        return self._file.problem

    @property
    def num_pending(self) -> int:
        """Reports that wait. This and the other numbers are as of the last look at the file."""
        return self._counts.rows

    @property
    def num_bytes(self) -> int:
        """What the waiting reports weigh."""
        return self._counts.num_bytes

    @property
    def num_dropped(self) -> int:
        """Reports dropped since this device was installed: for want of room, or with a disk that failed."""
        return self._counts.dropped + self._num_lost

    @property
    def num_rejected(self) -> int:
        """Reports that the cloud refused for good."""
        return self._counts.rejected

    @property
    def num_corruptions(self) -> int:
        """How often a damaged file had to be moved aside."""
        return self._counts.corruptions

    def close(self) -> None:
        """Closes the file; what it holds is there at the next start."""
        self._file.close()

    def _read(self, work: Callable[[sqlite3.Connection], list[T]]) -> list[T]:
        try:
            return self._file.transact(work)
        except TransientError as error:
            if error.code != WRITE:
                raise
            logger.debug("%s", error)
            return []

    def _on_ready(self, connection: sqlite3.Connection, must_write: bool) -> None:
        found = connection.execute("SELECT last FROM sequences WHERE boot_id = ?", (self._boot_id,))
        # In memory too: a file renewed while this boot runs must not begin again at 1.
        self._last_sequence = max(self._last_sequence, *(last for (last,) in found), 0)
        connection.execute("DELETE FROM sequences WHERE boot_id != ?", (self._boot_id,))
        num_lost = self._num_lost
        if must_write or num_lost:
            count(connection, _DROPPED, num_lost)
        connection.commit()
        with self._count_lock:
            self._num_lost -= num_lost
        self._measure(connection)

    def _on_set_aside(self) -> None:
        """What was known to be in the file is gone; the one that follows it counts it."""
        with self._count_lock:
            self._num_lost += self._counts.dropped + self._counts.rows
        self._counts = _Counts()

    def _measure(self, connection: sqlite3.Connection) -> None:
        found = connection.execute("SELECT COUNT(*), COALESCE(SUM(LENGTH(payload)), 0) FROM reports")
        rows, num_bytes = found.fetchone()
        self._counts = _Counts(
            rows=rows,
            num_bytes=num_bytes,
            dropped=counter(connection, _DROPPED),
            rejected=counter(connection, _REJECTED),
            corruptions=counter(connection, CORRUPTIONS),
        )

    def _drop_oldest(self, connection: sqlite3.Connection, added_bytes: int) -> _Counts:
        """Makes room for the row just inserted, which itself stays; the counts as they are then."""
        num_rows, num_bytes = self._counts.rows + 1, self._counts.num_bytes + added_bytes
        dropped: list[tuple[int]] = []
        for row_id, size in connection.execute("SELECT id, LENGTH(payload) FROM reports ORDER BY id"):
            if num_rows <= 1 or (num_rows <= self._max_rows and num_bytes <= self._max_bytes):
                break
            dropped.append((row_id,))
            num_rows -= 1
            num_bytes -= size
        if dropped:
            connection.executemany("DELETE FROM reports WHERE id = ?", dropped)
            count(connection, _DROPPED, len(dropped))
        return replace(
            self._counts,
            rows=num_rows,
            num_bytes=num_bytes,
            dropped=self._counts.dropped + len(dropped),
        )

    def _delete(
        self, connection: sqlite3.Connection, keys: Iterable[tuple[str, int]], *, counter: str = ""
    ) -> int:
        before = connection.total_changes
        connection.executemany("DELETE FROM reports WHERE boot_id = ? AND sequence = ?", keys)
        num_deleted = connection.total_changes - before
        if counter:
            count(connection, counter, num_deleted)
        connection.commit()
        self._measure(connection)
        return num_deleted
