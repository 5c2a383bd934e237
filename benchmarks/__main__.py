"""Benchmarks, one after the other, each in a process of its own.

python -m benchmarks                      all of them (``make bench``)
python -m benchmarks delivery serving     those
python -m benchmarks fleet --devices 500  one of them, with options of its own (``fleet --help`` lists them)
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

BENCHMARKS = (
    "agent",
    "batching",
    "delivery",
    "deltas",
    "fleet",
    "fleet_turn",
    "quantisation",
    "reports",
    "rules",
    "sensor_windows",
    "serving",
    "wire_size",
)
#: Hours on a CPU: run when they are named, not with all others.
LONG_BENCHMARKS = ("compression", "compression_depth", "learning_rates", "students")
USAGE_ERROR, INTERRUPTED = 2, 130


def listing() -> str:
    """How to use it, and each benchmark with the first sentence of what it says of itself."""
    names = sorted((*BENCHMARKS, *LONG_BENCHMARKS))
    width = max(map(len, names))
    lines = [
        f"  {name.ljust(width)}  {about(name)}{' (hours)' if name in LONG_BENCHMARKS else ''}"
        for name in names
    ]
    return "\n".join([(__doc__ or "").strip(), "", "There are:", "", *lines])


def about(name: str) -> str:
    """Read, not imported: that takes seconds for each."""
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".").replace("``", "")


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names in front, and what follows from the first option on."""
    first = next((i for i, text in enumerate(arguments) if text.startswith("-")), len(arguments))
    return list(arguments[:first]), list(arguments[first:])


def main() -> int:
    names, options = split(sys.argv[1:])
    if not names and options and set(options) <= {"-h", "--help"}:
        print(listing())
        return 0
    known = (*BENCHMARKS, *LONG_BENCHMARKS)
    if unknown := sorted(set(names) - set(known)):
        there = ", ".join(sorted(known))
        print(f"no such benchmark: {', '.join(unknown)}; there are {there}", file=sys.stderr)
        return USAGE_ERROR
    if options and len(names) != 1:
        print(f"{options[0]} goes to one benchmark: name it before its options", file=sys.stderr)
        return USAGE_ERROR
    failed = []
    try:
        for name in names or BENCHMARKS:
            command = [sys.executable, "-m", f"benchmarks.{name}", *options]
            if code := subprocess.run(command, check=False).returncode:
                failed.append((name, code))
    except KeyboardInterrupt:
        return INTERRUPTED
    if failed:
        print(f"failed: {', '.join(name for name, _ in failed)}", file=sys.stderr)
    # Of one alone, what it said itself: 2 is a wrong option.
    return failed[0][1] if len(names) == 1 and failed else bool(failed)


if __name__ == "__main__":
    sys.exit(main())
