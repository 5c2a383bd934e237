"""Wraps the four kinds of gRPC handlers, so that an interceptor writes its rule once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import grpc
import grpc.aio

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any  # grpc.RpcMethodHandler, whose fields have no types


class Rule(Protocol):
    """``answer`` makes the reply of a unary call, ``stream`` the replies of a streaming one."""

    async def answer(
        self, method: str, request: Any, context: Context, inner: Callable[[Any, Context], Awaitable[Any]]
    ) -> Any: ...

    def stream(
        self,
        method: str,
        requests: Any,
        context: Context,
        inner: Callable[[Any, Context], AsyncIterator[Any]],
    ) -> AsyncIterator[Any]: ...


def wrapped(handler: Handler, method: str, rule: Rule) -> Handler:
    """The same handler under a rule. ``request`` is an iterator where requests stream."""
    streams_in, streams_out = handler.request_streaming, handler.response_streaming
    name = f"{'stream' if streams_in else 'unary'}_{'stream' if streams_out else 'unary'}"
    inner = getattr(handler, name)

    async def answer(request: Any, context: Context) -> Any:
        return await rule.answer(method, request, context, inner)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        async for response in rule.stream(method, request, context, inner):
            yield response

    make = getattr(grpc, f"{name}_rpc_method_handler")
    return make(
        stream if streams_out else answer,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
