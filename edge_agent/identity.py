"""The identity of this device: what enrolment left in the state folder.

Rules:
- Key and certificate are one file, so that no crash leaves a key with the certificate of another.
- The file is its owner's alone, from the moment that it exists.
- What enrolment told lies there twice, so that one damaged file keeps no device from serving and connecting.
- What is there is used for both connections; there is no switch to do without.
"""

import contextlib
import json
import logging
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.config import ENROLMENT_COPY, ENROLMENT_FILE, is_enrolled
from edge_agent.journal import fsync_folder
from edgeloop.errors import ConfigError, EdgeloopError
from edgeloop.identity import CertificateFacts, client_context, facts, read_certificate

if TYPE_CHECKING:
    import grpc

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_FOLDER = ENROLMENT_FILE.parent
IDENTITY_FILE = _FOLDER / "identity.pem"
CA_FILE = _FOLDER / "ca.crt"
_BEGIN_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """``enrol_server`` is where it enrolled, and may enrol again."""

    state_dir: Path
    facts: CertificateFacts
    key_pem: bytes
    certificate_pem: bytes
    ca_pem: bytes
    enrol_server: str

    @property
    def device_id(self) -> str:
        return self.facts.name

    def fleet_credentials(self) -> "grpc.ChannelCredentials":
        import grpc

        return grpc.ssl_channel_credentials(self.ca_pem, self.key_pem, self.certificate_pem)

    def broker_context(self) -> ssl.SSLContext:
        return client_context(ca_file=self.state_dir / CA_FILE, identity_file=self.state_dir / IDENTITY_FILE)


def load_identity(state_dir: Path) -> Identity | None:
    """None in a folder that was never enrolled. Raises ConfigError for one that is damaged."""
    if not is_enrolled(state_dir):
        return None
    try:
        told = _enrolment(state_dir)
        pem = (state_dir / IDENTITY_FILE).read_bytes()
        at = pem.index(_BEGIN_CERTIFICATE)
        certificate_pem = pem[at:]
        return Identity(
            state_dir=state_dir,
            facts=facts(read_certificate(certificate_pem)),
            key_pem=pem[:at],
            certificate_pem=certificate_pem,
            ca_pem=(state_dir / CA_FILE).read_bytes(),
            enrol_server=str(told["enrol_server"]),
        )
    except (OSError, ValueError, KeyError, TypeError, EdgeloopError) as error:
        raise ConfigError(
            f"the identity in {state_dir / _FOLDER} is damaged ({error}): enrol again with a new token",
            code="identity-files",
        ) from error


def save_enrolment(state_dir: Path, ca_pem: bytes, told: dict[str, str]) -> None:
    """What does not change when a certificate is renewed. Written last: with it the folder is enrolled."""
    write_private(state_dir / CA_FILE, ca_pem)
    text = json.dumps({"format_version": FORMAT_VERSION, **told}, indent=1)
    write_private(state_dir / ENROLMENT_FILE, f"{text}\n".encode())
    write_private(state_dir / ENROLMENT_COPY, f"{text}\n".encode())


def mend_enrolment(state_dir: Path) -> None:
    """Makes what enrolment told and its copy alike again, from the one that reads. Never raises.

    The file itself counts where both read: a copy may be from before the last enrolment.
    """
    raw: dict[Path, bytes] = {}
    for name in (ENROLMENT_FILE, ENROLMENT_COPY):
        try:
            raw[name] = (state_dir / name).read_bytes()
        except OSError:
            continue
    if ENROLMENT_FILE not in raw:
        return  # never enrolled, or no more
    good = next((name for name in raw if _reads(raw[name])), None)
    if good is None or raw.get(ENROLMENT_FILE) == raw.get(ENROLMENT_COPY):
        return
    other = ENROLMENT_COPY if good == ENROLMENT_FILE else ENROLMENT_FILE
    try:
        write_private(state_dir / other, raw[good])
    except ConfigError as error:
        logger.warning("%s", error.message)
    else:
        if other == ENROLMENT_FILE:
            logger.warning("%s was damaged: written again from its copy", state_dir / other)


def _reads(raw: bytes) -> bool:
    try:
        told = json.loads(raw)
    except ValueError:
        return False
    return isinstance(told, dict) and "enrol_server" in told


def _enrolment(state_dir: Path) -> Any:
    """Raises OSError or ValueError."""
    raw = (state_dir / ENROLMENT_FILE).read_bytes()
    if not _reads(raw):
        with contextlib.suppress(OSError):
            raw = (state_dir / ENROLMENT_COPY).read_bytes()
    return json.loads(raw)


def save_certificate(state_dir: Path, key_pem: bytes, certificate_pem: bytes) -> None:
    """Key and certificate, whole or not at all."""
    write_private(state_dir / IDENTITY_FILE, key_pem.rstrip() + b"\n" + certificate_pem)


def write_private(path: Path, content: bytes) -> None:
    """Durable, for its owner alone. Raises ConfigError."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}): check --state-dir", code="state-dir"
        ) from None
