"""Report spool (signatures first; being filled in)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgeloop.v1 import deployment_pb2, telemetry_pb2


class ReportSpool:
    def __init__(
        self, path: Path, *, boot_id: str, max_rows: int = 20_000, max_bytes: int = 32 << 20
    ) -> None: ...

    def append(self, report: telemetry_pb2.LatencyReport) -> int:
        """Fills in boot_id, sequence and num_dropped_reports; durable when it returns the sequence."""
        raise NotImplementedError

    def batch(self, limit: int, *, max_bytes: int = 1 << 20) -> list[telemetry_pb2.LatencyReport]: ...
    def acknowledge(self, keys: Iterable[tuple[str, int]]) -> int: ...
    def enqueue_status(self, status: deployment_pb2.DeploymentStatus) -> None: ...
    def pending_statuses(self, limit: int = 100) -> list[tuple[int, deployment_pb2.DeploymentStatus]]: ...
    def status_delivered(self, row_id: int) -> None: ...
    num_dropped: int
    num_rejected: int
    num_corruptions: int
    num_pending: int

    def close(self) -> None: ...
