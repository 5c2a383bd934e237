"""``make bench``: run every benchmark, one after the other, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "benchmarks.agent",
    "benchmarks.quantisation",
    "benchmarks.reports",
    "benchmarks.rules",
    "benchmarks.serving",
    "benchmarks.wire_size",
)


def main() -> int:
    failed = [
        name for name in BENCHMARKS if subprocess.run([sys.executable, "-m", name], check=False).returncode
    ]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
