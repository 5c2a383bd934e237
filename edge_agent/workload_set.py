"""Every workload of this device: where each keeps its state, and which one a message is for.

Rules:
- Without ``[[workload]]`` tables there is one, it takes whatever is deployed, and its state lies at the root
  of the state folder.
- With tables, each has a folder of its own below ``workloads/``, but for the one whose journal lies at the
  root already from a time without tables: that stays there, so that no journal is ever moved.
- Blobs are shared; nothing is collected that any of them needs.
- A deployment is for the workload that it names, and on a topic of one workload for no other.
"""

from collections.abc import Iterator
from pathlib import Path

from edge_agent.config import AgentConfig
from edge_agent.journal import Journal
from edge_agent.served_workload import ServedWorkload
from edge_agent.update_state import Slot
from edge_agent.workload_settings import WorkloadSettings
from edgeloop import topics
from edgeloop.errors import ConfigError

FOLDER = "workloads"


def state_folders(config: AgentConfig) -> list[tuple[WorkloadSettings | None, Path]]:
    """Each workload with the folder of its journal. Raises ConfigError where one cannot be made."""
    if not config.workloads:
        return [(None, config.state_dir)]
    state = Journal(config.state_dir).load(move_aside=False)
    at_root = state.target.workload if state.target is not None else ""
    found: list[tuple[WorkloadSettings | None, Path]] = []
    for workload in config.workloads:
        folder = config.state_dir / FOLDER / workload.name
        if workload.name == at_root:
            folder = config.state_dir
        else:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"state_dir: {folder} cannot be made ({error.strerror})", code="state-dir"
                ) from error
        found.append((workload, folder))
    return found


class WorkloadSet:
    """In the order of the settings file. Owned by the agent's thread."""

    def __init__(self, device_id: str) -> None:
        self._device_id = device_id
        self._all: list[ServedWorkload] = []

    def add(self, workload: ServedWorkload) -> None:
        self._all.append(workload)

    def __iter__(self) -> Iterator[ServedWorkload]:
        return iter(self._all)

    @property
    def first(self) -> ServedWorkload:
        return self._all[0]

    def kept_but(self, one: ServedWorkload) -> tuple[Slot, ...]:
        """What all others need of the blob store."""
        return tuple(slot for other in self._all if other is not one for slot in other.state.kept)

    @property
    def topics(self) -> tuple[str, ...]:
        """Where deployments come: the device's own topic, and one for each named workload."""
        named = (workload for workload in self._all if workload.name)
        return (
            topics.deployment(self._device_id),
            *(topics.workload_deployment(self._device_id, workload.name) for workload in named),
        )

    def on_topic(self, topic: str) -> str:
        """The workload that a deployment topic is of; empty for the device's own."""
        for workload in self._all:
            if workload.name and topic == topics.workload_deployment(self._device_id, workload.name):
                return workload.name
        return ""

    def for_name(self, name: str) -> ServedWorkload | None:
        """Who follows a deployment of this workload."""
        return next((workload for workload in self._all if workload.name in ("", name)), None)

    def accepted(self, payload: bytes) -> bool:
        """Whether one of them follows these very bytes already."""
        return any(workload.accepted(payload) for workload in self._all)
