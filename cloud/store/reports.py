"""What the fleet measured.

Rules kept here:

- A report is counted once, however often it arrives: (device, boot, sequence) is its identity.
- All of a batch is durable, or none of it, before the method returns; whoever called may then acknowledge.
- Sketches stay serialised; they were checked at the boundary. One is decoded when somebody asks for more than
  how many samples it has: of a large fleet's windows decisions read few.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from cloud.domain.evidence import Sketch, Window
from cloud.store import schema
from cloud.store.base import Database
from cloud.store.hosted import any_hosted, note_served
from edgeloop.sketch import LatencySketch


class ReportRow(NamedTuple):
    """A checked LatencyReport as it is stored; the sketches are serialised LatencySketch messages."""

    device_id: str
    boot_id: str
    sequence: int
    digest: str
    generation: int
    workload: str
    start_s: float
    end_s: float
    num_samples: int
    latency: bytes
    reference: bytes
    num_errors: int = 0
    rss_bytes: int = 0
    emulated_slowdown: int = 1
    num_dropped_reports: int = 0


class ReportTables(Database):
    """Reports of all devices."""

    def insert_reports(self, rows: Sequence[ReportRow], now_s: float) -> tuple[int, int]:
        """(new, known already), in one transaction; idempotent by (device_id, boot_id, sequence).

        It also notes, for each device, that it was heard of and what it served in its newest window.
        """
        if not rows:
            return 0, 0
        with self._write() as connection:
            num_new = _insert_rows(connection, self._insert(schema.reports).on_conflict_do_nothing(), rows)
            _note_devices(connection, rows, now_s)
        return num_new, len(rows) - num_new

    def windows(
        self, *, profile: str | None = None, device_id: str | None = None, since_s: float = 0.0
    ) -> list[Window]:
        """Windows that ended at or after ``since_s``, oldest first.

        ``profile`` is the one that the device belongs to now, not the one that it had then.
        """
        table = schema.reports
        statement = (
            sa.select(table)
            .where(table.c.end_s >= since_s)
            .order_by(table.c.end_s, table.c.device_id, table.c.sequence)
        )
        if profile is not None:
            members = sa.select(schema.devices.c.device_id).where(schema.devices.c.profile == profile)
        if device_id is not None:
            statement = statement.where(table.c.device_id == device_id)
        with self._read() as connection:
            if profile is not None:
                mine: sa.ColumnElement[bool] = table.c.device_id.in_(members)
                if any_hosted(connection):
                    mine = _measured_under(profile, mine)
                statement = statement.where(mine)
            return [_window(row) for row in connection.execute(statement)]

    def prune_reports(self, before_s: float) -> int:
        """Drop those that ended before; returns how many.

        One short transaction a device, so that acknowledgements do not wait for a long one.
        """
        table = schema.reports
        with self._read() as connection:
            device_ids = list(connection.scalars(sa.select(schema.devices.c.device_id)))
        num_pruned = 0
        for device_id in device_ids:
            old = sa.and_(table.c.device_id == device_id, table.c.end_s < before_s)
            with self._read() as connection:
                if connection.scalar(sa.select(table.c.sequence).where(old).limit(1)) is None:
                    continue
            with self._write() as connection:
                num_pruned += connection.execute(sa.delete(table).where(old)).rowcount
        return num_pruned


def _insert_rows(connection: sa.Connection, statement: sa.Insert, rows: Sequence[ReportRow]) -> int:
    """Through the driver: thousands of rows a call are worth leaving SQLAlchemy's per-row work out."""
    compiled = statement.compile(dialect=connection.dialect, column_keys=list(ReportRow._fields))
    if compiled.positional:
        assert compiled.positiontup == list(ReportRow._fields)
        return connection.exec_driver_sql(str(compiled), list(map(tuple, rows))).rowcount
    return connection.exec_driver_sql(str(compiled), [row._asdict() for row in rows]).rowcount


def _measured_under(profile: str, mine: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Windows of the profile, where a device may have one for each of its workloads."""
    table, hosted = schema.reports, schema.device_workloads
    under = sa.exists().where(
        hosted.c.device_id == table.c.device_id,
        hosted.c.workload == table.c.workload,
        hosted.c.profile == profile,
    )
    return sa.or_(sa.and_(mine, table.c.device_id.not_in(sa.select(hosted.c.device_id))), under)


def _note_devices(connection: sa.Connection, rows: Sequence[ReportRow], now_s: float) -> None:
    newest: dict[str, ReportRow] = {}
    for row in rows:
        known = newest.get(row.device_id)
        if known is None or row.end_s >= known.end_s:
            newest[row.device_id] = row
    table = schema.devices
    # In order, so that two writers on a database with row locks cannot wait for each other.
    ordered = [newest[device_id] for device_id in sorted(newest)]
    connection.execute(
        sa.update(table)
        .where(table.c.device_id == sa.bindparam("of_device"))
        .values(last_seen_s=sa.bindparam("at_s")),
        [{"of_device": row.device_id, "at_s": now_s} for row in ordered],
    )
    of_device = [table.c.device_id == sa.bindparam("of_device"), table.c.boot_id == sa.bindparam("of_boot")]
    if any_hosted(connection):
        _note_hosted(connection, rows)
        of_device.append(table.c.device_id.not_in(sa.select(schema.device_workloads.c.device_id)))
    connection.execute(
        sa.update(table)
        .where(*of_device, table.c.serving_time_s <= sa.bindparam("at_s"))
        .values(
            serving_digest=sa.bindparam("new_digest"),
            serving_generation=sa.bindparam("new_generation"),
            serving_time_s=sa.bindparam("at_s"),
        ),
        [
            {
                "of_device": row.device_id,
                "of_boot": row.boot_id,
                "at_s": row.end_s,
                "new_digest": row.digest,
                "new_generation": row.generation,
            }
            for row in ordered
        ],
    )


def _note_hosted(connection: sa.Connection, rows: Sequence[ReportRow]) -> None:
    """What each workload of a device serves; a device that hosts none, or booted anew since, has no say."""
    table = schema.devices
    ids = sorted({row.device_id for row in rows})
    boots: dict[str, str] = {}
    for first in range(0, len(ids), 500):
        statement = sa.select(table.c.device_id, table.c.boot_id).where(
            table.c.device_id.in_(ids[first : first + 500]),
            table.c.device_id.in_(sa.select(schema.device_workloads.c.device_id)),
        )
        boots.update((row.device_id, row.boot_id) for row in connection.execute(statement))
    newest: dict[tuple[str, str], ReportRow] = {}
    for row in rows:
        if boots.get(row.device_id) == row.boot_id:
            known = newest.get((row.device_id, row.workload))
            if known is None or row.end_s >= known.end_s:
                newest[row.device_id, row.workload] = row
    if newest:
        note_served(
            connection,
            [
                {
                    "of_device": device_id,
                    "of_workload": workload,
                    "new_digest": newest[device_id, workload].digest,
                    "new_generation": newest[device_id, workload].generation,
                    "at_s": newest[device_id, workload].end_s,
                }
                for device_id, workload in sorted(newest)
            ],
        )


class StoredSketch:
    """A sketch as the domain asks for it, decoded when that is needed. Equal to what it decodes to."""

    __slots__ = ("_count", "_raw")

    def __init__(self, raw: bytes, count: int | None = None) -> None:
        self._raw = raw
        self._count = count

    @property
    def decoded(self) -> LatencySketch:
        """The whole of it."""
        return _decoded(self._raw)

    @property
    def count(self) -> int:
        """Samples in it."""
        return self.decoded.count if self._count is None else self._count

    def quantile(self, q: float) -> float:
        """As ``LatencySketch.quantile``."""
        return self.decoded.quantile(q)

    def __eq__(self, other: object) -> bool:
        return self.decoded == (other.decoded if isinstance(other, StoredSketch) else other)

    def __hash__(self) -> int:
        return hash(self.decoded)


def sketch_of(sketch: Sketch) -> LatencySketch:
    """What a window holds, to be merged with others. Raises ``TypeError`` for anything else."""
    if isinstance(sketch, StoredSketch):
        return sketch.decoded
    if isinstance(sketch, LatencySketch):
        return sketch
    raise TypeError(f"{type(sketch).__name__} cannot be merged")


@lru_cache(maxsize=8192)
def _decoded(raw: bytes) -> LatencySketch:
    return LatencySketch.from_bytes(raw)


def _window(row: sa.Row[Any]) -> Window:
    return Window(
        device_id=row.device_id,
        boot_id=row.boot_id,
        sequence=row.sequence,
        digest=row.digest,
        generation=row.generation,
        workload=row.workload,
        start_s=row.start_s,
        end_s=row.end_s,
        latency=StoredSketch(bytes(row.latency), row.num_samples),
        reference=StoredSketch(bytes(row.reference)),
        num_errors=row.num_errors,
        rss_bytes=row.rss_bytes,
        emulated_slowdown=row.emulated_slowdown,
    )
