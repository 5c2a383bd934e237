"""What ``serve`` shows over HTTP where it is asked to: figures for Prometheus, the fleet's page for people.

Wiring alone, beside ``cloud.serve``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from cloud.acting import Acting
from cloud.audit import AuditLog
from cloud.metrics import FleetMetrics, MetricsServer, PlaneState
from cloud.secure_parts import SecureParts
from cloud.settings import ServeSettings, is_loopback, reachable, spelled_address
from cloud.store import Store
from cloud.web.gather import FleetPage
from cloud.web.server import WebServer

logger = logging.getLogger(__name__)


async def start_pages(
    settings: ServeSettings,
    store: Store,
    acting: Acting,
    keys: SecureParts | None,
    stack: contextlib.AsyncExitStack,
) -> None:
    """Start those that have a port; ``stack`` ends them. Raises ``ConfigError`` for a port that is in use."""

    def plane() -> PlaneState:
        return PlaneState(acts=acting.acts, broker_connected=acting.connected)

    if settings.metrics_port is not None:
        metrics = FleetMetrics(store, settings=settings.policy, plane=plane)
        metrics_server = MetricsServer(metrics, host=settings.host, port=settings.metrics_port)
        metrics_server.start()
        stack.push_async_callback(asyncio.to_thread, metrics_server.stop)
        logger.info("metrics: http://%s/metrics", _shown(settings, metrics_server.port))
    if settings.web_port is not None:
        page = FleetPage(store, settings=settings.policy, plane=plane)
        web_server = WebServer(
            page.html,
            AuditLog(store),
            keys.tokens(store) if keys is not None else None,
            context=keys.web_context() if keys is not None else None,
            anybody=keys is None and not is_loopback(settings.host),
        )
        await web_server.start(settings.host, settings.web_port)
        stack.push_async_callback(web_server.stop)
        scheme = "http" if keys is None else "https"
        logger.info("the fleet's page: %s://%s/", scheme, _shown(settings, web_server.port))


def _shown(settings: ServeSettings, port: int) -> str:
    return spelled_address(reachable(settings.host), port)
