"""Who may say what a device runs.

One director key (Ed25519) signs each Deployment; the deployment names the manifest and the artifact by
digest, so that one signature vouches for every byte that is served.

Rules kept here:

- What is signed is a fixed prefix and then the serialised Deployment; the prefix keeps a signature from being
  taken for one over any other kind of message.
- The signed bytes travel as they are. Nothing is serialised again to verify, and nothing inside them is
  believed, or even parsed, before the signature holds.
- A private key file is written whole or not at all, never over another, readable by its owner alone; one that
  others can read is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from edgeloop import topics
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.v1 import deployment_pb2

SIGNING_PREFIX: Final = b"edgeloop.v1.Deployment\0"
MAX_SIGNED_BYTES: Final = 8 * 1024
MAX_GENERATION: Final = 2**63 - 1

_KEY_BYTES: Final = 32
_MAX_KEY_FILE_BYTES: Final = 4096
_MAX_TIME_S: Final = 253_402_300_800  # the end of the year 9999, where protobuf's Timestamp ends
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_OPTIONAL_NAME = re.compile(r"[A-Za-z0-9._-]{0,64}", re.ASCII)


def key_id(public_bytes: bytes) -> str:
    """How a signed deployment names the key: the first 16 hex digits of its sha256."""
    return hashlib.sha256(public_bytes).hexdigest()[:16]


def key_ring(*public_keys: bytes | str) -> dict[str, bytes]:
    """Public keys (raw or hex) by key id. Raises ``ConfigError`` for one that is no Ed25519 key."""
    ring = {}
    for given in public_keys:
        try:
            raw = bytes.fromhex(given) if isinstance(given, str) else bytes(given)
            Ed25519PublicKey.from_public_bytes(raw)
        except ValueError:
            raise ConfigError(
                "the director key is no Ed25519 public key: give 64 hex digits, as the server prints them",
                code="director-key",
            ) from None
        ring[key_id(raw)] = raw
    return ring


def give_to_owner_of(folder: Path, descriptor: int) -> None:
    """Written by root, an open file belongs to whoever has the folder.

    A service has no use for a key that was made for it and that it cannot read. Raises ``OSError``.
    """
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


class DirectorKey:
    """The private key that signs deployments."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    def __repr__(self) -> str:
        return f"DirectorKey({self.key_id})"

    @classmethod
    def generate(cls) -> Self:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a key file. Raises ``ConfigError``: "key-missing", "key-readable" or "key-damaged"."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                pem = file.read(_MAX_KEY_FILE_BYTES + 1)
        except FileNotFoundError:
            raise ConfigError(f"there is no key file {path}", code="key-missing") from None
        except OSError as error:
            raise ConfigError(f"cannot read key file {path}: {error.strerror}", code="key-missing") from error
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(
                f"key file {path} can be read by others: run chmod 600 {path}, and replace the key if "
                "anybody may have copied it",
                code="key-readable",
            )
        try:
            private = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigError(
                f"key file {path} holds no unencrypted Ed25519 key: restore it from a backup",
                code="key-damaged",
            )
        return cls(private)

    @classmethod
    def load_or_generate(cls, path: str | os.PathLike[str]) -> Self:
        """The key in this file; at the first start, a new one that is saved there."""
        with contextlib.suppress(FileExistsError):
            if not Path(path).exists():
                cls.generate().save(path)
        return cls.load(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the key file, mode 0600. Raises ``FileExistsError`` rather than replace a key."""
        path = Path(path)
        pem = self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                give_to_owner_of(path.parent, file.fileno())
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # unlike a rename, fails when the name is taken
        finally:
            os.unlink(temporary)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @property
    def public_bytes(self) -> bytes:
        """The raw public key, 32 bytes."""
        return self._private.public_key().public_bytes_raw()

    @property
    def private(self) -> Ed25519PrivateKey:
        """The key itself, for libraries that sign with it."""
        return self._private

    @property
    def key_id(self) -> str:
        return key_id(self.public_bytes)

    def sign(self, message: bytes) -> bytes:
        """The signature over exactly these bytes."""
        return self._private.sign(message)


def sign_deployment(key: DirectorKey, deployment: deployment_pb2.Deployment) -> bytes:
    """The serialised SignedDeployment. Raises ``RejectedError`` when no device could accept it."""
    check_deployment(deployment)
    raw = deployment.SerializeToString(deterministic=True)
    return deployment_pb2.SignedDeployment(
        deployment=raw, key_id=key.key_id, signature=key.sign(SIGNING_PREFIX + raw)
    ).SerializeToString(deterministic=True)


def open_deployment(
    raw: bytes, public_keys: Mapping[str, bytes], *, device_id: str, now_s: float
) -> deployment_pb2.Deployment:
    """Verify and read what was retained on a device's deployment topic.

    Whether the generation is newer than what was accepted before is the caller's to compare. Raises
    ``RejectedError``: "signature-unknown-key", "signature-invalid", "deployment-wrong-device",
    "deployment-expired" or "deployment-field".
    """
    if len(raw) > MAX_SIGNED_BYTES:
        raise _field("size", f"{len(raw)} bytes", f"at most {MAX_SIGNED_BYTES}")
    try:
        signed = deployment_pb2.SignedDeployment.FromString(raw)
    except DecodeError:
        raise _field("envelope", "no protobuf message", "a SignedDeployment") from None
    public = public_keys.get(signed.key_id)
    if public is None:
        raise RejectedError(
            f"the deployment was signed with key {signed.key_id[:16]!r}, which this device does not trust: "
            "check the device's director key",
            code="signature-unknown-key",
        )
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(
            signed.signature, SIGNING_PREFIX + signed.deployment
        )
    except InvalidSignature:
        raise RejectedError(
            "the deployment's signature does not hold: it was altered on the way", code="signature-invalid"
        ) from None
    try:
        deployment = deployment_pb2.Deployment.FromString(signed.deployment)
    except DecodeError:
        raise _field("message", "no protobuf message", "a Deployment") from None
    check_deployment(deployment)
    if deployment.device_id != device_id:
        raise RejectedError(
            f"the deployment is for device {deployment.device_id}, not {device_id}",
            code="deployment-wrong-device",
        )
    if deployment.HasField("expire_time") and now_s > timestamp_s(deployment.expire_time):
        raise RejectedError(
            f"deployment generation {deployment.generation} has expired: have a new one issued, or check "
            "this device's clock",
            code="deployment-expired",
        )
    return deployment


def check_deployment(deployment: deployment_pb2.Deployment) -> None:
    """Check every bound. Raises ``RejectedError`` ("deployment-field")."""
    try:
        topics.check_device_id(deployment.device_id)
        topics.check_digest(deployment.digest)
        topics.check_digest(deployment.manifest_digest, field="manifest_digest")
    except RejectedError as error:
        raise RejectedError(error.message, code="deployment-field") from None
    for field, pattern in (
        ("workload", _NAME),
        ("profile", _NAME),
        ("decision_id", _OPTIONAL_NAME),
        ("rollout_id", _OPTIONAL_NAME),
    ):
        value = getattr(deployment, field)
        if not pattern.fullmatch(value):
            raise _field(field, repr(value[:80]), "up to 64 letters, digits, '.', '_' or '-'")
    if not 1 <= deployment.generation <= MAX_GENERATION:
        raise _field("generation", str(deployment.generation), f"1 to {MAX_GENERATION}")
    for field in ("issue_time", "expire_time"):
        if deployment.HasField(field):
            moment = getattr(deployment, field)
            if not 0 <= moment.seconds < _MAX_TIME_S or not 0 <= moment.nanos < 1_000_000_000:
                raise _field(field, f"{moment.seconds} s", "a time from 1970 to 9999")


def timestamp(at_s: float) -> Timestamp:
    """Seconds since the epoch, as the wire has them."""
    whole = math.floor(at_s)
    nanos = min(999_999_999, round((at_s - whole) * 1e9))
    return Timestamp(seconds=whole, nanos=nanos)


def timestamp_s(moment: Timestamp) -> float:
    """What the wire has, as seconds since the epoch."""
    return moment.seconds + moment.nanos * 1e-9


def _field(field: str, found: str, wanted: str) -> RejectedError:
    return RejectedError(f"deployment {field}: {found}, wanted {wanted}", code="deployment-field")
