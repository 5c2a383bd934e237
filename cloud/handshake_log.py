"""Which TLS handshakes failed, and why, from the only place where gRPC says so: its standard error.

A client without a certificate, with an expired one or with one of a stranger never reaches Python: gRPC's
core refuses it and writes one line. This module reads standard error in between, takes those lines, and
passes all others on unchanged. gRPC does not say where the client was; a firewall's log does.

Call ``start`` before anything else of gRPC, credentials too: it reads its verbosity once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import threading
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

_FAILED = re.compile(
    rb"^I[0-9]{4} .*Handshake failed with error [A-Z_]+: error:[0-9a-f]+:.*?OPENSSL_internal:([A-Z_]+): (.*)$"
)
_CORE_INFO = re.compile(rb"^[IW][0-9]{4} [0-9:.]+ +[0-9]+ [a-z_0-9]+\.cc:[0-9]+\] ")
_CORE_WARNING_OF_OURS: Final = b"is not suitable for production"
_REASONS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no certificate was shown",
    "BAD_SIGNATURE": "the certificate was signed by another authority of the same name",
    "CERTIFICATE_VERIFY_FAILED": "the certificate is not accepted",
    "WRONG_VERSION_NUMBER": "it was no TLS",
    "HTTP_REQUEST": "it was plain HTTP",
    "UNSUPPORTED_PROTOCOL": "an old version of TLS",
    "NO_SHARED_CIPHER": "no common cipher",
}
_MAX_WAITING = 1000
_MAX_LINE = 64 * 1024


def reason_of(line: bytes) -> str | None:
    """Why a handshake failed, for people; None for any other line."""
    found = _FAILED.match(line)
    if found is None:
        return None
    code, detail = found[1].decode(), found[2].decode(errors="replace")[:200]
    text = _REASONS.get(code, code.lower().replace("_", " "))
    return f"{text}: {detail}" if code == "CERTIFICATE_VERIFY_FAILED" else text


class HandshakeLog:
    """``start``, then ``listen`` once there is somebody to tell, then ``stop``."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[str | None] = queue.Queue(_MAX_WAITING)
        self._real = -1
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Stand between this process and its standard error."""
        os.environ["GRPC_VERBOSITY"] = "INFO"
        self._real = os.dup(2)
        source, sink = os.pipe()
        os.dup2(sink, 2)
        os.close(sink)
        self._reader = threading.Thread(target=self._read, args=(source,), name="handshake-log", daemon=True)
        self._reader.start()

    def listen(self, on_failure: Callable[[str], None]) -> None:
        """Have it called with each reason, on a thread of its own. A flood loses some."""
        teller = threading.Thread(target=self._tell, args=(on_failure,), name="handshake-audit", daemon=True)
        teller.start()

    def stop(self) -> None:
        """Step aside; what was written until now still gets through. Safe to call twice."""
        reader, self._reader = self._reader, None
        if reader is None:
            return
        os.dup2(self._real, 2)
        # A child that was started meanwhile may hold the other end: then the thread stays, and goes on.
        reader.join(1.0)
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)

    def _read(self, source: int) -> None:
        with os.fdopen(source, "rb") as lines:
            while line := lines.readline(_MAX_LINE):
                reason = reason_of(line)
                if reason is not None:
                    with contextlib.suppress(queue.Full):
                        self._waiting.put_nowait(reason)
                elif not (_CORE_INFO.match(line) and (line[:1] == b"I" or _CORE_WARNING_OF_OURS in line)):
                    with contextlib.suppress(OSError):
                        os.write(self._real, line)

    def _tell(self, on_failure: Callable[[str], None]) -> None:
        while (reason := self._waiting.get()) is not None:
            try:
                on_failure(reason)
            except Exception:  # the next one may be written
                logger.exception("a failed handshake could not be written down")
