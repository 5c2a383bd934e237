"""EnrolmentService on the public port and RenewalService on the fleet's.

Rules kept here:

- A peer whose attempts failed too often waits; attempts that succeed cost nothing.
- Every attempt is written to the audit log, whichever way it ends. Tokens are not, in any form.
- An enrolment that is answered is on the disk: its token spent, its certificate recorded, its audit entry.
- Signing happens on worker threads: the event loop goes on serving.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from cryptography.hazmat.primitives.serialization import Encoding

from cloud.audit import AuditLog
from cloud.enrolment import Enrolment, Issued
from cloud.services.convert import timestamp
from cloud.services.enrolment_writer import EnrolmentWriter
from cloud.services.identity_guard import caller
from cloud.services.peers import FailureLimiter, peer_host
from cloud.store import Store
from edgeloop.errors import ConfigError, EdgeloopError, RejectedError, abort_args
from edgeloop.v1 import enrolment_service_pb2 as pb
from edgeloop.v1 import enrolment_service_pb2_grpc

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

#: For the port that anybody may call: small messages, few streams, no patience.
SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 32 << 10),
    ("grpc.max_send_message_length", 128 << 10),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.max_concurrent_streams", 8),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.max_connection_idle_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
MAX_CONCURRENT_CALLS: Final = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Directions:
    """Where an enrolled device finds the rest. An empty host is the one that it enrolled at."""

    fleet_host: str
    fleet_port: int
    broker_host: str
    broker_port: int
    director_public_key: bytes
    #: TUF root metadata that the device trusts from the first.
    tuf_root: bytes = b""


class EnrolmentServicer(enrolment_service_pb2_grpc.EnrolmentServiceServicer):
    """``directions`` is asked at each enrolment. ``start`` it before the server, ``stop`` it after."""

    def __init__(
        self,
        store: Store,
        enrolment: Enrolment,
        audit: AuditLog,
        *,
        directions: Callable[[], Directions],
        limiter: FailureLimiter | None = None,
    ) -> None:
        self._enrolment = enrolment
        self._audit = audit
        self._writer = EnrolmentWriter(store, enrolment, audit)
        self._directions = directions
        self._limiter = limiter or FailureLimiter()

    async def start(self) -> None:
        """Begin to write enrolments."""
        await self._writer.start()

    async def stop(self) -> None:
        """Finish those that wait."""
        await self._writer.stop()

    async def Enrol(self, request: pb.EnrolRequest, context: Context) -> pb.EnrolResponse:
        """A first certificate for a token."""
        peer = peer_host(context.peer())
        issued = await self._attempt(
            context, "Enrol", peer, self._writer.enrol(request.token, request.certificate_request, peer)
        )
        found = self._directions()
        return pb.EnrolResponse(
            issued=_message(issued),
            fleet_host=found.fleet_host,
            fleet_port=found.fleet_port,
            broker_host=found.broker_host,
            broker_port=found.broker_port,
            director_public_key=found.director_public_key,
            tuf_root=found.tuf_root,
        )

    async def ReEnrol(self, request: pb.ReEnrolRequest, context: Context) -> pb.ReEnrolResponse:
        """A new certificate for an expired one."""
        peer = peer_host(context.peer())
        issued = await self._attempt(
            context,
            "ReEnrol",
            peer,
            asyncio.to_thread(
                self._enrolment.re_enrol,
                request.certificate_pem,
                request.certificate_request,
                request.signature,
            ),
        )
        actor, note = f"device:{issued.facts.name}", f"certificate {issued.facts.serial}"
        await asyncio.to_thread(self._audit.done, actor, "ReEnrol", issued.facts.name, note, peer=peer)
        return pb.ReEnrolResponse(issued=_message(issued))

    async def _attempt(
        self, context: Context, action: str, peer: str, attempt: Coroutine[Any, Any, Issued]
    ) -> Issued:
        try:
            try:
                self._limiter.check(peer)
            except BaseException:
                attempt.close()
                raise
            return await attempt
        except Exception as error:  # noqa: BLE001 - _abort sorts and logs it
            if isinstance(error, RejectedError | ConfigError):
                self._limiter.failed(peer)
            await _abort(context, self._audit, "unknown", action, peer, error)


class RenewalServicer(enrolment_service_pb2_grpc.RenewalServiceServicer):
    """Behind the identity guard, which says who calls."""

    def __init__(self, enrolment: Enrolment, audit: AuditLog) -> None:
        self._enrolment = enrolment
        self._audit = audit

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:
        """The next certificate."""
        current = caller.get()
        actor, peer = f"device:{current.name}", peer_host(context.peer())
        try:
            issued = await asyncio.to_thread(self._enrolment.renew, current, request.certificate_request)
        except Exception as error:  # noqa: BLE001 - _abort sorts and logs it
            await _abort(context, self._audit, actor, "Renew", peer, error)
        note = f"certificate {issued.facts.serial} after {current.serial}"
        await asyncio.to_thread(self._audit.done, actor, "Renew", current.name, note, peer=peer)
        return pb.RenewResponse(issued=_message(issued))


def _message(issued: Issued) -> pb.IssuedCertificate:
    return pb.IssuedCertificate(
        device_id=issued.facts.name,
        certificate_pem=issued.certificate.public_bytes(Encoding.PEM),
        expire_time=timestamp(issued.facts.not_after_s),
    )


async def _abort(
    context: Context, audit: AuditLog, actor: str, action: str, peer: str, error: Exception
) -> NoReturn:
    if not isinstance(error, EdgeloopError):
        logger.error("a call failed", exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, "the server failed: its log says why")
    message = f"{error.code}: {error.message}"
    await asyncio.to_thread(audit.refused, actor, action, message=message, peer=peer)
    await context.abort(*abort_args(error))
