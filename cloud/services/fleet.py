"""FleetService: what agents call. (Signatures first; bodies follow.)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc.aio

from cloud.domain.devices import DeploymentStatus
from cloud.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetSettings:
    report_interval_s: int = 30
    max_window_s: float = 3600.0
    max_clock_skew_s: float = 300.0


#: Pass to ``grpc.aio.server(options=...)``: bounded messages, and pings that agents may send.
SERVER_OPTIONS: tuple[tuple[str, int], ...] = ()


class FleetServicer:
    """``await start()`` before the server, ``await stop()`` after it. Hooks run on the loop."""

    def __init__(
        self,
        store: Store,
        *,
        settings: FleetSettings = FleetSettings(),
        now_s: Callable[[], float],
        on_register: Callable[[str], None] = lambda device_id: None,
        on_status: Callable[[DeploymentStatus], None] = lambda status: None,
    ) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError


def add_fleet_service(server: grpc.aio.Server, servicer: FleetServicer) -> None:
    raise NotImplementedError
