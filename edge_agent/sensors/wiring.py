"""All bridges and folders of one agent.

Rules that this module keeps:

- Only what is configured is imported and started.
- Stopped before the engine, so that what is under way still gets its answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from edge_agent.config import AgentConfig
from edge_agent.inference import InferenceEngine
from edge_agent.sensors.asker import Asker
from edge_agent.sensors.counts import SourceCounts


class _Source(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


class Sensors:
    """``start`` once, ``close`` once; on the agent's own thread."""

    def __init__(self, config: AgentConfig, engines: Mapping[str, InferenceEngine]) -> None:
        """``engines`` by workload; a source without one goes to that of ""."""
        self._config = config
        self._askers = {
            name: Asker(engine, timeout_s=config.serve_timeout_s, max_bytes=config.serve_max_request_bytes)
            for name, engine in engines.items()
        }
        self.counts = SourceCounts(
            [folder.name for folder in config.folders] + [bridge.name for bridge in config.bridges]
        )
        self._running: list[_Source] = []

    def start(self) -> None:
        """Returns at once, whether or not brokers and folders are there."""
        config = self._config
        if config.folders:
            from edge_agent.sensors.folder import FolderSource

            self._start(
                [
                    FolderSource(folder, self._askers[folder.workload], self.counts)
                    for folder in config.folders
                ]
            )
        if config.bridges:
            from edge_agent.sensors.bridge import Bridge

            self._start(
                [
                    Bridge(
                        bridge,
                        self._askers[bridge.workload],
                        self.counts,
                        client_id=f"{config.device_id}-{bridge.name}",
                    )
                    for bridge in config.bridges
                ]
            )

    def close(self) -> None:
        for asker in self._askers.values():
            asker.stop()
        for source in self._running:  # all at once, so that the waits for their threads overlap
            source.stop()
        for source in self._running:
            source.close()
        self._running.clear()

    def render(self) -> list[str]:
        """For the page of metrics."""
        return self.counts.render()

    def _start(self, sources: list[_Source]) -> None:
        for source in sources:
            source.start()
            self._running.append(source)
