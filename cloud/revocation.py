"""Carries what operators revoke to where it counts, within about a second.

The database is the truth: each control plane looks there, so that it does not matter which of them was told.
What changed goes to the guard of the fleet's port (which cuts live streams), to the broker's revocation list
and, for what is new, to the broker's live sessions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Protocol

from cryptography import x509

from cloud.domain.identities import CertificateRecord
from cloud.pki.authority import Authority
from cloud.pki.key_folder import write_file
from edgeloop.errors import EdgeloopError

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0


class RevocationStore(Protocol):
    """What of the store is used here."""

    def revoked_certificates(self, now_s: float) -> list[CertificateRecord]: ...


class RevocationWatch:
    """``start`` returns once the first look is through; hooks run on the watch's own thread."""

    def __init__(
        self,
        store: RevocationStore,
        authority: Authority,
        list_path: Path,
        *,
        on_serials: Callable[[Collection[str]], None],
        on_new: Callable[[Iterable[str]], None],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._authority = authority
        self._list_path = list_path
        self._on_serials = on_serials
        self._on_new = on_new
        self._now_s = now_s
        self._known: frozenset[str] | None = None
        self._written: frozenset[str] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="revocation", daemon=True)

    def start(self) -> None:
        """Raises what the first look raises: a control plane that cannot revoke does not start."""
        self._written = _listed(self._list_path)
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """Look no more. Safe to call twice."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def look(self) -> None:
        """One round."""
        records = self._store.revoked_certificates(self._now_s())
        serials = frozenset(record.serial for record in records)
        if serials != self._known:
            self._on_serials(serials)
        if serials != self._written:
            entries = [(record.serial, record.revoke_time_s) for record in records]
            write_file(self._list_path, self._authority.revocation_list(entries, self._now_s()), 0o644)
            self._written = serials
        if self._known is not None:
            self._on_new(record.device_id for record in records if record.serial not in self._known)
        self._known = serials

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL_S):
            try:
                self.look()
            except EdgeloopError as error:
                logger.warning("revocations cannot be carried out now, will try again: %s", error)
            except Exception:  # whatever it was, the next round may succeed
                logger.exception("revocations cannot be carried out now")


def _listed(path: Path) -> frozenset[str] | None:
    """The serials in the list that is there; None when it cannot be read."""
    try:
        found = x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError):
        return None
    return frozenset(f"{entry.serial_number:x}" for entry in found)
