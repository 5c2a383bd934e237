"""Latency windows (signatures first; being filled in)."""

from __future__ import annotations

from dataclasses import dataclass

from edgeloop.sketch import LatencySketch


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowKey:
    digest: str
    generation: int
    workload: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowReport:
    key: WindowKey
    start_s: float
    end_s: float
    latency: LatencySketch
    reference: LatencySketch
    num_errors: int


class LatencyMeter:
    def __init__(self, *, window_s: float) -> None: ...
    def set_window(self, window_s: float) -> None: ...
    def roll(self, now_s: float) -> list[WindowReport]:
        """The windows that ended: because window_s passed, or because another model began to serve."""
        raise NotImplementedError

    def flush(self, now_s: float) -> list[WindowReport]:
        """Ends the open window now, for shutdown."""
        raise NotImplementedError
