"""Points on a grid of characters: small enough for a terminal, plain enough for a log.

Rules: later points win over earlier ones in the same cell; the axes say their ends and nothing is cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LABEL_WIDTH = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    x: float
    y: float
    mark: str


def scatter(
    dots: Sequence[Dot],
    *,
    width: int = 64,
    height: int = 14,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
) -> list[str]:
    """Lines of text. ``x`` is on a logarithmic axis and must be positive."""
    if not dots:
        return []
    xs, ys = [math.log(dot.x) for dot in dots], [dot.y for dot in dots]
    cells = [[" "] * width for _ in range(height)]
    for dot, x in zip(dots, xs, strict=True):
        column = _place(x, min(xs), max(xs), width)
        row = height - 1 - _place(dot.y, min(ys), max(ys), height)
        cells[row][column] = dot.mark
    labels = {0: y_text(max(ys)), height - 1: y_text(min(ys))}
    lines = [
        f"{labels.get(row, ''):>{_LABEL_WIDTH}} |{''.join(found)}".rstrip() for row, found in enumerate(cells)
    ]
    lines.append(" " * _LABEL_WIDTH + " +" + "-" * width)
    left, right = x_text(min(dot.x for dot in dots)), x_text(max(dot.x for dot in dots))
    lines.append(" " * (_LABEL_WIDTH + 2) + left + right.rjust(width - len(left)))
    return lines


def _place(value: float, low: float, high: float, count: int) -> int:
    """The middle when there is no range."""
    if high <= low:
        return count // 2
    return round((value - low) / (high - low) * (count - 1))
