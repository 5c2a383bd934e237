"""skeleton; rules follow"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self


class Sketch(Protocol):
    """What is asked of a latency sketch."""

    @property
    def count(self) -> int: ...

    def quantile(self, q: float, /) -> float: ...

    def merge(self, other: Self, /) -> Self: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One report: one digest on one device, over one span of time. Identified by device, boot and sequence."""

    device_id: str
    boot_id: str
    sequence: int
    digest: str
    generation: int
    workload: str
    start_s: float
    end_s: float
    latency: Sketch
    reference: Sketch
    num_errors: int = 0
    rss_bytes: int = 0
    emulated_slowdown: int = 1
