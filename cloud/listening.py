"""gRPC servers that listen: on the first port that is free, with health and reflection beside the service."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud.settings import spelled_address
from edgeloop.errors import ConfigError

_GRACE_S = 1.0


async def listen(
    server: grpc.aio.Server,
    name: str,
    *,
    host: str,
    ports: Sequence[int],
    service: str,
    credentials: grpc.ServerCredentials | None,
    stack: contextlib.AsyncExitStack,
) -> int:
    """Start it, and end it with ``stack``; returns the port. Raises ``ConfigError`` when no port is free.

    ``service`` is what reflection shows besides health; empty shows nothing at all.
    """
    checker = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    if service:
        shown = (service, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(shown, server)
    bound = _bind(server, host, name, ports, credentials)
    await server.start()
    for known in {"", service}:
        await checker.set(known, health_pb2.HealthCheckResponse.SERVING)

    async def end() -> None:
        await checker.enter_graceful_shutdown()
        await server.stop(_GRACE_S)

    stack.push_async_callback(end)
    return bound


def service_name(module: Any) -> str:
    """Of the one service that a generated module has."""
    (service,) = module.DESCRIPTOR.services_by_name.values()
    return str(service.full_name)


def _bind(
    server: grpc.aio.Server,
    host: str,
    name: str,
    ports: Sequence[int],
    credentials: grpc.ServerCredentials | None,
) -> int:
    for port in ports:
        address = spelled_address(host, port)
        try:
            if credentials is None:
                bound = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, credentials)
        except RuntimeError:
            bound = 0
        if bound:
            return bound
    raise ConfigError(
        f"{name}_port {ports[0]} on {host} cannot be listened on: another program uses it, or it is not "
        f"permitted: choose another with --{name}-port (0 takes a free one)",
        code="port-in-use",
    )
