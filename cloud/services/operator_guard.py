"""Holds every call of the control script to a token and its role, and writes down who changed what.

Rules kept here:

- Reading needs the role viewer, everything else operator: a method that is new and not listed here as one
  that reads can be called by operators alone.
- A token is compared by its hash; wrong ones are counted for each peer, and too many have to wait.
- Without TLS the server listens on loopback alone (see ``settings``), and whoever is on the machine is
  ``local``, with the role operator. What is changed is written down just the same.
- Only the health service answers without a token.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from cloud.audit import AuditLog
from cloud.domain.identities import Operator, Role
from cloud.enrolment import secret_hash
from cloud.services.peers import FailureLimiter, peer_host
from cloud.services.wrapping import Context, Handler, wrapped
from cloud.store import Store
from edgeloop.errors import ConfigError, EdgeloopError, abort_args

TOKEN_METADATA_KEY = "authorization"  # noqa: S105 - the name of the field, not a secret
_READING = ("Get", "List", "Explain", "Watch")
_OPEN = "/grpc.health.v1.Health/"
_REFLECTION = "/grpc.reflection."
#: What a request is about, the first that it has.
_TARGETS = ("device_id", "profile", "rollout_id", "job_id", "workload", "name")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the audit log names it."""

    actor: str
    role: Role


LOCAL = Caller("local", Role.OPERATOR)


class TokenBook:
    """Who has which token: operators in the database, and the first one, whose hash ``keys init`` made."""

    def __init__(self, store: Store, admin_hash: str, now_s: Callable[[], float]) -> None:
        self._store = store
        self._admin_hash = admin_hash
        self._now_s = now_s

    def caller(self, token: str) -> Caller:
        """Raises ``ConfigError`` for a token that counts for nothing."""
        given = secret_hash(token)
        if self._admin_hash and hmac.compare_digest(given, self._admin_hash):
            return Caller("operator:admin", Role.OPERATOR)
        operator: Operator | None = self._store.operator_by_token(given)
        if operator is None:
            raise ConfigError(
                "the token is not known: set EDGELOOP_TOKEN, or use 'edgeloop context set NAME --token-file "
                "FILE'",
                code="token-unknown",
            )
        state = operator.state(self._now_s())
        if state != "valid":
            raise ConfigError(
                f"the token of {operator.name} is {state}: ask for a new one ('edgeloop operator create')",
                code=f"token-{state}",
            )
        return Caller(f"operator:{operator.name}", operator.role)


class OperatorGuard(grpc.aio.ServerInterceptor):
    """``tokens`` None: everybody who can reach the port is ``local``."""

    def __init__(
        self, audit: AuditLog, tokens: TokenBook | None, *, limiter: FailureLimiter | None = None
    ) -> None:
        self._audit = audit
        self._tokens = tokens
        self._limiter = limiter or FailureLimiter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(_OPEN):
            return handler
        return wrapped(handler, method, self)

    async def answer(
        self, method: str, request: Any, context: Context, inner: Callable[[Any, Context], Awaitable[Any]]
    ) -> Any:
        """A call with one reply."""
        who = await self._admitted(method, context, _target(request))
        if _reads(method):
            return await inner(request, context)
        action, target, peer = method.rpartition("/")[2], _target(request), peer_host(context.peer())
        try:
            reply = await inner(request, context)
        except grpc.aio.AbortError:
            await asyncio.to_thread(
                self._audit.refused, who.actor, action, target, str(context.details() or ""), peer=peer
            )
            raise
        await asyncio.to_thread(self._audit.done, who.actor, action, target, peer=peer)
        return reply

    async def stream(
        self,
        method: str,
        requests: Any,
        context: Context,
        inner: Callable[[Any, Context], AsyncIterator[Any]],
    ) -> AsyncIterator[Any]:
        """A call with many replies. All that there are read."""
        await self._admitted(method, context, _target(requests))
        async for reply in inner(requests, context):
            yield reply

    async def _admitted(self, method: str, context: Context, target: str) -> Caller:
        if self._tokens is None:
            return LOCAL
        peer = peer_host(context.peer())
        name = method.rpartition("/")[2]
        who: Caller | None = None
        try:
            self._limiter.check(peer)
            token = _token(context)
            if not token:
                raise ConfigError(
                    "this control plane asks for a token: set EDGELOOP_TOKEN, or use 'edgeloop context set "
                    "NAME --token-file FILE'",
                    code="token-missing",
                )
            who = await asyncio.to_thread(self._tokens.caller, token)
            if who.role is not Role.OPERATOR and not _reads(method):
                raise ConfigError(
                    f"{who.actor} has the role {who.role}: {name} needs the role operator", code="role"
                )
        except EdgeloopError as error:
            if who is None and isinstance(error, ConfigError):
                self._limiter.failed(peer)
            actor = who.actor if who is not None else "unknown"
            await asyncio.to_thread(self._audit.refused, actor, name, target, error.message, peer=peer)
            status = grpc.StatusCode.PERMISSION_DENIED if who is not None else grpc.StatusCode.UNAUTHENTICATED
            if not isinstance(error, ConfigError):
                status = abort_args(error)[0]
            await context.abort(status, *abort_args(error)[1:])
        assert who is not None
        return who


def _reads(method: str) -> bool:
    return method.startswith(_REFLECTION) or method.rpartition("/")[2].startswith(_READING)


def _token(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == TOKEN_METADATA_KEY and isinstance(value, str) and value.startswith("Bearer "):
            return value.removeprefix("Bearer ").strip()
    return ""


def _target(request: Any) -> str:
    if not isinstance(request, Message):
        return ""
    names = {field.name for field in request.DESCRIPTOR.fields}
    for name in _TARGETS:
        if name in names and getattr(request, name):
            return str(getattr(request, name))
    documents = getattr(request, "documents", None)
    return ", ".join(document.source for document in documents) if documents else ""
