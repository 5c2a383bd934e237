"""Which director keys count, and how they are changed without touching a device.

Rules kept here:

- What a device was configured with is version 0. Each change has a higher version, names the whole set from
  then on, and is signed with a key that counted before it. One that adds a key opens the overlap, in which
  old and new both count; one that leaves a key out retires it.
- All changes travel together, oldest first, so that a device that was away for several can follow. What is
  known already, or cannot be reached from the keys that count here, is passed over; the version never falls.
- What is signed has a prefix of its own, so that no deployment can be taken for a change of keys.
- A device keeps the chain as it came and follows it again from its configured keys at every start: the file
  gives no trust that the signatures do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError

from edgeloop.errors import ConfigError, RejectedError
from edgeloop.trust import DirectorKey, key_ring, timestamp
from edgeloop.v1 import deployment_pb2

SIGNING_PREFIX: Final = b"edgeloop.v1.DirectorKeys\0"
MAX_CHAIN_BYTES: Final = 64 * 1024
MAX_CHANGES: Final = 128
MAX_KEYS: Final = 4
MAX_VERSION: Final = 2**31 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustedKeys:
    """``ring`` is what counts now; ``past`` also holds what counted when something stored was accepted."""

    version: int = 0
    ring: Mapping[str, bytes]
    past: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def configured(cls, *public_keys: bytes | str) -> Self:
        """Version 0. Raises ``ConfigError`` for what is no key."""
        ring = MappingProxyType(key_ring(*public_keys))
        return cls(ring=ring, past=ring)

    def follow(self, raw: bytes) -> TrustedKeys:
        """These keys after every change in the chain that they vouch for; the same value when there is none.

        Raises ``RejectedError``: "keys-field", "keys-invalid" for a signature that does not hold, or
        "keys-unknown-key" when newer changes are there and none can be reached from here.
        """
        trusted, unreachable = self, 0
        for signed in _parse(raw):
            keys = _keys_of(signed.keys)
            if keys.version <= trusted.version:
                continue
            signer = trusted.ring.get(signed.key_id)
            if signer is None:
                unreachable += 1
                continue
            try:
                Ed25519PublicKey.from_public_bytes(signer).verify(
                    signed.signature, SIGNING_PREFIX + signed.keys
                )
            except InvalidSignature:
                raise RejectedError(
                    f"the signature over director keys version {keys.version} does not hold: they were "
                    "altered on the way",
                    code="keys-invalid",
                ) from None
            ring = key_ring(*keys.public_keys)
            trusted = TrustedKeys(
                version=keys.version,
                ring=MappingProxyType(ring),
                past=MappingProxyType({**trusted.past, **ring}),
            )
        if trusted is self and unreachable:
            raise RejectedError(
                f"{unreachable} changes of the director's keys were signed by keys that this device does not "
                "trust: check its director key",
                code="keys-unknown-key",
            )
        return trusted


def add_change(raw: bytes, signer: DirectorKey, public_keys: Sequence[bytes], *, now_s: float) -> bytes:
    """The chain with one more change at its end, signed with ``signer``.

    Raises ``ConfigError`` ("keys-limit") for more keys or changes than a device reads.
    """
    changes = list(_parse(raw))
    if not 1 <= len(public_keys) <= MAX_KEYS or len(changes) >= MAX_CHANGES:
        raise ConfigError(
            f"{len(public_keys)} director keys after {len(changes)} changes: at most {MAX_KEYS} keys and "
            f"{MAX_CHANGES} changes are read by devices",
            code="keys-limit",
        )
    version = _keys_of(changes[-1].keys).version + 1 if changes else 1
    keys = deployment_pb2.DirectorKeys(
        version=version, public_keys=public_keys, issue_time=timestamp(now_s)
    ).SerializeToString(deterministic=True)
    changes.append(
        deployment_pb2.SignedDirectorKeys(
            keys=keys, key_id=signer.key_id, signature=signer.sign(SIGNING_PREFIX + keys)
        )
    )
    return deployment_pb2.DirectorKeyChain(changes=changes).SerializeToString(deterministic=True)


def newest_keys(raw: bytes) -> tuple[bytes, ...]:
    """What the last change of a chain names, unverified; empty for an empty chain."""
    changes = _parse(raw)
    return tuple(_keys_of(changes[-1].keys).public_keys) if changes else ()


def _parse(raw: bytes) -> Sequence[deployment_pb2.SignedDirectorKeys]:
    if len(raw) > MAX_CHAIN_BYTES:
        raise _field("size", f"{len(raw)} bytes", f"at most {MAX_CHAIN_BYTES}")
    try:
        chain = deployment_pb2.DirectorKeyChain.FromString(raw)
    except DecodeError:
        raise _field("message", "no protobuf message", "a DirectorKeyChain") from None
    if len(chain.changes) > MAX_CHANGES:
        raise _field("changes", f"{len(chain.changes)} of them", f"at most {MAX_CHANGES}")
    return chain.changes


def _keys_of(raw: bytes) -> deployment_pb2.DirectorKeys:
    try:
        keys = deployment_pb2.DirectorKeys.FromString(raw)
    except DecodeError:
        raise _field("keys", "no protobuf message", "a DirectorKeys") from None
    if not 1 <= keys.version <= MAX_VERSION:
        raise _field("version", str(keys.version), f"1 to {MAX_VERSION}")
    if not 1 <= len(keys.public_keys) <= MAX_KEYS:
        raise _field("public_keys", f"{len(keys.public_keys)} of them", f"1 to {MAX_KEYS}")
    try:
        key_ring(*keys.public_keys)
    except ConfigError:
        raise _field("public_keys", "one that is no key", "raw Ed25519 public keys") from None
    return keys


def _field(field_name: str, found: str, wanted: str) -> RejectedError:
    return RejectedError(f"director keys {field_name}: {found}, wanted {wanted}", code="keys-field")
