"""Lists as text that reads well at any width.

Rules that this module keeps:

* A cell is one line and is never broken, so that digests can be copied and lines can be searched.
* What does not fit goes in this order: notes (messages, reasons) move to a line of their own under the row;
  then the columns that matter least are left out, the last of them first. ``-o json`` has everything.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_GAP = "  "
_NOTE_INDENT = "    "
MAX_NOTE_CHARS = 400
_NUMBER = re.compile(r"[0-9.]+( (ms|%|B|kB|MB|GB))?|[0-9]+/[0-9]+")


@dataclass(frozen=True, slots=True)
class Column:
    """``rank`` 0 is always shown; the higher it is, the sooner the column is left out."""

    header: str
    cell: Callable[[Any], str]
    rank: int = 0
    note: bool = False


def lay_out(columns: Sequence[Column], items: Sequence[Any], width: int | None) -> list[str]:
    """The lines of a table; ``width`` None takes all the room that it needs."""
    shown = list(columns)
    cells = {column.header: [_one_line(column.cell(item)) for item in items] for column in columns}
    below: list[Column] = []
    if not _fits(shown, cells, width):
        below = [column for column in shown if column.note]
        shown = [column for column in shown if not column.note]
    while not _fits(shown, cells, width) and any(column.rank for column in shown):
        shown.remove(max(reversed(shown), key=lambda column: column.rank))
    widths = _widths(shown, cells)
    right = [all(_is_number(text) for text in cells[column.header]) for column in shown]
    lines = [_line([column.header for column in shown], widths, right)]
    for index in range(len(items)):
        lines.append(_line([cells[column.header][index] for column in shown], widths, right))
        for column in below:
            lines += textwrap.wrap(
                cells[column.header][index],
                width=max(width or 0, 40),
                initial_indent=_NOTE_INDENT,
                subsequent_indent=_NOTE_INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
    return lines


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_NOTE_CHARS else line[: MAX_NOTE_CHARS - 1] + "…"


def _widths(columns: Sequence[Column], cells: dict[str, list[str]]) -> list[int]:
    return [max(len(text) for text in [column.header, *cells[column.header]]) for column in columns]


def _fits(columns: Sequence[Column], cells: dict[str, list[str]], width: int | None) -> bool:
    needed = sum(_widths(columns, cells)) + len(_GAP) * (len(columns) - 1)
    return width is None or needed <= width


def _line(texts: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = [
        text.rjust(size) if is_right else text.ljust(size)
        for text, size, is_right in zip(texts, widths, right, strict=True)
    ]
    return _GAP.join(parts).rstrip()


def _is_number(text: str) -> bool:
    return text in ("", "-") or _NUMBER.fullmatch(text) is not None
