"""The one class that the rest of the cloud holds."""

from __future__ import annotations

from cloud.store.deployments import DeploymentTables
from cloud.store.fleet import FleetTables
from cloud.store.identities import IdentityTables
from cloud.store.issuing import IssuingTables
from cloud.store.leases import LeaseTables
from cloud.store.ledger import LedgerTables
from cloud.store.reports import ReportTables


class Store(
    FleetTables,
    DeploymentTables,
    IssuingTables,
    LedgerTables,
    ReportTables,
    IdentityTables,
    LeaseTables,
):
    """``Store(url)`` with an SQLAlchemy URL (``sqlite:////path/edgeloop.db``, ``postgresql://user@host/database``).

    Call ``migrate()`` once before anything else, and ``close()`` at the end.
    """
