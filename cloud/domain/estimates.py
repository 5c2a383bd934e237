"""What a fleet's p95 is, when a part of the fleet may be lying, broken, throttled or alone.

Rules kept here:

- Devices whose p95 is beyond belief next to the others are set aside. More of them than
  ``max_untrusted_share``: nothing is estimated ("untrusted").
- Of those that are left, as many of the slowest and as many of the fastest as could still be liars are set
  aside too: the estimate is that of the fleet's middle, so a lie within belief does not move it either. Two
  or three devices are all middle.
- No window weighs more than the median device's median window: claiming many requests gains nothing.
- Real and emulated devices are never merged. A few of one kind among the other are set aside; an even mix
  is an error of the fleet file, and nothing is estimated ("mixed").
- A window in which the reference kernel ran slow, measured against that device's own best, tells of the
  machine and not of the model. It is left out as long as half of the devices are healthy; if not, the
  estimate is of all of them and says that it is ("throttled").
- The interval around p95 comes from resampling devices and their windows, never from a formula for
  independent samples alone: misses cluster. The seed comes from the evidence: the same gives the same.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist, median

from cloud.domain.evidence import SHARES, EvidenceRow, atoms_of, quantile_of, quantile_of_top
from cloud.domain.settings import PolicySettings

P95 = 0.95
_MAX_RESAMPLED_ATOMS = 400_000
#: Measured on fleets whose windows differ by 5 and by 20 %: with it, bounds from 6 to 36 windows cover the
#: true p95 in 0.43 to 0.84 of all cases (0.29 to 0.78 without); the lower bound is over it in under 0.04.
_STRETCH = 5.0

Rows = Mapping[str, Sequence[EvidenceRow]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """The best that a device's reference kernel sustained, as this kind of device."""

    reference_p50_ms: float
    emulated_slowdown: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """``rounds_ms`` is the fleet's p95 in the newest window of each device, the one before, and so on.

    ``problem`` is "", "mixed" or "untrusted"; then the figures are 0. ``untrusted`` names the devices that
    were set aside as beyond belief, ``throttled`` those whose machine is slow.
    """

    p95_ms: float = 0.0
    lower_p95_ms: float = 0.0
    upper_p95_ms: float = 0.0
    rounds_ms: tuple[float, ...] = ()
    num_samples: int = 0
    num_windows: int = 0
    num_devices: int = 0
    untrusted: tuple[str, ...] = ()
    throttled: tuple[str, ...] = ()
    is_throttled: bool = False
    problem: str = ""

    def is_enough(self, settings: PolicySettings) -> bool:
        """Whether this much evidence may move anything."""
        return (
            not self.problem
            and self.num_samples >= settings.min_samples
            and self.num_windows >= settings.min_windows
            and self.num_devices >= settings.min_devices
        )


def estimate(rows: Rows, *, baselines: Mapping[str, Baseline], settings: PolicySettings) -> Estimate:
    """The fleet's p95 of one digest from its rows by device, each device's newest first."""
    if not any(rows.values()):
        return Estimate()
    kept, foreign = _one_kind(rows)
    num_all = len(rows)
    if len(foreign) > settings.max_untrusted_share * num_all:
        return Estimate(num_devices=num_all, problem="mixed", untrusted=foreign)
    throttled = tuple(
        device_id
        for device_id, found in kept.items()
        if _is_throttled(found, baselines.get(device_id), settings)
    )
    healthy = {
        device_id: [row for row in found if not _is_slow(row, baselines.get(device_id), settings)]
        for device_id, found in kept.items()
        if device_id not in throttled
    }
    is_throttled = 2 * len(healthy) < len(kept)
    judged: Rows = kept if is_throttled else healthy
    lying = _outliers(judged, settings)
    untrusted = tuple(sorted({*foreign, *lying}))
    if len(untrusted) > settings.max_untrusted_share * num_all:
        return Estimate(num_devices=num_all, problem="untrusted", untrusted=untrusted, throttled=throttled)
    trusted = {device_id: judged[device_id] for device_id in judged if device_id not in lying}
    num_liars_left = max(0, math.floor(settings.max_untrusted_share * num_all) - len(untrusted))
    middle = _middle(trusted, num_liars_left)
    cap = median(median(row.count for row in found) for found in trusted.values())
    num_samples = sum(min(row.count, cap) for found in trusted.values() for row in found)
    p95_ms, lower, upper = _interval(middle, cap, settings)
    return Estimate(
        p95_ms=p95_ms,
        lower_p95_ms=lower,
        upper_p95_ms=upper,
        rounds_ms=_rounds(middle, cap),
        num_samples=int(num_samples),
        num_windows=sum(len(found) for found in trusted.values()),
        num_devices=len(trusted),
        untrusted=untrusted,
        throttled=throttled,
        is_throttled=is_throttled,
    )


def learn_baselines(rows: Rows, known: Mapping[str, Baseline]) -> dict[str, Baseline]:
    """Each device's best reference timing that held for three windows in a row; a single fast one is luck."""
    learnt = dict(known)
    for device_id, found in rows.items():
        timed = [row for row in found if row.reference_p50_ms > 0]
        if not timed:
            continue
        slowdown = timed[0].emulated_slowdown
        times = [row.reference_p50_ms for row in timed if row.emulated_slowdown == slowdown]
        sustained = [max(times[i : i + 3]) for i in range(len(times) - 2)]
        before = learnt.get(device_id)
        if before is not None and before.emulated_slowdown == slowdown:
            sustained.append(before.reference_p50_ms)
        if sustained:
            learnt[device_id] = Baseline(reference_p50_ms=min(sustained), emulated_slowdown=slowdown)
    return learnt


def _one_kind(rows: Rows) -> tuple[dict[str, list[EvidenceRow]], tuple[str, ...]]:
    """The rows of the kind (real or emulated) that most devices are, and the devices of the other kind.

    A device is what its newest row says; its rows as something else are left out.
    """
    is_emulated = {device_id: found[0].emulated_slowdown > 1 for device_id, found in rows.items() if found}
    wanted = 2 * sum(is_emulated.values()) > len(is_emulated)
    kept = {
        device_id: [
            row for row in rows[device_id] if row.emulated_slowdown == rows[device_id][0].emulated_slowdown
        ]
        for device_id, emulated in sorted(is_emulated.items())
        if emulated == wanted
    }
    foreign = tuple(device_id for device_id, emulated in sorted(is_emulated.items()) if emulated != wanted)
    return kept, foreign


def _is_slow(row: EvidenceRow, baseline: Baseline | None, settings: PolicySettings) -> bool:
    return (
        baseline is not None
        and baseline.emulated_slowdown == row.emulated_slowdown
        and row.reference_p50_ms > settings.throttle_ratio * baseline.reference_p50_ms
    )


def _is_throttled(rows: Sequence[EvidenceRow], baseline: Baseline | None, settings: PolicySettings) -> bool:
    """Most of the newest windows are slow: then the older, good ones do not speak for now either."""
    newest = rows[: settings.num_miss_windows]
    return 2 * sum(_is_slow(row, baseline, settings) for row in newest) > len(newest)


def _outliers(rows: Rows, settings: PolicySettings) -> frozenset[str]:
    """Devices whose p95 lies beyond belief next to the median device."""
    if len(rows) < 2:
        return frozenset()
    logs = {device_id: math.log(_device_p95(found)) for device_id, found in rows.items()}
    centre = median(logs.values())
    spread = 1.4826 * median(abs(value - centre) for value in logs.values())
    if len(rows) == 2:
        # Neither can be told to be the liar: only a gross disagreement (four times) discards both.
        tolerance = math.log(2.0)
    elif len(rows) == 3:
        tolerance = math.log(4.0)
    else:
        tolerance = min(max(5 * spread, math.log(2.0)), math.log(4.0))
    return frozenset(device_id for device_id, value in logs.items() if abs(value - centre) > tolerance)


def _device_p95(rows: Sequence[EvidenceRow]) -> float:
    cap = median(row.count for row in rows)
    return quantile_of(_sorted_atoms(rows, cap), P95)


def _sorted_atoms(rows: Sequence[EvidenceRow], cap: float) -> list[tuple[float, float]]:
    return sorted(atom for row in rows for atom in atoms_of(row, min(row.count, cap)))


def _middle(rows: Rows, num_aside: int) -> dict[str, Sequence[EvidenceRow]]:
    """Without the ``num_aside`` slowest and fastest; at least one device stays."""
    ordered = sorted(rows, key=lambda device_id: (_device_p95(rows[device_id]), device_id))
    num_aside = min(num_aside, (len(ordered) - 1) // 2)
    kept = ordered[num_aside : len(ordered) - num_aside]
    return {device_id: rows[device_id] for device_id in sorted(kept)}


def _rounds(rows: Rows, cap: float) -> tuple[float, ...]:
    """Round i merges each device's i-th newest window, as long as half of the devices have one."""
    rounds = []
    for i in range(max(len(found) for found in rows.values())):
        present = [found[i] for found in rows.values() if len(found) > i]
        if 2 * len(present) < len(rows):
            break
        rounds.append(quantile_of(_sorted_atoms(present, cap), P95))
    return tuple(rounds)


def _interval(rows: Rows, cap: float, settings: PolicySettings) -> tuple[float, float, float]:
    """p95 with its lower and upper bound."""
    blocks = list(rows.values())
    flat = [row for found in blocks for row in found]
    weights = [min(row.count, cap) for row in flat]
    atoms = sorted(
        (value, weight * share, i)
        for i, (row, weight) in enumerate(zip(flat, weights, strict=True))
        for value, share in zip(row.quantiles_ms, SHARES, strict=True)
    )
    plain = [(value, weight) for value, weight, _ in atoms]
    p95_ms = quantile_of(plain, P95)
    # Even one long window is only so sure of its own p95.
    wiggle = NormalDist().inv_cdf((1 + settings.confidence) / 2) * math.sqrt(P95 * (1 - P95) / sum(weights))
    lower = quantile_of(plain, max(0.5, P95 - wiggle))
    upper = quantile_of(plain, min(0.995, P95 + wiggle))
    if len(flat) > 1:
        found_p95 = _resampled(blocks, atoms, settings)
        tail = (1 - settings.confidence) / 2
        last = len(found_p95) - 1
        lower = min(lower, found_p95[math.floor(tail * last)])
        upper = max(upper, found_p95[math.ceil((1 - tail) * last)])
    # A few windows rarely hold the fleet's worst, so resampling them cannot show it: stretch the upper side.
    stretched = p95_ms * math.exp(math.log(max(upper, p95_ms) / p95_ms) * (1 + _STRETCH / len(flat)))
    return p95_ms, min(lower, p95_ms), stretched


def _resampled(
    blocks: Sequence[Sequence[EvidenceRow]],
    atoms: Sequence[tuple[float, float, int]],
    settings: PolicySettings,
) -> list[float]:
    """Sorted p95 of fleets drawn from this one: devices with replacement, then windows of each."""
    rng = random.Random(_seed(blocks))
    starts = list(accumulate((len(block) for block in blocks), initial=0))
    row_weights = [0.0] * starts[-1]
    for _, weight, i in atoms:
        row_weights[i] += weight
    from_top = atoms[::-1]
    num_draws = min(settings.num_resamples, max(40, _MAX_RESAMPLED_ATOMS // len(atoms)))
    results = []
    for _ in range(num_draws):
        times = [0] * starts[-1]
        # One or two devices say nothing about how devices differ: then only their windows are drawn.
        chosen = rng.choices(range(len(blocks)), k=len(blocks)) if len(blocks) > 2 else range(len(blocks))
        for i in chosen:
            for j in rng.choices(range(starts[i], starts[i + 1]), k=len(blocks[i])):
                times[j] += 1
        total = sum(weight * n for weight, n in zip(row_weights, times, strict=True))
        # The same as quantile_of, without building the drawn fleet: only its upper twentieth is looked at.
        left = (1 - P95) * total
        drawn: list[tuple[float, float]] = []
        for value, weight, i in from_top:
            if times[i]:
                drawn.append((value, weight * times[i]))
                if left < 0:
                    break
                left -= weight * times[i]
        results.append(quantile_of_top(drawn, (1 - P95) * total))
    return sorted(results)


def _seed(blocks: Sequence[Sequence[EvidenceRow]]) -> int:
    text = repr(
        [[(row.device_id, row.end_s, row.count, row.quantiles_ms) for row in found] for found in blocks]
    )
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
