"""Benchmarks, one after the other, each in a process of its own.

python -m benchmarks                      all of them (``make bench``)
python -m benchmarks delivery serving     those
"""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "benchmarks.agent",
    "benchmarks.batching",
    "benchmarks.delivery",
    "benchmarks.deltas",
    "benchmarks.fleet",
    "benchmarks.fleet_turn",
    "benchmarks.quantisation",
    "benchmarks.reports",
    "benchmarks.rules",
    "benchmarks.sensor_windows",
    "benchmarks.serving",
    "benchmarks.wire_size",
)


def main() -> int:
    wanted = [f"benchmarks.{name}" for name in sys.argv[1:]] or BENCHMARKS
    if unknown := sorted(set(wanted) - set(BENCHMARKS)):
        known = ", ".join(name.removeprefix("benchmarks.") for name in BENCHMARKS)
        print(f"no such benchmark: {', '.join(unknown)}; there are {known}", file=sys.stderr)
        return 2
    failed = [name for name in wanted if subprocess.run([sys.executable, "-m", name], check=False).returncode]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
