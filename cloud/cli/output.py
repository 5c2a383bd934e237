"""Tables for people, JSON and YAML for programs, from the same messages.

Results go to standard output, everything else to standard error, so that a pipe carries results alone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import yaml
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column as TableColumn
from rich.table import Table

from cloud.cli.plain import plain
from cloud.cli.table import Column, lay_out

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def show_values(values: Any, output: Output) -> None:
    """Print plain values as JSON or YAML."""
    if output is Output.JSON:
        print(json.dumps(values, indent=2))
    else:
        print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")


def show_line(values: Any, output: Output) -> None:
    """Print one of several values as they come: JSON a line each, YAML as documents."""
    if output is Output.JSON:
        print(json.dumps(values), flush=True)
    else:
        print("---\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="", flush=True)


def show_list(messages: Sequence[Message], columns: Sequence[Column], output: Output, *, empty: str) -> None:
    """Print messages as a table, or as a list of plain values. ``empty`` says what to do to get the first."""
    if output is not Output.TABLE:
        show_values([plain(message) for message in messages], output)
        return
    if not messages:
        stderr.print(empty)
        return
    header, *lines = lay_out(columns, messages, _width())
    stdout.print(header, style="bold", soft_wrap=True, markup=False)
    for line in lines:
        stdout.print(line, soft_wrap=True, markup=False)


def _width() -> int | None:
    """Of the terminal; a file or a pipe gets everything, unless somebody asks for COLUMNS."""
    return stdout.width if stdout.is_terminal or "COLUMNS" in os.environ else None


def make_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """A plain table; columns that hold only numbers are set to the right."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", header_style="bold")
    for index, header in enumerate(headers):
        numeric = all(_is_number(row[index]) for row in rows)
        table.add_column(header, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _is_number(text: str) -> bool:
    return not text or text == "-" or text[0].isdigit()


def job_progress(console: Console) -> Progress:
    """A bar for each job; tasks carry the field ``name``. A long message is cut, never the bar."""
    return Progress(
        TextColumn("{task.fields[name]}", table_column=TableColumn(min_width=22, no_wrap=True)),
        BarColumn(bar_width=16, table_column=TableColumn(min_width=16)),
        TaskProgressColumn(table_column=TableColumn(min_width=4)),
        TimeElapsedColumn(table_column=TableColumn(min_width=7)),
        TextColumn(
            "{task.description}", table_column=TableColumn(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        console=console,
        expand=True,
    )


def short(digest: str) -> str:
    """A digest as people read it."""
    return digest[:12] or "-"


def milliseconds(value: float) -> str:
    """A latency with three significant digits, ``-`` for one that was not measured."""
    if not value or not math.isfinite(value):
        return "-"
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"


def percent(value: float) -> str:
    """A share of 0 to 1 with two decimals, ``-`` for 0."""
    return f"{value * 100:.2f} %" if value else "-"


def size(value: int) -> str:
    """Bytes in the unit that people would choose (powers of 1000)."""
    if not value:
        return "-"
    amount = float(value)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"
