"""What a control plane needs, looked at one by one, with what to do where it is wanting.

Rules that this module keeps:

* Nothing is changed, and no lock is taken: it may run beside a control plane that works, or instead of one.
* A check that cannot be made is a finding of its own, never an exception.
* ``fail``: it cannot work like this. ``warn``: it works, and will not for long or not well.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from cryptography import x509

from cloud.director_keys import KEY_FILE
from cloud.elector import CONTROLLER
from cloud.pki.key_folder import KeyFolder
from cloud.registry import Registry
from cloud.registry_check import RegistryCheck, look_at, needs
from cloud.settings import ServeSettings
from cloud.store import Store
from cloud.store.migrate import script_directory
from edgeloop import __version__
from edgeloop.errors import EdgeloopError
from edgeloop.identity import client_context

_CONNECT_TIMEOUT_S = 3.0
#: In TLS 1.3 a server that refuses the client's certificate says so after the handshake, at once.
_REFUSAL_WAIT_S = 1.0
_LEAST_FREE_BYTES = 1 << 30
_MAX_CLOCK_SKEW_S = 5.0
_DAY_S = 86_400.0
_CERTIFICATE_WARNING_S = 30 * _DAY_S
_MAX_NAMED = 3


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One check. The message says what was seen and, unless all is well, what to do."""

    what: str
    verdict: Verdict
    message: str


def examine(settings: ServeSettings, *, now_s: Callable[[], float] = time.time) -> Iterator[Finding]:
    """All checks, each as soon as it is made."""
    checks: dict[str, Callable[[], Finding]] = {
        "version": _version,
        "disk": lambda: _disk(settings),
        "database": lambda: _database(settings),
        "clock": lambda: _clock(settings, now_s),
        "controller": lambda: _controller(settings),
        "registry": lambda: _registry(settings),
        "director key": lambda: _director(settings),
        "certificates": lambda: _certificates(settings, now_s),
        "broker": lambda: _broker(settings),
        "cluster": lambda: _cluster(settings),
    }
    for what, check in checks.items():
        try:
            yield check()
        except EdgeloopError as error:
            yield Finding(what=what, verdict=Verdict.FAIL, message=error.message)
        except (OSError, ValueError, sa.exc.SQLAlchemyError) as error:
            yield Finding(what=what, verdict=Verdict.FAIL, message=f"cannot be looked at: {error}")


def _ok(what: str, message: str) -> Finding:
    return Finding(what=what, verdict=Verdict.OK, message=message)


def _warn(what: str, message: str) -> Finding:
    return Finding(what=what, verdict=Verdict.WARN, message=message)


def _fail(what: str, message: str) -> Finding:
    return Finding(what=what, verdict=Verdict.FAIL, message=message)


def _version() -> Finding:
    found = [f"edgeloop {__version__}"]
    for name in ("ray", "torch", "onnxruntime"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            return _fail("version", f"{name} is not installed: pip install 'edgeloop[cloud]'")
    return _ok("version", ", ".join(found))


def _disk(settings: ServeSettings) -> Finding:
    folder = settings.state_dir.resolve()
    while not folder.exists():
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return _fail("disk", f"{folder} is no folder that this user can write to: correct --state-dir")
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free at {folder}"
    if free < _LEAST_FREE_BYTES:
        return _fail("disk", f"{text}: make room, or reports and students cannot be kept")
    return _ok("disk", text)


def _database(settings: ServeSettings) -> Finding:
    url = sa.make_url(settings.database)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        return _warn(
            "database",
            f"there is none at {url.database} yet: 'edgeloop serve' makes it, or name its folder with "
            "--state-dir",
        )
    store = Store(settings.database)
    try:
        began_s = time.monotonic()
        current = _schema(store)
        took_ms = (time.monotonic() - began_s) * 1000
    finally:
        store.close()
    head = script_directory().get_current_head()
    text = f"{url.render_as_string(hide_password=True)}, schema {current}, answered in {took_ms:.0f} ms"
    if current == head:
        return _ok("database", text)
    known = {script.revision for script in script_directory().walk_revisions()}
    if current is None or current in known:
        return _warn("database", f"{text}: schema {head} is made at the next start of 'edgeloop serve'")
    return _fail("database", f"{text}, of a newer edgeloop: upgrade this one")


def _schema(store: Store) -> str | None:
    with store._read() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _clock(settings: ServeSettings, now_s: Callable[[], float]) -> Finding:
    if sa.make_url(settings.database).get_backend_name() != "postgresql":
        return _ok("clock", "one machine has one clock")
    store = Store(settings.database)
    try:
        with store._read() as connection:
            before_s = now_s()
            theirs = connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())"))
    finally:
        store.close()
    skew_s = float(theirs or 0.0) - before_s
    text = f"the database's is {abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}"
    if abs(skew_s) > _MAX_CLOCK_SKEW_S:
        return _fail("clock", f"{text}: set both by NTP, or reports are taken for old ones")
    return _ok("clock", text)


def _controller(settings: ServeSettings) -> Finding:
    url = sa.make_url(settings.database)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        return _warn("controller", "none has run yet")
    store = Store(settings.database)
    try:
        lease = store.lease(CONTROLLER)
    finally:
        store.close()
    if lease is None or not lease.holder:
        return _warn("controller", "no control plane acts: start 'edgeloop serve'")
    left_s = lease.expire_s - time.time()
    text = f"control plane {lease.holder} acts, number {lease.epoch} of those that did"
    if left_s < 0:
        return _warn("controller", f"{text}, and was last heard of too long ago: start 'edgeloop serve'")
    return _ok("controller", text)


def _registry(settings: ServeSettings) -> Finding:
    url = sa.make_url(settings.database)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        return _ok("registry", f"{settings.registry}: there is no database, so nothing is needed of it yet")
    store = Store(settings.database)
    try:
        if _schema(store) != script_directory().get_current_head():
            return _warn(
                "registry", "not looked at before the next start of 'edgeloop serve' makes the schema"
            )
        needed = needs(store)
    finally:
        store.close()
    registry = Registry(settings.registry, read_only=True)
    if registry.is_local:
        folder = Path(registry.url)
        if not folder.exists() and not needed:
            return _ok("registry", f"there is none at {folder} yet: 'edgeloop serve' makes it")
        if not (folder.is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK)):
            return _fail(
                "registry",
                f"{folder} is no folder that this user can read and write: correct --registry-url or its "
                f"owner, or the {len(needed)} artifacts that devices need cannot be sent",
            )
    try:
        found = look_at(registry, needed)
    except EdgeloopError:
        raise
    except Exception as error:  # noqa: BLE001 - drivers of object stores raise errors of their own
        return _fail(
            "registry",
            f"{registry.url} cannot be reached ({error}): correct --registry-url or its credentials",
        )
    return _of_registry(registry, found)


def _of_registry(registry: Registry, found: RegistryCheck) -> Finding:
    looked = [f"{found.num_hashed} hashed"] if found.num_hashed else []
    looked += [f"of {found.num_sized} the size compared"] if found.num_sized else []
    looked += [f"{found.num_left} not looked at"] if found.num_left else []
    text = f"{registry.url}: {found.num_needed} artifacts are needed"
    text += f" ({', '.join(looked)})" if looked else ""
    if not found.problems:
        return _ok("registry", text)
    named = [
        f"{problem.digest} is {problem.what} ({problem.need.num_devices} devices of profile "
        f"{problem.need.profile or '-'} were told to run it)"
        for problem in found.problems[:_MAX_NAMED]
    ]
    more = len(found.problems) - len(named)
    text += f"; of these, {'; '.join(named)}"
    text += f"; and {more} more" if more else ""
    # What devices run they have; only who must fetch waits for it.
    report = _fail if any(problem.need.to_fetch for problem in found.problems) else _warn
    return report(
        "registry",
        f"{text}. Put the files back from a backup (docs/upgrade-backup.md), or build other students with "
        "'edgeloop compress --profile PROFILE' and roll them out",
    )


def _director(settings: ServeSettings) -> Finding:
    path = settings.director / KEY_FILE
    if not path.exists():
        return _warn(
            "director key", f"there is none at {path} yet: 'edgeloop serve' makes it; back it up then"
        )
    if path.stat().st_mode & 0o077:
        return _fail("director key", f"others can read {path}: chmod 600 it, and consider it lost")
    return _ok("director key", str(path))


def _certificates(settings: ServeSettings, now_s: Callable[[], float]) -> Finding:
    if settings.tls_dir is None:
        return _ok("certificates", "not used: --tls-dir is not given")
    index = settings.control_index
    mqtt = "mqtt.pem" if index == 1 else f"mqtt-{index}.pem"
    folder = settings.tls_dir / "control"
    least_s, least = float("inf"), ""
    for name in ("ca.crt", "server.crt", "device-ca.crt", mqtt):
        certificates = x509.load_pem_x509_certificates(_certificate_part((folder / name).read_bytes()))
        left_s = min(item.not_valid_after_utc.timestamp() for item in certificates) - now_s()
        if left_s < least_s:
            least_s, least = left_s, name
    text = f"the first to end is {least}, in {least_s / _DAY_S:.0f} days"
    if least_s <= 0:
        return _fail(
            "certificates", f"{least} in {folder} has ended: issue it anew with 'edgeloop keys renew'"
        )
    if least_s < _CERTIFICATE_WARNING_S:
        return _warn("certificates", f"{text}: issue it anew with 'edgeloop keys renew'")
    return _ok("certificates", text)


def _certificate_part(pem: bytes) -> bytes:
    """Without the private key that stands before it in a client's file."""
    return pem[max(0, pem.find(b"-----BEGIN CERTIFICATE-----")) :]


def _broker(settings: ServeSettings) -> Finding:
    address = settings.broker_address()
    if address is None:
        return _ok("broker", "embedded: it runs with 'edgeloop serve'")
    finding = _reachable("broker", *address, todo="start it, or correct --broker")
    if finding.verdict is not Verdict.OK or settings.tls_dir is None:
        return finding
    return _broker_tls(*address, settings)


def _broker_tls(host: str, port: int, settings: ServeSettings) -> Finding:
    """Whether both sides believe the other's certificate. Sends no MQTT: that would end the session of the
    control plane that runs."""
    assert settings.tls_dir is not None
    keys = KeyFolder(settings.tls_dir)
    shown = keys.mqtt(settings.control_index)
    context = client_context(ca_file=keys.control_ca, identity_file=shown)
    try:
        with (
            socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            secured.settimeout(_REFUSAL_WAIT_S)
            with contextlib.suppress(TimeoutError):
                if not secured.recv(1):
                    return _fail("broker", f"{host}:{port} ends the connection: look into its log")
    except ssl.SSLCertVerificationError as error:
        return _fail(
            "broker",
            f"{host}:{port} shows a certificate that is not believed ({error.verify_message}): it must be "
            f"of {keys.control_ca} and name {host}; 'edgeloop keys renew' makes another, then restart it",
        )
    except (ssl.SSLError, ConnectionResetError) as error:
        return _fail(
            "broker",
            f"{host}:{port} takes no TLS with {shown} ({getattr(error, 'reason', None) or error.strerror}): "
            "compare the broker's listener and authority with deploy/mosquitto",
        )
    return _ok("broker", f"{host}:{port} answers, and certificates are believed")


def _cluster(settings: ServeSettings) -> Finding:
    if settings.compute == "none":
        return _ok("cluster", "not used: --compute none")
    if not settings.ray_address:
        return _ok("cluster", "local: it runs with 'edgeloop serve'")
    host, _, port = settings.ray_address.rpartition(":")
    return _reachable(
        "cluster", host, int(port), todo="start it with 'ray start --head', or correct --ray-address"
    )


def _reachable(what: str, host: str, port: int, *, todo: str) -> Finding:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return _fail(what, f"{host}:{port} cannot be reached ({error.strerror or error}): {todo}")
    return _ok(what, f"{host}:{port} answers")
