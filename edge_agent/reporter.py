"""Report stream (signatures first; being filled in)."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from edge_agent.spool import ReportSpool
from edgeloop.backoff import Backoff
from edgeloop.v1 import deployment_pb2, device_pb2, fleet_service_pb2


class FleetReporter:
    """A thread that registers, then delivers what the spool holds; see the module."""

    def __init__(
        self,
        *,
        server: str,
        spool: ReportSpool,
        registration: Callable[[], device_pb2.Registration],
        on_registered: Callable[[fleet_service_pb2.RegisterResponse], None],
        backoff: Backoff,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None: ...

    def start(self) -> None: ...
    def close(self, *, timeout_s: float = 5.0) -> None:
        """Tries for timeout_s to deliver what waits, then stops. Undelivered stays in the spool."""

    def wake(self) -> None:
        """Something was appended to the spool (cheap; any thread)."""

    def register_again(self) -> None:
        """Registers anew soon (serving digest or generation changed); any thread."""

    def update_status(self, status: deployment_pb2.DeploymentStatus) -> None:
        """Durable in the spool when it returns; reaches the cloud at least once. Any thread."""

    @property
    def connected(self) -> bool: ...
