"""What a fleet measured, as a table small enough to be stored beside each decision.

Rules kept here:

- A window counts once, however often it was reported: (device, boot, sequence) identifies it.
- A window counts only for the digest that served it, only for this workload, and only while it is fresh.
  One that claims to end in the far future, or holds figures that no clock can give, is left out.
- Of each device the newest windows count, a fixed number; of a very large fleet a fixed sample of devices.
- The table holds all that a decision reads of the windows. It does not depend on the order of reports.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, Self

from cloud.domain.settings import PolicySettings

#: Each window is kept as these quantiles: one atom for the middle of each bin, finest around p95.
BIN_EDGES = (0.0, 0.5, 0.75, 0.85, 0.9, 0.93, 0.95, 0.97, 0.99, 1.0)
LEVELS = tuple((low + high) / 2 for low, high in pairwise(BIN_EDGES))
SHARES = tuple(high - low for low, high in pairwise(BIN_EDGES))

_MAX_LATENCY_MS = 1e7
_MAX_COUNT = 10**9


class Sketch(Protocol):
    """What is asked of a latency sketch."""

    @property
    def count(self) -> int: ...

    def quantile(self, q: float, /) -> float: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One report: one digest on one device over one span of time, named by device, boot and sequence."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceRow:
    """One window, reduced to what decisions read. ``reference_p50_ms`` is 0 when none was timed.

    ``quantiles_ms`` stand for the shares of the window that ``SHARES`` names.
    """

    device_id: str
    digest: str
    end_s: float
    count: int
    quantiles_ms: tuple[float, ...]
    reference_p50_ms: float = 0.0
    emulated_slowdown: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceTable:
    """Rows by digest and device, each device's newest first."""

    rows: tuple[EvidenceRow, ...] = ()

    @property
    def digests(self) -> tuple[str, ...]:
        """Those that were measured, sorted."""
        return tuple(sorted({row.digest for row in self.rows}))

    def of(self, digest: str) -> dict[str, tuple[EvidenceRow, ...]]:
        """By device id, sorted; newest first."""
        found: dict[str, list[EvidenceRow]] = {}
        for row in self.rows:
            if row.digest == digest:
                found.setdefault(row.device_id, []).append(row)
        return {device_id: tuple(found[device_id]) for device_id in sorted(found)}

    def to_json(self) -> dict[str, Any]:
        """Plain values, grouped so that ids and digests are not repeated in each row."""
        return {
            digest: {
                device_id: [
                    [row.end_s, row.count, row.reference_p50_ms, row.emulated_slowdown, *row.quantiles_ms]
                    for row in rows
                ]
                for device_id, rows in self.of(digest).items()
            }
            for digest in self.digests
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        rows = [
            EvidenceRow(
                device_id=device_id,
                digest=digest,
                end_s=float(end_s),
                count=int(count),
                reference_p50_ms=float(reference),
                emulated_slowdown=int(slowdown),
                quantiles_ms=tuple(float(value) for value in quantiles),
            )
            for digest, devices in sorted(values.items())
            for device_id, entries in sorted(devices.items())
            for end_s, count, reference, slowdown, *quantiles in entries
        ]
        return cls(rows=tuple(rows))


def tabulate(
    windows: Iterable[Window],
    *,
    workload: str,
    digests: Collection[str],
    now_s: float,
    settings: PolicySettings,
    device_ids: Collection[str] | None = None,
) -> EvidenceTable:
    """The table of the windows that count. ``device_ids`` None takes every device."""
    unique: dict[tuple[str, str, int], Window] = {}
    for window in windows:
        if (
            window.digest in digests
            and window.workload == workload
            and (device_ids is None or window.device_id in device_ids)
            and now_s - settings.max_age_s <= window.end_s <= now_s + settings.max_skew_s
            and window.start_s <= window.end_s
            and window.latency.count > 0
            and window.emulated_slowdown >= 1
        ):
            key = (window.device_id, window.boot_id, window.sequence)
            known = unique.get(key)
            if known is None or (window.end_s, window.latency.count) < (known.end_s, known.latency.count):
                unique[key] = window
    grouped: dict[tuple[str, str], list[Window]] = {}
    for window in unique.values():
        grouped.setdefault((window.digest, window.device_id), []).append(window)
    chosen = _sample({device_id for _, device_id in grouped}, settings.max_devices)
    rows: list[EvidenceRow] = []
    for (_, device_id), found in sorted(grouped.items()):
        if device_id not in chosen:
            continue
        found.sort(key=lambda window: (window.end_s, window.boot_id, window.sequence), reverse=True)
        believable = (row for window in found if (row := _row(window)) is not None)
        rows += [row for row, _ in zip(believable, range(settings.max_windows_per_device), strict=False)]
    return EvidenceTable(rows=tuple(rows))


def quantile_of(atoms: Sequence[tuple[float, float]], q: float) -> float:
    """The q-quantile of (value, weight) atoms that are sorted by value, between the atoms' middles.

    The last atom answers for what lies beyond its middle.
    """
    total = sum(weight for _, weight in atoms)
    if not atoms or total <= 0:
        raise ValueError("no weight has no quantile: look at the number of samples first")
    return quantile_of_top(reversed(atoms), (1 - q) * total)


def quantile_of_top(atoms: Iterable[tuple[float, float]], weight_above: float) -> float:
    """The value with this much weight above it; of atoms from the highest down, as far as there are any."""
    seen = 0.0
    value = middle = 0.0
    above: tuple[float, float] | None = None
    for value, weight in atoms:
        middle = seen + weight / 2
        if middle >= weight_above:
            break
        above = (value, middle)
        seen += weight
    else:
        return value
    if above is None or middle <= above[1]:
        return value
    return value + (above[0] - value) * (middle - weight_above) / (middle - above[1])


def atoms_of(row: EvidenceRow, weight: float) -> list[tuple[float, float]]:
    """One window as (value, weight) atoms."""
    return [(value, weight * share) for value, share in zip(row.quantiles_ms, SHARES, strict=True)]


def _sample(device_ids: set[str], limit: int) -> set[str]:
    """The same devices each time: those whose hashed ids come first."""
    if len(device_ids) <= limit:
        return device_ids
    return set(sorted(device_ids, key=lambda name: hashlib.sha256(name.encode()).digest())[:limit])


def _row(window: Window) -> EvidenceRow | None:
    """None for figures that cannot be."""
    quantiles = tuple(_rounded(window.latency.quantile(level)) for level in LEVELS)
    if not all(0 < value <= _MAX_LATENCY_MS for value in quantiles):
        return None
    reference = _rounded(window.reference.quantile(0.5)) if window.reference.count else 0.0
    if not 0 <= reference <= _MAX_LATENCY_MS:
        return None
    return EvidenceRow(
        device_id=window.device_id,
        digest=window.digest,
        end_s=window.end_s,
        count=min(window.latency.count, _MAX_COUNT),
        quantiles_ms=quantiles,
        reference_p50_ms=reference,
        emulated_slowdown=window.emulated_slowdown,
    )


def _rounded(value: float) -> float:
    """Five digits: the sketch itself is good for two."""
    return float(f"{value:.5g}") if math.isfinite(value) else math.inf
