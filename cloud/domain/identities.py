"""Who may take part: devices by certificate, people by token; and the log of what they did.

Values alone; times are seconds since the epoch, and 0 stands for "never" or "not yet".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class IdentityState(StrEnum):
    """How a device stands. PENDING: a token waits to be used."""

    NONE = "none"
    PENDING = "pending"
    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


class Role(StrEnum):
    """VIEWER reads; OPERATOR changes."""

    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True, kw_only=True, slots=True)
class CertificateRecord:
    """A certificate that was issued. ``serial`` is lower-case hex."""

    serial: str
    device_id: str
    key_digest: str
    not_before_s: float
    not_after_s: float
    revoke_time_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceIdentity:
    """A device that may take part, with its newest certificate.

    ``labels`` were bound by operators: they hold whatever the device says of itself. ``token_expire_time_s``
    is that of an unused token.
    """

    device_id: str
    create_time_s: float
    labels: Mapping[str, str] = field(default_factory=dict)
    revoke_time_s: float = 0.0
    token_expire_time_s: float = 0.0
    certificate: CertificateRecord | None = None

    def state(self, now_s: float) -> IdentityState:
        """How it stands at a time."""
        newest = self.certificate
        if newest is not None and not newest.revoke_time_s and newest.not_after_s > now_s:
            return IdentityState.VALID
        if self.token_expire_time_s > now_s:
            return IdentityState.PENDING
        if self.revoke_time_s or (newest is not None and newest.revoke_time_s):
            return IdentityState.REVOKED
        return IdentityState.EXPIRED if newest is not None else IdentityState.NONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """A person or a program that uses the control script. Its token is known by its hash alone."""

    name: str
    role: Role
    create_time_s: float
    expire_time_s: float = 0.0
    revoke_time_s: float = 0.0

    def state(self, now_s: float) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoke_time_s:
            return "revoked"
        return "expired" if self.expire_time_s and self.expire_time_s <= now_s else "valid"


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """Who did what, or tried to. ``outcome`` is ``done`` or ``refused``."""

    event_time_s: float
    actor: str
    action: str
    target: str = ""
    outcome: str = "done"
    message: str = ""
    peer: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Departure:
    """A device that was deleted: the workloads that it was ever told of ("" for its only one)."""

    workloads: tuple[str, ...]
    delete_time_s: float
