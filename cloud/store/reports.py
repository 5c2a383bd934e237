from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from cloud.store.base import Database

if TYPE_CHECKING:
    from cloud.domain.evidence import Window


class ReportRow(NamedTuple):
    """A checked LatencyReport as it is stored; the sketches stay as serialised LatencySketch messages."""

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
    num_errors: int
    rss_bytes: int
    emulated_slowdown: int
    num_dropped_reports: int


class ReportTables(Database):
    def insert_reports(self, rows: Sequence[ReportRow], now_s: float) -> tuple[int, int]:
        """(new, known already), one transaction; idempotent by (device_id, boot_id, sequence)."""
        raise NotImplementedError

    def windows(
        self, *, profile: str | None = None, device_id: str | None = None, since_s: float = 0.0
    ) -> list[Window]:
        """Windows that ended at or after `since_s`, oldest first; sketches are decoded when first asked."""
        raise NotImplementedError

    def prune_reports(self, before_s: float) -> int:
        """Drop those that ended before; returns how many."""
        raise NotImplementedError
