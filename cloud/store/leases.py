"""Who may act: a lease on a name, with a number that grows whenever it changes hands.

Rules kept here:

- At most one holder at a time, by the database's own clock; clocks of other machines do not matter.
- Each new holding has a higher ``epoch``. Who still believes in an older one can write nothing through a
  store with a ``fence``: the check and the write are one transaction, and taking the lease over waits for it.
- A holder that comes back under its own name takes its lease back at once: whoever hands out the name sees to
  it that only one process bears it (a control plane's is guarded by the lock of its state folder).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from cloud.store import schema
from cloud.store.base import Database
from edgeloop.errors import RejectedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """``holder`` is "" after it was given back."""

    holder: str
    epoch: int
    expire_s: float


class LeaseTables(Database):
    """Leases by name."""

    def claim_lease(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        """Take it, under a new epoch; None while another holds it."""
        with self._write() as connection:
            self._insert_new(connection, schema.meta, {"key": _key(name), "value": _text(_NOBODY)})
            found, now_s = _locked(connection, name), _now_s(connection)
            if found.holder not in ("", holder) and found.expire_s > now_s:
                return None
            taken = Lease(holder=holder, epoch=found.epoch + 1, expire_s=now_s + ttl_s)
            _save(connection, name, taken)
        return taken

    def renew_lease(self, name: str, lease: Lease, ttl_s: float) -> Lease | None:
        """The same epoch for longer; None when another has taken it meanwhile."""
        with self._write() as connection:
            found = _locked(connection, name)
            if (found.holder, found.epoch) != (lease.holder, lease.epoch):
                return None
            renewed = Lease(holder=lease.holder, epoch=lease.epoch, expire_s=_now_s(connection) + ttl_s)
            _save(connection, name, renewed)
        return renewed

    def release_lease(self, name: str, lease: Lease) -> None:
        """Give it back, so that another may take it at once. Nothing happens when it is not ours any more."""
        with self._write() as connection:
            found = _locked(connection, name)
            if (found.holder, found.epoch) == (lease.holder, lease.epoch):
                _save(connection, name, Lease(holder="", epoch=lease.epoch, expire_s=0.0))

    def lease(self, name: str) -> Lease | None:
        """Who holds it, or held it last; None when nobody ever did."""
        with self._read() as connection:
            text = connection.scalar(sa.select(schema.meta.c.value).where(schema.meta.c.key == _key(name)))
        return None if text is None else Lease(**json.loads(text))


def lease_fence(name: str, epoch: int) -> Callable[[sa.Connection], None]:
    """For ``Store.fenced``. Raises RejectedError "lease-lost" when the lease is of another epoch by now."""

    def check(connection: sa.Connection) -> None:
        statement = sa.select(schema.meta.c.value).where(schema.meta.c.key == _key(name))
        text = connection.scalar(statement.with_for_update(read=True))
        found = _NOBODY if text is None else Lease(**json.loads(text))
        if found.epoch != epoch:
            raise RejectedError(
                f"the lease {name!r} has passed to {found.holder or 'nobody'}: this process may not act any "
                "more",
                code="lease-lost",
            )

    return check


_NOBODY = Lease(holder="", epoch=0, expire_s=0.0)


def _key(name: str) -> str:
    return f"lease/{name}"


def _text(lease: Lease) -> str:
    return json.dumps(asdict(lease), sort_keys=True)


def _locked(connection: sa.Connection, name: str) -> Lease:
    """The row, which nobody else changes before this transaction ends."""
    statement = sa.select(schema.meta.c.value).where(schema.meta.c.key == _key(name)).with_for_update()
    text = connection.scalar(statement)
    return _NOBODY if text is None else Lease(**json.loads(text))


def _save(connection: sa.Connection, name: str, lease: Lease) -> None:
    connection.execute(
        sa.update(schema.meta).where(schema.meta.c.key == _key(name)).values(value=_text(lease))
    )


def _now_s(connection: sa.Connection) -> float:
    """After the row is locked, and so after whatever the wait for it took."""
    if connection.dialect.name == "postgresql":
        return float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0)
    return time.time()
