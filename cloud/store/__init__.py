"""The cloud's database: the truth that the broker, the cluster and the controller's memory are rebuilt from.

Every method is one short transaction that is durable when it returns, is safe to call from any thread and
is safe to call again. ``Store.transaction()`` joins several into one: all of them hold, or none.
"""

from cloud.store.base import Change
from cloud.store.identities import replayed_error, used_token_error
from cloud.store.leases import Lease, lease_fence
from cloud.store.ledger import LedgerEntry
from cloud.store.reports import ReportRow, sketch_of
from cloud.store.store import Store

__all__ = [
    "Change",
    "Lease",
    "LedgerEntry",
    "ReportRow",
    "Store",
    "lease_fence",
    "replayed_error",
    "sketch_of",
    "used_token_error",
]
