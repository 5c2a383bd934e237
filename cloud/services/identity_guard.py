"""Holds every call on the fleet's port to the certificate that was shown.

gRPC checks that the certificate was issued by the device authority and has not expired, once, when the
connection begins. What it cannot do is done here:

- A device speaks for itself alone: every ``device_id`` in every message is the certificate's name.
- A revoked certificate ends: new calls are refused and streams that are under way are cut, as is a stream
  whose certificate expires.
- TLS 1.3 or nothing.
- A refusal has a code that the agent understands, and is written to the audit log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message

from cloud.audit import AuditLog
from cloud.enrolment import revoked_error
from cloud.services.peers import peer_host
from cloud.services.wrapping import Context, Handler, wrapped
from edgeloop.errors import ConfigError, EdgeloopError, RejectedError, abort_args
from edgeloop.identity import CertificateFacts, facts, read_certificate

#: Who makes the call that is being served.
caller: ContextVar[CertificateFacts] = ContextVar("caller")


class IdentityGuard(grpc.aio.ServerInterceptor):
    """``set_revoked`` from the event loop; everything else is gRPC's."""

    def __init__(self, audit: AuditLog, *, now_s: Callable[[], float] = time.time) -> None:
        self._audit = audit
        self._now_s = now_s
        self._revoked: frozenset[str] = frozenset()
        self._live: dict[asyncio.Future[EdgeloopError], CertificateFacts] = {}

    def set_revoked(self, serials: Collection[str]) -> None:
        """Replace the set of revoked serials, and cut the streams that it concerns."""
        self._revoked = frozenset(serials)
        for cut, known in list(self._live.items()):
            if known.serial in self._revoked and not cut.done():
                cut.set_result(revoked_error(known.name))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        return None if handler is None else wrapped(handler, str(handler_call_details.method), self)

    async def answer(
        self, method: str, request: Any, context: Context, inner: Callable[[Any, Context], Awaitable[Any]]
    ) -> Any:
        """A call with one reply."""
        known = await self._admitted(method, context)
        try:
            if isinstance(request, Message):
                _check_claims(request, known.name)
        except EdgeloopError as error:
            await self._refuse(method, context, error, known)
        caller.set(known)
        return await inner(request, context)

    async def stream(
        self,
        method: str,
        requests: Any,
        context: Context,
        inner: Callable[[Any, Context], AsyncIterator[Any]],
    ) -> AsyncIterator[Any]:
        """A call with many replies; it ends when its certificate does."""
        known = await self._admitted(method, context)
        caller.set(known)
        loop = asyncio.get_running_loop()
        cut: asyncio.Future[EdgeloopError] = loop.create_future()
        self._live[cut] = known
        timer = loop.call_later(max(0.0, known.not_after_s - self._now_s()), _expire, cut, known)
        if known.serial in self._revoked and not cut.done():  # revoked while the line above waited
            cut.set_result(revoked_error(known.name))
        claims = requests if isinstance(requests, Message) else _checked(requests, known.name, cut)
        replies = inner(claims, context)
        following: asyncio.Future[Any] | None = None
        try:
            while True:
                following = asyncio.ensure_future(anext(replies))
                await asyncio.wait({following, cut}, return_when=asyncio.FIRST_COMPLETED)
                if cut.done():
                    await _ended(following)
                    await self._refuse(method, context, cut.result(), known)
                try:
                    reply = following.result()
                except StopAsyncIteration:
                    return
                yield reply
        finally:
            timer.cancel()
            del self._live[cut]
            if following is not None:  # when the call was cancelled: a generator that runs cannot be closed
                await _ended(following)
            close = getattr(replies, "aclose", None)
            if close is not None:
                await close()

    async def _admitted(self, method: str, context: Context) -> CertificateFacts:
        known: CertificateFacts | None = None
        try:
            proof = context.auth_context()
            version = b"".join(proof.get("ssl_tls_version", [])).decode()
            if version != "TLSv1.3":
                raise ConfigError(
                    f"the connection is {version or 'not TLS'}: use TLS 1.3", code="tls-version"
                )
            known = _facts(b"".join(proof.get("x509_pem_cert", [])))
            if known.serial in self._revoked:
                raise revoked_error(known.name)
            if known.not_after_s <= self._now_s():
                raise _expired(known)
        except EdgeloopError as error:
            await self._refuse(method, context, error, known)
        return known

    async def _refuse(
        self, method: str, context: Context, error: EdgeloopError, known: CertificateFacts | None
    ) -> NoReturn:
        actor = "unknown" if known is None else f"device:{known.name}"
        await asyncio.to_thread(
            self._audit.refused,
            actor,
            method.rpartition("/")[2],
            message=f"{error.code}: {error.message}",
            peer=peer_host(context.peer()),
        )
        _, text, metadata = abort_args(error)
        kind = grpc.StatusCode.PERMISSION_DENIED if known is not None else grpc.StatusCode.UNAUTHENTICATED
        await context.abort(kind, text, metadata)


async def _ended(following: asyncio.Future[Any]) -> None:
    """The last reply is not wanted any more. How it ended is looked at, or asyncio would log it as lost."""
    following.cancel()
    await asyncio.wait({following})
    if not following.cancelled():
        following.exception()


def _expired(known: CertificateFacts) -> ConfigError:
    return ConfigError(f"the certificate of {known.name} has expired: renew it", code="certificate-expired")


def _expire(cut: asyncio.Future[EdgeloopError], known: CertificateFacts) -> None:
    if not cut.done():
        cut.set_result(_expired(known))


@lru_cache(maxsize=8192)
def _facts(pem: bytes) -> CertificateFacts:
    return facts(read_certificate(pem))


async def _checked(
    requests: AsyncIterator[Any], name: str, cut: asyncio.Future[EdgeloopError]
) -> AsyncIterator[Any]:
    async for request in requests:
        try:
            _check_claims(request, name)
        except EdgeloopError as error:
            if not cut.done():
                cut.set_result(error)
            await asyncio.Event().wait()  # the call is being ended: nothing of this request gets further
        yield request


def _check_claims(request: Message, name: str) -> None:
    for claimed in _claimed(request, _paths(request.DESCRIPTOR)):
        if claimed != name:
            raise RejectedError(
                f"device_id is {claimed[:64]!r}, but the certificate is that of {name}: a device speaks for "
                "itself alone",
                code="device-id-mismatch",
            )


Path = tuple[tuple[str, bool], ...]


@lru_cache(maxsize=256)
def _paths(descriptor: Any) -> tuple[Path, ...]:
    """Where ``device_id`` stands in a message: (field, repeated) from the outside in."""
    return tuple(_find(descriptor, (), frozenset()))


def _find(descriptor: Any, path: Path, above: frozenset[str]) -> Iterator[Path]:
    if descriptor.full_name in above:
        return
    for field in descriptor.fields:
        here = (*path, (field.name, field.is_repeated))
        if field.name == "device_id":
            yield here
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from _find(field.message_type, here, above | {descriptor.full_name})


def _claimed(message: Any, paths: tuple[Path, ...]) -> Iterator[str]:
    for path in paths:
        values = [message]
        for name, repeated in path:
            values = [
                item
                for value in values
                for item in (getattr(value, name) if repeated else (getattr(value, name),))
            ]
        yield from values
