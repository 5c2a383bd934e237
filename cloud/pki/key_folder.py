"""The folder that ``edgeloop keys init`` makes: who gets which part of it.

Rules kept here:

- One subfolder for each holder, so that each service mounts its own and no other: ``ca`` (no running service
  at all), ``control``, ``broker``, ``operator``; ``crl`` is written by the control plane, read by the broker.
- What is there is never replaced by ``init``: whatever it left half-done, the next run completes. ``renew``
  makes new certificates under the same authorities.
- A private key is readable by its owner alone, from the moment that its file exists.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from cloud.pki.authority import SERVER_LIFE_S, Authority
from edgeloop.errors import ConfigError
from edgeloop.identity import new_private_key
from edgeloop.trust import give_to_owner_of

CONTROL_NAME: Final = "edgeloop-control"
#: Added to every server certificate, for health checks and tunnels.
_LOCAL_NAMES: Final = ("localhost", "127.0.0.1")
_DNS_NAME = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?", re.I
)
MAX_CONTROLS: Final = 9


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """Where everything is. ``root`` need hold only the subfolders that its user needs."""

    root: Path

    @property
    def server_ca_key(self) -> Path:
        return self.root / "ca" / "ca.key"

    @property
    def server_ca(self) -> Path:
        return self.root / "ca" / "ca.crt"

    @property
    def control(self) -> Path:
        return self.root / "control"

    @property
    def control_ca(self) -> Path:
        """The server authority's certificate, as the control plane has it."""
        return self.control / "ca.crt"

    @property
    def device_ca_key(self) -> Path:
        return self.control / "device-ca.key"

    @property
    def device_ca(self) -> Path:
        return self.control / "device-ca.crt"

    @property
    def admin_hash(self) -> Path:
        return self.control / "admin-token.sha256"

    def mqtt(self, index: int) -> Path:
        """Key and client certificate of a control plane at the broker."""
        return self.control / ("mqtt.pem" if index == 1 else f"mqtt-{index}.pem")

    @property
    def revoked(self) -> Path:
        return self.root / "crl" / "devices.crl"

    def load_device_authority(self) -> Authority:
        """Raises ``ConfigError`` that names the file."""
        return _authority(self.device_ca_key, self.device_ca)


def control_name(index: int) -> str:
    """The certificate name of a control plane. The broker makes it the client id, so no two may share one."""
    return CONTROL_NAME if index == 1 else f"{CONTROL_NAME}-{index}"


def init_folder(
    root: Path, server_names: Sequence[str], broker_names: Sequence[str] = (), *, num_controls: int = 1
) -> list[str]:
    """Make what is missing; returns what was made, by name below ``root``. Raises ``ConfigError``."""
    servers = _checked_names(server_names, "--server-name")
    brokers = _checked_names(broker_names, "--broker-name") if broker_names else servers
    if not 1 <= num_controls <= MAX_CONTROLS:
        raise ConfigError(f"--control-count is {num_controls}: give 1 to {MAX_CONTROLS}", code="keys-count")
    made = _Maker(root)
    folder = KeyFolder(root)
    for name, mode in (
        ("ca", 0o700),
        ("control", 0o700),
        ("broker", 0o755),
        ("crl", 0o755),
        ("operator", 0o700),
    ):
        made.folder(root / name, mode)
    server_ca = made.authority(folder.server_ca_key, folder.server_ca, "edgeloop servers")
    device_ca = made.authority(folder.device_ca_key, folder.device_ca, "edgeloop devices")
    made.copy(folder.server_ca, folder.control_ca)
    made.copy(folder.server_ca, root / "operator" / "ca.crt")
    made.copy(folder.device_ca, root / "broker" / "device-ca.crt")
    made.server(server_ca, folder.control, servers)
    made.server(server_ca, root / "broker", brokers)
    for index in range(1, num_controls + 1):
        made.client(device_ca, folder.mqtt(index), control_name(index))
    if not folder.revoked.exists():
        made.write(folder.revoked, device_ca.revocation_list((), time.time()), 0o644)
    if not folder.admin_hash.exists():
        token = f"elo_{secrets.token_urlsafe(32)}"
        made.write(root / "operator" / "admin.token", f"{token}\n".encode(), 0o600)
        made.write(folder.admin_hash, f"{hashlib.sha256(token.encode()).hexdigest()}\n".encode(), 0o600)
    return made.names


def renew_folder(root: Path, server_names: Sequence[str] = (), broker_names: Sequence[str] = ()) -> list[str]:
    """New server certificates and control plane certificates under the same authorities.

    Names that are not given stay what they were. Raises ``ConfigError``.
    """
    folder = KeyFolder(root)
    server_ca = _authority(folder.server_ca_key, folder.server_ca)
    device_ca = folder.load_device_authority()
    made = _Maker(root)
    for place, names, flag in (
        (folder.control, server_names, "--server-name"),
        (root / "broker", broker_names, "--broker-name"),
    ):
        kept = _names_of(_read(place / "server.crt"))
        made.new_server(server_ca, place, _checked_names(names, flag) if names else kept)
    for index in range(1, MAX_CONTROLS + 1):
        if folder.mqtt(index).exists():
            made.new_client(device_ca, folder.mqtt(index), control_name(index))
    return made.names


class _Maker:
    """Writes files that are not there yet and remembers which."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.names: list[str] = []

    def folder(self, path: Path, mode: int) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path} cannot be made ({error.strerror})", code="keys-folder") from None
        with contextlib.suppress(OSError):  # a mounted volume may belong to somebody else
            if not any(path.iterdir()):
                path.chmod(mode)

    def write(self, path: Path, content: bytes, mode: int) -> None:
        write_file(path, content, mode)
        self.names.append(str(path.relative_to(self._root)))

    def copy(self, source: Path, target: Path) -> None:
        content = _read(source)
        if not target.exists():
            self.write(target, content, 0o644)
        elif target.read_bytes() != content:
            raise ConfigError(
                f"{target} is not the same as {source}: the folder mixes two sets of keys: begin with an "
                "empty one",
                code="keys-mixed",
            )

    def authority(self, key_path: Path, certificate_path: Path, name: str) -> Authority:
        if certificate_path.exists():  # the last of the two that is written
            return _authority(key_path, certificate_path)
        made, key_pem = Authority.create(name, time.time())
        self.write(key_path, key_pem, 0o600)
        self.write(certificate_path, made.certificate_pem, 0o644)
        return made

    def server(self, authority: Authority, place: Path, names: Sequence[str]) -> None:
        path = place / "server.crt"
        if not path.exists():
            self.new_server(authority, place, names)
            return
        lacking = [name for name in names if name not in _names_of(_read(path))]
        if lacking:
            raise ConfigError(
                f"{path} does not name {', '.join(lacking)}: 'edgeloop keys renew {self._root}' makes a new "
                "one",
                code="keys-names",
            )

    def new_server(self, authority: Authority, place: Path, names: Sequence[str]) -> None:
        key_pem = new_private_key()
        certificate = authority.issue_server(names, _public(key_pem), now_s=time.time())
        self.write(place / "server.key", key_pem, 0o600)
        self.write(place / "server.crt", certificate.public_bytes(Encoding.PEM), 0o644)

    def client(self, authority: Authority, path: Path, name: str) -> None:
        if not path.exists():
            self.new_client(authority, path, name)

    def new_client(self, authority: Authority, path: Path, name: str) -> None:
        key_pem = new_private_key()
        certificate = authority.issue_client(name, _public(key_pem), now_s=time.time(), life_s=SERVER_LIFE_S)
        self.write(path, key_pem + certificate.public_bytes(Encoding.PEM), 0o600)


def write_file(path: Path, content: bytes, mode: int) -> None:
    """The whole file or the old one, with these rights from the start. Raises ``ConfigError``."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            give_to_owner_of(path.parent, file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror})", code="keys-folder") from None


def _authority(key_path: Path, certificate_path: Path) -> Authority:
    try:
        return Authority.load(_read(key_path), _read(certificate_path))
    except ConfigError as error:
        raise ConfigError(f"{key_path.parent}: {error.message}", code=error.code) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): 'edgeloop keys init' makes it", code="keys-file"
        ) from None


def _public(key_pem: bytes) -> ec.EllipticCurvePublicKey:
    key = load_pem_private_key(key_pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.public_key()


def _names_of(certificate_pem: bytes) -> list[str]:
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _checked_names(names: Sequence[str], flag: str) -> list[str]:
    if not names:
        raise ConfigError(
            f"{flag} is missing: give the host name or address that clients use", code="keys-names"
        )
    checked = []
    for name in (*names, *_LOCAL_NAMES):
        try:
            checked.append(str(ipaddress.ip_address(name)))
        except ValueError:
            if len(name) > 64 or not _DNS_NAME.fullmatch(name):
                raise ConfigError(
                    f"{flag} is {name[:80]!r}: give a host name or an address, without a port",
                    code="keys-names",
                ) from None
            checked.append(name.lower())
    return list(dict.fromkeys(checked))
