"""gRPC servers that listen: on the first port that is free, with health and reflection beside the service."""

from __future__ import annotations

import contextlib
import logging
import resource
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud.settings import spelled_address
from edgeloop.errors import ConfigError

logger = logging.getLogger(__name__)

_GRACE_S = 1.0
#: One for each device that holds a session, and some for the rest.
_MAX_FILES = 65_536
_FEW_FILES = 4_096


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


def allow_many_sessions() -> int:
    """Raise the number of files that this process may have open, as far as it may; returns what it is now.

    Shells and systemd begin with 1024, and each device holds one connection.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        logger.warning(
            "this process may have %d files open, one for each device: allow more with 'ulimit -Hn' or with "
            "systemd's LimitNOFILE=",
            soft,
        )
    return soft
