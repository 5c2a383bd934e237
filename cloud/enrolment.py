"""How a device gets, keeps and gets back its certificate.

Rules kept here:

- A certificate's name comes from the token or from the certificate before it, never from the request.
- A token counts once, and a key is certified once: a replayed request is refused, whoever brings it.
- Enrolling again replaces: what the device had is revoked. Renewing does not: both are good until the old one
  ends, so that an answer that was lost costs nothing.
- An expired certificate may be turned in for a new one for as long as ``grace_s``, by whoever has its key and
  unless it was revoked; after that an operator must enrol the device again.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cloud.domain.identities import CertificateRecord
from cloud.pki.authority import Authority
from cloud.store import Store, replayed_error, used_token_error
from edgeloop import topics
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.identity import (
    CertificateFacts,
    check_vouched,
    facts,
    key_digest,
    read_certificate,
    requested_key,
)

DEFAULT_TOKEN_TTL_S = 3600
MAX_TOKEN_TTL_S = 30 * 86_400
DEFAULT_GRACE_S = 30 * 86_400.0
#: Certificates of the control plane begin with it: no device may be taken for one.
RESERVED_PREFIX = "edgeloop-"
MAX_LABELS = 32


def secret_hash(secret: str) -> str:
    """What is stored of a token. Tokens are random and long: a fast hash gives nothing away."""
    return hashlib.sha256(secret.encode()).hexdigest()


def check_device_name(device_id: str) -> str:
    """Raises ``RejectedError`` for a name that no certificate may carry."""
    topics.check_device_id(device_id)
    if device_id.lower().startswith(RESERVED_PREFIX):
        raise RejectedError(
            f"device_id {device_id} begins with {RESERVED_PREFIX}, which is kept for the control plane: "
            "choose another",
            code="device-reserved",
        )
    return device_id


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Raises ``RejectedError`` for labels that are too many or too long."""
    if len(labels) > MAX_LABELS or any(not 1 <= len(k) <= 63 or len(v) > 128 for k, v in labels.items()):
        raise RejectedError(
            f"labels: give at most {MAX_LABELS}, with keys of 1 to 63 and values of at most 128 characters",
            code="labels",
        )
    return dict(labels)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was just made."""

    certificate: x509.Certificate
    facts: CertificateFacts


class Enrolment:
    """Safe to call from any thread."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        *,
        certificate_ttl_s: float,
        grace_s: float = DEFAULT_GRACE_S,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._authority = authority
        self._ttl_s = certificate_ttl_s
        self._grace_s = grace_s
        self._now_s = now_s

    def enrol(self, token: str, request: bytes) -> Issued:
        """The first certificate of a device, for its token. Raises ``RejectedError``."""
        (outcome,) = self.enrol_all([(token, request)])
        if isinstance(outcome, RejectedError):
            raise outcome
        return outcome

    def enrol_all(self, asked: Sequence[tuple[str, bytes]]) -> list[Issued | RejectedError]:
        """As ``enrol`` for each (token, request), in their order, in one transaction.

        Whoever is refused spends no token and keeps nobody else from enrolling.
        """
        keys = [_key_or_refusal(request) for _, request in asked]
        hashes = [secret_hash(token) for token, _ in asked]
        digests = ["" if isinstance(key, RejectedError) else key_digest(key) for key in keys]
        now_s = self._now_s()
        store = self._store
        outcomes: list[Issued | RejectedError] = []
        with store.transaction():
            devices = store.devices_of_tokens(hashes, now_s)
            certified = store.certified_keys([digest for digest in digests if digest])
            records: list[CertificateRecord] = []
            spent: list[str] = []
            for key, token_hash, digest in zip(keys, hashes, digests, strict=True):
                device_id = devices[token_hash]
                if isinstance(key, RejectedError):
                    outcomes.append(key)
                elif isinstance(device_id, RejectedError):
                    outcomes.append(device_id)
                elif digest in certified:
                    outcomes.append(replayed_error())
                else:
                    issued, record = self._signed(device_id, key, digest, now_s)
                    outcomes.append(issued)
                    records.append(record)
                    # The next one in this batch finds them as the next transaction would.
                    spent.append(token_hash)
                    certified.add(digest)
                    devices[token_hash] = used_token_error(device_id)
            store.spend_tokens(spent, now_s)
            store.replace_certificates(records)
        return outcomes

    def renew(self, current: CertificateFacts, request: bytes) -> Issued:
        """The next certificate of a device that showed its present one. Raises ``RejectedError``."""
        key = requested_key(request)
        now_s = self._now_s()
        with self._store.transaction():
            self._check_standing(current)
            return self._issue(current.name, key, now_s)

    def re_enrol(self, certificate_pem: bytes, request: bytes, signature: bytes) -> Issued:
        """A new certificate for an expired one. Raises ``RejectedError``."""
        certificate = read_certificate(certificate_pem)
        key = requested_key(request)
        if not self._authority.issued(certificate):
            raise RejectedError(
                "certificate_pem was not issued by this control plane: enrol with a token of this one",
                code="certificate-foreign",
            )
        check_vouched(certificate, request, signature)
        current = facts(certificate)
        now_s = self._now_s()
        if now_s > current.not_after_s + self._grace_s:
            raise RejectedError(
                f"the certificate of {current.name} expired more than {self._grace_s / 86_400:g} days ago: "
                "ask an operator for a new token ('edgeloop device enroll')",
                code="certificate-too-old",
            )
        with self._store.transaction():
            self._check_standing(current)
            return self._issue(current.name, key, now_s)

    def _check_standing(self, current: CertificateFacts) -> None:
        record = self._store.certificate(current.serial)
        identity = self._store.identity(current.name)
        if record is None or record.device_id != current.name or identity is None:
            raise RejectedError(
                f"the certificate of {current.name} is not known here: enrol with a new token",
                code="certificate-unknown",
            )
        if record.revoke_time_s or identity.revoke_time_s:
            raise revoked_error(current.name)

    def _issue(self, device_id: str, key: ec.EllipticCurvePublicKey, now_s: float) -> Issued:
        issued, record = self._signed(device_id, key, key_digest(key), now_s)
        self._store.add_certificate(record)
        return issued

    def _signed(
        self, device_id: str, key: ec.EllipticCurvePublicKey, digest: str, now_s: float
    ) -> tuple[Issued, CertificateRecord]:
        certificate = self._authority.issue_client(device_id, key, now_s=now_s, life_s=self._ttl_s)
        found = facts(certificate)
        record = CertificateRecord(
            serial=found.serial,
            device_id=device_id,
            key_digest=digest,
            not_before_s=now_s,
            not_after_s=found.not_after_s,
        )
        return Issued(certificate, found), record


def _key_or_refusal(request: bytes) -> ec.EllipticCurvePublicKey | RejectedError:
    try:
        return requested_key(request)
    except RejectedError as error:
        return error


def revoked_error(device_id: str) -> ConfigError:
    """What a device hears that may take part no more."""
    return ConfigError(
        f"the certificate of {device_id} was revoked: ask an operator, who may enrol it again",
        code="certificate-revoked",
    )


def new_token() -> str:
    """A token for one enrolment: 256 random bits."""
    return f"ele_{secrets.token_urlsafe(32)}"
