"""Connections, transactions and settings: what every group of tables builds on.

Rules kept here:

- A write transaction begins as one, so that two writers wait for each other instead of failing midway.
- What is read inside ``transaction()`` is not changed by another one before it commits: they take turns.
  SQLite has one writer at a time anyway; on PostgreSQL a lock that ends with the transaction does it, across
  processes, and single calls (reports above all) do not wait for it.
- What returned is on the disk: SQLite runs with its write-ahead log and ``synchronous=FULL``.
- A database that is busy, full or away is a ``TransientError``; one that cannot be used is a ``ConfigError``.
- Within one process SQLite's writers queue on a lock, which is fairer and cheaper than its polling.
- A store with a fence (see ``cloud.store.leases``) checks it first in each write transaction.
"""

from __future__ import annotations

import copy
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor

from cloud.store import schema
from cloud.store.migrate import upgrade
from edgeloop.errors import ConfigError, TransientError

_BUSY_TIMEOUT_MS = 10_000
#: A server that vanished without a goodbye is noticed after about 15 + 3 * 5 seconds.
_PG_CONNECT = {"connect_timeout": 5, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3}
#: Any number that nothing else in the database locks; the migrations have one of their own.
_PG_TURNS_LOCK = 0x6564_6766
_BEGIN_OPTION = "edgeloop_write"


class Change(StrEnum):
    """What applying a document did."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    DELETED = "deleted"


class Database:
    """One engine, shared by all threads."""

    def __init__(self, url: str) -> None:
        try:
            self._engine = _new_engine(url)
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
            raise ConfigError(
                f"the store's URL cannot be used ({error}): give sqlite:////path/to/edgeloop.db or "
                "postgresql://user@host/database",
                code="store-url",
            ) from error
        self._is_postgresql = self._engine.dialect.name == "postgresql"
        self._write_lock: AbstractContextManager[Any] = threading.RLock()
        self._local = threading.local()
        self._fence: Callable[[sa.Connection], None] | None = None
        if self._is_postgresql:
            self._write_lock = nullcontext()
            sa.event.listen(self._engine, "connect", _set_up_postgresql)
        else:
            sa.event.listen(self._engine, "connect", _set_up_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)

    def migrate(self) -> None:
        """Create or upgrade the schema. Raises ConfigError "store-newer" when a newer edgeloop wrote it."""
        with self._write() as connection:
            upgrade(connection)

    def close(self) -> None:
        """Give back every connection; the store opens new ones when it is used again."""
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Join every store call that this thread makes inside into one transaction; nests.

        Leaving with an exception undoes all of them.
        """
        with self._write() as connection:
            outer = getattr(self._local, "connection", None)
            if outer is None and self._is_postgresql:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_PG_TURNS_LOCK)))
            self._local.connection = connection
            try:
                yield
            finally:
                self._local.connection = outer

    @property
    def is_single_machine(self) -> bool:
        """Whether only processes of this machine can use the database."""
        return not self._is_postgresql

    def fenced(self, fence: Callable[[sa.Connection], None]) -> Self:
        """The same database, whose every write first passes ``fence`` in its own transaction."""
        view = copy.copy(self)
        view._fence = fence
        return view

    def check_fence(self) -> None:
        """Writes nothing; raises what a write would now (RejectedError "lease-lost")."""
        with self._write():
            pass

    def get_meta(self, key: str, default: str = "") -> str:
        """A setting that outlives the process."""
        with self._read() as connection:
            value = connection.scalar(sa.select(schema.meta.c.value).where(schema.meta.c.key == key))
        return default if value is None else str(value)

    def set_meta(self, key: str, value: str) -> None:
        """Set what ``get_meta`` reads."""
        with self._write() as connection:
            self._upsert(connection, schema.meta, {"key": key, "value": value})

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        joined = getattr(self._local, "connection", None)
        if joined is not None:
            yield joined
            return
        with _sorted_errors(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        joined = getattr(self._local, "connection", None)
        if joined is not None:
            yield joined
            return
        with _sorted_errors(), self._write_lock, self._engine.connect() as plain:
            connection = plain.execution_options(**{_BEGIN_OPTION: True})
            with connection.begin():
                if self._fence is not None:
                    self._fence(connection)
                yield connection

    def _insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """The dialect's own insert, which knows ON CONFLICT."""
        if self._is_postgresql:
            return postgresql.insert(table)
        return sqlite.insert(table)

    def _upsert(
        self,
        connection: sa.Connection,
        table: sa.Table,
        values: Mapping[str, Any],
        keep: Sequence[str] = (),
    ) -> None:
        """Insert, or replace all but the key and the columns in ``keep``."""
        key = [column.name for column in table.primary_key]
        statement = self._insert(table).values(**values)
        changed = {name: statement.excluded[name] for name in values if name not in key and name not in keep}
        connection.execute(statement.on_conflict_do_update(index_elements=key, set_=changed))

    def _insert_new(self, connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
        """Insert; False, and nothing is changed, when the key is there already."""
        # Asked for by RETURNING: the number of inserted rows is not kept for every driver.
        statement = self._insert(table).values(**values).on_conflict_do_nothing()
        return connection.execute(statement.returning(*table.primary_key)).first() is not None


def _new_engine(url: str) -> sa.Engine:
    made = sa.make_url(url)
    backend = made.get_backend_name()
    if backend == "sqlite":
        return sa.create_engine(made)
    if made.drivername == "postgresql":
        made = made.set(drivername="postgresql+psycopg")
    if made.drivername != "postgresql+psycopg":
        raise sa.exc.ArgumentError(f"{made.drivername} is not supported")
    # What was connected before the server went away is noticed before it is used.
    return sa.create_engine(
        made,
        connect_args={"application_name": "edgeloop", "client_encoding": "utf8", **_PG_CONNECT},
        pool_pre_ping=True,
    )


def _set_up_postgresql(connection: DBAPIConnection, record: object) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute(f"SET lock_timeout = {_BUSY_TIMEOUT_MS}")
        # Of a client that vanished, the locks are gone after the same time as above.
        cursor.execute(
            "SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
        )
    finally:
        cursor.close()
    connection.commit()


def _set_up_sqlite(connection: DBAPIConnection, record: object) -> None:
    # The driver would begin transactions by itself, and only at the first change: too late to queue for the
    # write lock. _begin_sqlite does it instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        _use_wal(cursor)
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
    finally:
        cursor.close()


def _use_wal(cursor: DBAPICursor) -> None:
    # Of several that turn a new file to the write-ahead log at once, SQLite tells all but one that it is
    # locked without waiting for busy_timeout: each has begun to read what the others want to change.
    end_s = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= end_s:
                raise
            time.sleep(random.uniform(0.001, 0.02))
        else:
            return


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get(_BEGIN_OPTION)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


_SQLITE_UNUSABLE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOTADB})
#: Wrong user, wrong password, no such database, not permitted.
_PG_UNUSABLE = frozenset({"28000", "28P01", "3D000", "42501"})
_PG_REFUSALS = ("password authentication failed", "no pg_hba.conf entry", "no password supplied")


@contextmanager
def _sorted_errors() -> Iterator[None]:
    try:
        yield
    except sa.exc.OperationalError as error:
        code = getattr(error.orig, "sqlite_errorcode", None)
        if (code is not None and code & 0xFF in _SQLITE_UNUSABLE) or _refused_by_postgresql(error):
            raise _unusable(error) from error
        raise TransientError(
            f"the database did not answer ({error.orig}): look at the disk's free space, or at the server",
            code="store-busy",
        ) from error
    except sa.exc.InterfaceError as error:
        raise TransientError(
            f"the connection to the database was lost ({error.orig}): it is opened again", code="store-busy"
        ) from error
    except sa.exc.DatabaseError as error:
        if _refused_by_postgresql(error):
            raise _unusable(error) from error
        if getattr(error.orig, "sqlite_errorcode", None) in _SQLITE_UNUSABLE | {sqlite3.SQLITE_CORRUPT}:
            raise _unusable(error) from error
        raise


def _unusable(error: sa.exc.DBAPIError) -> ConfigError:
    return ConfigError(
        f"the database (--database-url, or edgeloop.db in the state folder) cannot be used ({error.orig}): "
        "check its path or address, its user, password and permissions, and restore it from a backup if it "
        "is damaged",
        code="store-unusable",
    )


def _refused_by_postgresql(error: sa.exc.DBAPIError) -> bool:
    """A connection that is refused carries no code, only the server's words."""
    if getattr(error.orig, "sqlstate", None) in _PG_UNUSABLE:
        return True
    text = str(error.orig)
    missing = 'database "' in text and "does not exist" in text
    return missing or any(words in text for words in _PG_REFUSALS)
