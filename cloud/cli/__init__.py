"""The control script, ``edgeloop``: its modules parse, call ControlService and print, and decide nothing."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the control script."""
    # gRPC would write lines of its own beside our messages; it reads this when it is imported. A server says
    # later what it wants to hear: failed handshakes.
    if sys.argv[1:2] != ["serve"]:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from cloud.cli.app import main as run

    run()
