"""The one class that the rest of the cloud holds."""

from __future__ import annotations

from cloud.store.fleet import FleetTables
from cloud.store.identities import IdentityTables
from cloud.store.ledger import LedgerTables
from cloud.store.reports import ReportTables


class Store(FleetTables, LedgerTables, ReportTables, IdentityTables):
    """``Store(url)`` with an SQLAlchemy URL (``sqlite:////path/edgeloop.db``, ``postgresql+psycopg://...``).

    Call ``migrate()`` once before anything else, and ``close()`` at the end.
    """
