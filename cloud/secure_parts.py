"""What ``serve`` adds when it has keys: certificates on every port, guards, revocation, enrolment.

Wiring alone, beside ``cloud.serve``; without ``--tls-dir`` nothing of it is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial

import grpc
import grpc.aio

from cloud.audit import AuditLog
from cloud.broker_kick import BrokerKick
from cloud.enrolment import Enrolment
from cloud.handshake_log import HandshakeLog
from cloud.pki.authority import Authority
from cloud.pki.key_folder import KeyFolder, control_name
from cloud.revocation import RevocationWatch
from cloud.services import enrolment as enrolment_service
from cloud.services.enrolment import Directions, EnrolmentServicer, RenewalServicer
from cloud.services.identity_guard import IdentityGuard
from cloud.services.operator_guard import TokenBook
from cloud.settings import ServeSettings
from cloud.store import Store
from cloud.web.server import server_context
from edgeloop.errors import ConfigError
from edgeloop.identity import client_context
from edgeloop.v1 import enrolment_service_pb2_grpc


class SecureParts:
    """Made by ``load``; ``start`` once, from the event loop, before any server is made."""

    def __init__(
        self,
        folder: KeyFolder,
        settings: ServeSettings,
        authority: Authority,
        admin_hash: str,
        handshakes: HandshakeLog,
    ) -> None:
        self._handshakes = handshakes
        self.folder = folder
        self._settings = settings
        self._authority = authority
        self._admin_hash = admin_hash
        self._guard: IdentityGuard | None = None
        self._enrolment: Enrolment | None = None
        self._audit: AuditLog | None = None

    @classmethod
    def load(cls, settings: ServeSettings, stack: contextlib.AsyncExitStack) -> SecureParts:
        """From here on failed handshakes are noted; ``stack`` ends that.

        Raises ``ConfigError`` that names the file that is missing or damaged.
        """
        assert settings.tls_dir is not None
        handshakes = HandshakeLog()
        handshakes.start()
        stack.callback(handshakes.stop)
        folder = KeyFolder(settings.tls_dir)
        admin_hash = _read(folder, "admin-token.sha256").decode(errors="replace").strip()
        if not re.fullmatch(r"[0-9a-f]{64}", admin_hash):
            raise ConfigError(f"{folder.admin_hash} is damaged: it holds one sha256", code="tls-files")
        parts = cls(folder, settings, folder.load_device_authority(), admin_hash, handshakes)
        parts.server_credentials()  # a file that is missing is told before anything listens
        return parts

    @property
    def client_id(self) -> str:
        """What this control plane is called at the broker."""
        return control_name(self._settings.control_index)

    @property
    def guard(self) -> IdentityGuard:
        assert self._guard is not None, "start it first"
        return self._guard

    def broker_context(self) -> ssl.SSLContext:
        return client_context(
            ca_file=self.folder.control_ca, identity_file=self.folder.mqtt(self._settings.control_index)
        )

    def server_credentials(self) -> grpc.ServerCredentials:
        """The server shows a certificate; clients prove themselves otherwise."""
        return grpc.ssl_server_credentials([self._pair()])

    def fleet_credentials(self) -> grpc.ServerCredentials:
        """Both sides show a certificate."""
        return grpc.ssl_server_credentials([self._pair()], self._authority.certificate_pem, True)

    def web_context(self) -> ssl.SSLContext:
        """For the page: the certificate that operators see on the control port."""
        return server_context(self.folder.control / "server.key", self.folder.control / "server.crt")

    def _pair(self) -> tuple[bytes, bytes]:
        return _read(self.folder, "server.key"), _read(self.folder, "server.crt")

    async def start(
        self,
        store: Store,
        audit: AuditLog,
        stack: contextlib.AsyncExitStack,
        broker_host: str,
        broker_port: int,
    ) -> None:
        """Begin to write down failed handshakes and to watch revocations; ``stack`` ends it."""
        loop = asyncio.get_running_loop()
        self._handshakes.listen(lambda reason: audit.refused("unknown", "tls-handshake", message=reason))
        guard = self._guard = IdentityGuard(audit)
        self._audit = audit
        self._enrolment = Enrolment(
            store, self._authority, certificate_ttl_s=self._settings.certificate_ttl_s, now_s=time.time
        )
        on_new: Callable[[Iterable[str]], None] = lambda device_ids: None  # noqa: E731
        if self._settings.broker is not None:
            kick = BrokerKick(broker_host, broker_port, self._authority, self.folder.control_ca)
            stack.callback(kick.stop)
            on_new = kick.kick

        def tell(serials: Collection[str]) -> None:
            loop.call_soon_threadsafe(partial(guard.set_revoked, serials))

        watch = RevocationWatch(store, self._authority, self.folder.revoked, on_serials=tell, on_new=on_new)
        await asyncio.to_thread(watch.start)
        stack.push_async_callback(asyncio.to_thread, watch.stop)

    def tokens(self, store: Store) -> TokenBook:
        return TokenBook(store, self._admin_hash, time.time)

    def add_renewal(self, server: grpc.aio.Server) -> None:
        assert self._enrolment is not None
        assert self._audit is not None
        servicer = RenewalServicer(self._enrolment, self._audit)
        enrolment_service_pb2_grpc.add_RenewalServiceServicer_to_server(servicer, server)

    async def enrol_server(
        self, store: Store, directions: Callable[[], Directions], stack: contextlib.AsyncExitStack
    ) -> grpc.aio.Server:
        """The server for the port that anybody may call; ``stack`` ends what stands behind it."""
        assert self._enrolment is not None
        assert self._audit is not None
        server = grpc.aio.server(
            options=enrolment_service.SERVER_OPTIONS,
            maximum_concurrent_rpcs=enrolment_service.MAX_CONCURRENT_CALLS,
        )
        servicer = EnrolmentServicer(store, self._enrolment, self._audit, directions=directions)
        await servicer.start()
        stack.push_async_callback(servicer.stop)
        enrolment_service_pb2_grpc.add_EnrolmentServiceServicer_to_server(servicer, server)
        return server


def _read(folder: KeyFolder, name: str) -> bytes:
    path = folder.control / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): 'edgeloop keys init {folder.root}' makes it "
            "(--tls-dir)",
            code="tls-files",
        ) from None
