"""The control script, ``edgeloop``: its modules parse, call ControlService and print, and decide nothing."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the control script."""
    # gRPC would write lines of its own beside our messages; it reads this when it is imported. A server says
    # later what it wants to hear: failed handshakes.
    hears_handshakes = sys.argv[1:2] == ["serve"] and (
        "EDGELOOP_TLS_DIR" in os.environ or any(word.startswith("--tls-dir") for word in sys.argv)
    )
    if not hears_handshakes:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from cloud.cli.app import main as run
    except KeyboardInterrupt:  # half a second in which Ctrl-C would show where Python was
        sys.exit(130)
    run()
