"""How latency follows width, read off students that were built and measured.

Rules: the curve rises, in logarithms; multiply-accumulates are never asked, they mislead. It is of students
that have all of the teacher's layers: shorter ones and other networks say nothing about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from cloud.domain.candidates import Candidate

#: Widths that are proposed lie on a grid of so many parts.
GRID = 16
#: How latency follows width where only one student was built: (low, assumed, high) exponents.
_SLOPES = (0.25, 1.0, 2.5)


def width_for(candidates: Sequence[Candidate], target_latency_ms: float) -> float:
    """The width that would measure the target latency; between measured ones read off, beyond them assumed.

    Raises ``ValueError`` when nothing was built yet.
    """
    points = _points(candidates)
    goal = math.log(target_latency_ms)
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 <= goal <= y1 and y1 > y0:
            return math.exp(x0 + (x1 - x0) * (goal - y0) / (y1 - y0))
    x, y = points[0] if goal < points[0][1] else points[-1]
    return math.exp(x + (goal - y) / _outer_slope(points, below=goal < points[0][1]))


def latency_at(candidates: Sequence[Candidate], width_ratio: float) -> float:
    """What a student of this width would measure, in milliseconds; the inverse of ``width_for``.

    Raises ``ValueError`` when nothing was built yet.
    """
    points = _points(candidates)
    wish = math.log(width_ratio)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= wish <= x1:
            return math.exp(y0 + (y1 - y0) * (wish - x0) / (x1 - x0))
    x, y = points[0] if wish < points[0][0] else points[-1]
    return math.exp(y + (wish - x) * _outer_slope(points, below=wish < points[0][0]))


def _points(candidates: Sequence[Candidate]) -> list[tuple[float, float]]:
    """(log width, log latency), made to rise: neighbours that fall are averaged (pool adjacent violators).

    Of one width built twice the middle counts: roads differ in weights, hardly in latency.
    """
    if not candidates:
        raise ValueError("no student was built yet: propose the initial ones first")
    by_width: dict[float, list[float]] = {}
    for candidate in candidates:
        by_width.setdefault(candidate.spec.width_ratio, []).append(candidate.metrics.latency_p50_ms)
    pools: list[tuple[list[float], float, int]] = []
    for width in sorted(by_width):
        values = sorted(by_width[width])
        pools.append(([math.log(width)], math.log(values[len(values) // 2]), 1))
        while len(pools) > 1 and pools[-2][1] > pools[-1][1]:
            (xs0, y0, n0), (xs1, y1, n1) = pools[-2:]
            pools[-2:] = [(xs0 + xs1, (y0 * n0 + y1 * n1) / (n0 + n1), n0 + n1)]
    return [(x, y) for xs, y, _ in pools for x in xs]


def _outer_slope(points: Sequence[tuple[float, float]], *, below: bool) -> float:
    low, assumed, high = _SLOPES
    if len(points) < 2:
        return assumed
    (x0, y0), (x1, y1) = (points[0], points[1]) if below else (points[-2], points[-1])
    return min(high, max(low, (y1 - y0) / (x1 - x0)))
