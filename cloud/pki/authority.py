"""A certificate authority: issues certificates and revocation lists.

Rules kept here:

- Two authorities, never one: what proves a server to devices cannot be made with what proves a device to
  servers, and the other way round. Each certificate says in its extended key usage which of the two it is.
- Names and validity come from the caller; of a request only the public key is taken.
- A revocation list is pushed (a new file and a signal to the broker), not fetched: so it is valid for long,
  as its expiry could only be an outage.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgeloop.errors import ConfigError
from edgeloop.identity import new_private_key

AUTHORITY_LIFE_S: Final = 20 * 365 * 86_400.0
SERVER_LIFE_S: Final = 825 * 86_400.0
_LIST_LIFE_S: Final = 10 * 365 * 86_400.0
#: Clocks of devices may be behind by this much.
_BACKDATED_S: Final = 300.0


class Authority:
    """Holds the private key of one authority. Safe to call from any thread."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, name: str, now_s: float) -> tuple[Authority, bytes]:
        """A new self-signed authority, and its private key as PEM."""
        key_pem = new_private_key()
        key = _private(key_pem)
        subject = _name(name)
        certificate = (
            _builder(subject, key.public_key(), now_s, now_s + AUTHORITY_LIFE_S)
            .issuer_name(subject)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate), key_pem

    @classmethod
    def load(cls, key_pem: bytes, certificate_pem: bytes) -> Authority:
        """Raises ``ConfigError`` ("authority") for files that are damaged or do not belong together."""
        try:
            key = _private(key_pem)
            certificate = x509.load_pem_x509_certificate(certificate_pem)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"the certificate authority's files are damaged ({error})", code="authority"
            ) from None
        if certificate.public_key() != key.public_key():
            raise ConfigError(
                "the certificate authority's key and certificate do not match", code="authority"
            )
        return cls(key, certificate)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue_client(
        self, name: str, key: ec.EllipticCurvePublicKey, *, now_s: float, life_s: float
    ) -> x509.Certificate:
        """A certificate with which ``name`` may call servers."""
        return self._issue(name, key, ExtendedKeyUsageOID.CLIENT_AUTH, now_s, life_s, ())

    def issue_server(
        self, names: Sequence[str], key: ec.EllipticCurvePublicKey, *, now_s: float
    ) -> x509.Certificate:
        """A certificate for a server that is reached by any of the names (host names or addresses)."""
        return self._issue(names[0], key, ExtendedKeyUsageOID.SERVER_AUTH, now_s, SERVER_LIFE_S, names)

    def issued(self, certificate: x509.Certificate) -> bool:
        """Whether this authority signed it, expired or not."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def revocation_list(self, serials: Iterable[tuple[str, float]], now_s: float) -> bytes:
        """A list as PEM, of (serial in hex, when it was revoked)."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(_moment(now_s - _BACKDATED_S))
            .next_update(_moment(now_s + _LIST_LIFE_S))
        )
        for serial, time_s in serials:
            entry = (
                x509.RevokedCertificateBuilder()
                .serial_number(int(serial, 16))
                .revocation_date(_moment(time_s))
            )
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _issue(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        purpose: x509.ObjectIdentifier,
        now_s: float,
        life_s: float,
        alternatives: Sequence[str],
    ) -> x509.Certificate:
        builder = (
            _builder(_name(name), key, now_s, now_s + life_s)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        if alternatives:
            names = [_general_name(text) for text in alternatives]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, begin_s: float, end_s: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(begin_s - min(_BACKDATED_S, (end_s - begin_s) / 100)))
        .not_valid_after(_moment(end_s))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _moment(time_s: float) -> datetime:
    return datetime.fromtimestamp(time_s, UTC)


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the certificate authority's key is not of the kind P-256", code="authority")
    return key
