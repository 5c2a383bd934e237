"""Starts and stops the local API, and keeps trying while an address is not to be had.

Rules that this module keeps:

- The agent goes on without the API: an address in use is an error in its log and an empty address in its
  status, tried again every ``RETRY_S``, and no reason to end.
- Only what is configured is imported.
- Called on the agent's own thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from edge_agent.batching import render_batches
from edge_agent.config import AgentConfig
from edge_agent.inference import InferenceEngine
from edge_agent.serving import addresses
from edge_agent.serving.metrics import ServingMetrics, render_status
from edge_agent.serving.model_service import ModelService
from edge_agent.status_file import AgentStatus

logger = logging.getLogger(__name__)

RETRY_S: Final = 5.0
STOP_GRACE_S: Final = 2.0


class _Transport(Protocol):
    def start(self) -> addresses.Address: ...
    def stop(self, grace_s: float) -> None: ...


class LocalApi:
    """`start` once, then `retry` from time to time, then `stop`."""

    def __init__(
        self,
        config: AgentConfig,
        engines: Mapping[str, InferenceEngine],
        *,
        status: Callable[[], AgentStatus | None],
        more_metrics: Callable[[], list[str]] = list,
    ) -> None:
        self._config = config
        self._engines = engines
        self._service = ModelService(engines, timeout_s=config.serve_timeout_s)
        self._metrics = ServingMetrics()
        self._status = status
        self._more_metrics = more_metrics
        self._running: dict[str, _Transport] = {}
        self._addresses: dict[str, str] = {}
        self._failed: set[str] = set()
        self._retry_at_s = 0.0

    @property
    def grpc_address(self) -> str:
        """Where it serves now; empty when it does not."""
        return self._addresses.get("grpc", "")

    @property
    def rest_address(self) -> str:
        return self._addresses.get("rest", "")

    def start(self, now_s: float) -> None:
        """Serves whatever can be served."""
        self._retry_at_s = now_s + RETRY_S
        for name, address in (("rest", self._config.serve_rest), ("grpc", self._config.serve_grpc)):
            if address is not None and name not in self._running:
                self._start_one(name, address)

    def retry(self, now_s: float) -> None:
        """Tries again what failed, when it is time."""
        if self._failed and now_s >= self._retry_at_s:
            self.start(now_s)

    def stop(self) -> None:
        """Requests under way end, within ``STOP_GRACE_S``."""
        self._failed.clear()
        for transport in self._running.values():
            transport.stop(STOP_GRACE_S)
        self._running.clear()
        self._addresses.clear()

    def _start_one(self, name: str, address: addresses.Address) -> None:
        transport = self._make(name, address)
        try:
            actual = transport.start()
        except OSError as error:
            logger.log(
                logging.DEBUG if name in self._failed else logging.ERROR,
                "local API not served transport=%s address=%s reason=%s; tried again every %g s (set "
                "serve_%s to another address, or to off)",
                name,
                addresses.show(address),
                error.strerror or error,
                RETRY_S,
                name,
            )
            self._failed.add(name)
            return
        self._failed.discard(name)
        self._running[name] = transport
        self._addresses[name] = addresses.show(actual)
        logger.info("local API serves transport=%s address=%s", name, self._addresses[name])
        if not addresses.is_local(actual):
            logger.warning(
                "the local API asks for no credentials, and %s can be reached from other machines",
                self._addresses[name],
            )

    def _make(self, name: str, address: addresses.Address) -> _Transport:
        max_request_bytes = self._config.serve_max_request_bytes
        if name == "grpc":
            from edge_agent.serving.grpc_api import GrpcApi

            return GrpcApi(self._service, address, metrics=self._metrics, max_request_bytes=max_request_bytes)
        from edge_agent.serving.rest_api import RestApi

        return RestApi(
            self._service,
            address,
            metrics=self._metrics,
            render_metrics=self._render_status,
            max_request_bytes=max_request_bytes,
        )

    def _render_status(self) -> list[str]:
        status = self._status()
        return [
            *(render_status(status) if status is not None else ()),
            *render_batches(self._engines),
            *self._more_metrics(),
        ]
