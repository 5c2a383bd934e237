"""A small curve of p95 with its objective as a dashed line, as inline SVG.

Nothing but numbers goes into it, and no style: the page's policy forbids inline styles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cloud.web.values import Point

WIDTH, HEIGHT = 160, 36
_MARGIN = 3


def sparkline(points: Sequence[Point], objective_p95_ms: float) -> str:
    """SVG, or an empty text where fewer than two figures can be drawn. 0 stands for no objective."""
    found = sorted(
        (point for point in points if math.isfinite(point.p95_ms) and point.p95_ms >= 0),
        key=lambda point: point.time_s,
    )
    if len(found) < 2 or found[-1].time_s <= found[0].time_s:
        return ""
    objective_ms = objective_p95_ms if math.isfinite(objective_p95_ms) else 0.0
    top_ms = max(objective_ms, *(point.p95_ms for point in found)) or 1.0
    first_s, span_s = found[0].time_s, found[-1].time_s - found[0].time_s

    def y(value_ms: float) -> str:
        return f"{HEIGHT - _MARGIN - (HEIGHT - 2 * _MARGIN) * value_ms / top_ms:.1f}"

    line = " ".join(
        f"{_MARGIN + (WIDTH - 2 * _MARGIN) * (point.time_s - first_s) / span_s:.1f},{y(point.p95_ms)}"
        for point in found
    )
    said = f"p95 over {span_s / 60:.0f} min, {found[0].p95_ms:.3g} to {found[-1].p95_ms:.3g} ms"
    goal = (
        f'<line class="goal" x1="0" x2="{WIDTH}" y1="{y(objective_ms)}" y2="{y(objective_ms)}"/>'
        if objective_ms > 0
        else ""
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img"'
        f' aria-label="{said}"><title>{said}</title>{goal}<polyline class="p95" points="{line}"/></svg>'
    )
