"""What device and cloud agree on about certificates.

Rules kept here:

- A private key never leaves the device: what travels is a request (PKCS #10) that proves that the key is
  there.
- Keys are P-256, which both gRPC and Mosquitto take; connections are TLS 1.3.
- A device's name is the common name of its certificate. It comes from the token, never from the request.
- The key of an expired certificate may vouch for a new request; the prefix keeps that signature from being
  taken for one over anything else.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from edgeloop.errors import ConfigError, RejectedError

#: A certificate is renewed once this share of its life has passed.
RENEW_AT_RATIO: Final = 2 / 3
MAX_REQUEST_BYTES: Final = 4096
MAX_CERTIFICATE_BYTES: Final = 8192
_VOUCH_PREFIX: Final = b"edgeloop.v1.ReEnrol\0"


@dataclass(frozen=True, kw_only=True, slots=True)
class CertificateFacts:
    """What is read from a certificate. ``serial`` is lower-case hex."""

    name: str
    serial: str
    not_before_s: float
    not_after_s: float

    @property
    def renew_at_s(self) -> float:
        return self.not_before_s + (self.not_after_s - self.not_before_s) * RENEW_AT_RATIO


def new_private_key() -> bytes:
    """A new P-256 key as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate_request(key_pem: bytes, name: str) -> bytes:
    """A request in DER. The name is for people who look at it: the server does not believe it."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(_private(key_pem), hashes.SHA256()).public_bytes(Encoding.DER)


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The key that a request is for. Raises ``RejectedError`` ("csr") unless it is signed with that key."""
    try:
        if len(request) > MAX_REQUEST_BYTES:
            raise ValueError(f"it has {len(request)} bytes, over {MAX_REQUEST_BYTES}")
        parsed = x509.load_der_x509_csr(request)
        key = parsed.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("its key is not of the kind P-256")
        if not parsed.is_signature_valid:
            raise ValueError("it is not signed with its own key")
    except Exception as error:  # noqa: BLE001 - whatever a parser of foreign bytes raises means the same
        raise RejectedError(
            f"certificate_request cannot be used ({error}): make a new key and request, and try again",
            code="csr",
        ) from None
    return key


def key_digest(key: ec.EllipticCurvePublicKey) -> str:
    """What a public key is known by: sha256 over its DER."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def read_certificate(pem: bytes) -> x509.Certificate:
    """Raises ``RejectedError`` ("certificate") for anything but a certificate."""
    try:
        if len(pem) > MAX_CERTIFICATE_BYTES:
            raise ValueError(f"it has {len(pem)} bytes, over {MAX_CERTIFICATE_BYTES}")
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise RejectedError(f"certificate_pem is no certificate ({error})", code="certificate") from None


def facts(certificate: x509.Certificate) -> CertificateFacts:
    """Name, serial and life of a certificate. Raises ``RejectedError`` ("certificate") without a name."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise RejectedError("the certificate has not exactly one common name", code="certificate")
    return CertificateFacts(
        name=str(names[0].value),
        serial=f"{certificate.serial_number:x}",
        not_before_s=certificate.not_valid_before_utc.timestamp(),
        not_after_s=certificate.not_valid_after_utc.timestamp(),
    )


def vouch(old_key_pem: bytes, request: bytes) -> bytes:
    """The old key's word for a new request."""
    return _private(old_key_pem).sign(_VOUCH_PREFIX + request, ec.ECDSA(hashes.SHA256()))


def check_vouched(certificate: x509.Certificate, request: bytes, signature: bytes) -> None:
    """Raises ``RejectedError`` ("signature") unless the certificate's key signed for the request."""
    key = certificate.public_key()
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        key.verify(signature, _VOUCH_PREFIX + request, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise RejectedError(
            "signature does not belong to the key of the expired certificate: enrol again with a new token",
            code="signature",
        ) from None


def client_context(*, ca_file: Path, identity_file: Path | None = None) -> ssl.SSLContext:
    """For a client: TLS 1.3, trusts ``ca_file`` alone, shows key and certificate of ``identity_file``.

    Raises ``ConfigError`` ("tls-files") that names the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    path = ca_file
    try:
        context.load_verify_locations(cafile=str(ca_file))
        if identity_file is not None:
            path = identity_file
            context.load_cert_chain(str(identity_file))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be used for TLS ({error}): give a PEM file that this user can read",
            code="tls-files",
        ) from None
    return context


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the private key is not of the kind P-256: enrol again", code="identity-key")
    return key
