"""Ends the live session of a revoked device at the broker.

A revocation list keeps a device from connecting again, but no broker ends the session that it has. MQTT does:
a client that connects with an id that is in use ends the session of the one before it. The broker makes the
certificate's name the client id, and the control plane can make a certificate of any name: so it connects as
the device, with a certificate of one minute that never leaves this process, and goes away again.

The broker reads a new list within a second or so: until then the device may come back, so it is done thrice.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from cloud.pki.authority import Authority
from edgeloop.identity import client_context, new_private_key
from edgeloop.mqtt import MqttSession

logger = logging.getLogger(__name__)

_AT_S: Final = (0.5, 3.0, 6.0)
_CERTIFICATE_LIFE_S: Final = 60.0
_CONNECT_S: Final = 3.0


class BrokerKick:
    """``kick`` returns at once; ``stop`` ends what is under way."""

    def __init__(self, host: str, port: int, authority: Authority, ca_file: Path) -> None:
        self._host = host
        self._port = port
        self._authority = authority
        self._ca_file = ca_file
        self._stopping = threading.Event()

    def kick(self, device_ids: Iterable[str]) -> None:
        """End the sessions of these devices, now and again until the broker has read its new list."""
        names = sorted(set(device_ids))
        if names:
            threading.Thread(target=self._run, args=(names,), name="broker-kick", daemon=True).start()

    def stop(self) -> None:
        """Kick no more."""
        self._stopping.set()

    def _run(self, names: list[str]) -> None:
        began_s = time.monotonic()
        for at_s in _AT_S:
            if self._stopping.wait(max(0.0, began_s + at_s - time.monotonic())):
                return
            for name in names:
                try:
                    self._take_over(name)
                except Exception:  # one that fails keeps no other from being kicked
                    logger.exception("the session of %s at the broker could not be ended", name)

    def _take_over(self, name: str) -> None:
        key_pem = new_private_key()
        key = load_pem_private_key(key_pem, password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        certificate = self._authority.issue_client(
            name, key.public_key(), now_s=time.time(), life_s=_CERTIFICATE_LIFE_S
        )
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # only its owner can read it
            file.write(key_pem + certificate.public_bytes(Encoding.PEM))
            file.flush()
            context = client_context(ca_file=self._ca_file, identity_file=Path(file.name))
        session = MqttSession(self._host, self._port, name, tls=context)
        session.start()
        try:
            if session.wait_connected(_CONNECT_S):
                logger.info("ended the session of %s at the broker", name)
            else:
                logger.warning("the session of %s at the broker may live on: %s", name, session.last_error)
        finally:
            session.close(1.0)
