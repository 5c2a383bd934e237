"""From the deployment topics through the gate to the workload that a deployment is for.

Rules:
- What one of the workloads follows already is not judged again, however long ago it expired.
- On the topic of one workload only a deployment for it passes, on the device's own any that is hosted.
- A deployment whose key is unknown waits for a change of the keys, one on each topic, then is judged anew;
  one that has expired waits for the time to be put right.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge_agent.config import AgentConfig
from edge_agent.known_time import KnownTime
from edge_agent.update_events import Ignored
from edge_agent.workload_set import WorkloadSet

if TYPE_CHECKING:
    from edge_agent.deployment_gate import DeploymentGate, Refusal


class Orders:
    """Owned by the agent's thread."""

    def __init__(
        self,
        config: AgentConfig,
        workloads: WorkloadSet,
        *,
        known_time: KnownTime,
        on_refused: Callable[["Refusal"], None],
    ) -> None:
        self._config = config
        self._workloads = workloads
        self._known_time = known_time
        self._on_refused = on_refused
        self._gate_made: DeploymentGate | None = None

    def use(self, config: AgentConfig) -> None:
        """Other keys count from now on."""
        self._config = config
        self._gate_made = None

    def on_deployment(self, topic: str, payload: bytes) -> None:
        if not payload or self._workloads.accepted(payload):
            # Cleared; or accepted when it was fresh and retained since.
            return
        name = self._workloads.on_topic(topic)
        names = [workload.name for workload in self._workloads if workload.name]
        slot = self._gate.open(payload, topic=topic, hosted=[name] if name else names)
        workload = self._workloads.for_name(slot.workload) if slot is not None else None
        if slot is not None and workload is not None:
            workload.follow(slot)

    def on_director_keys(self, payload: bytes) -> None:
        if payload:
            for topic, waiting in self._gate.on_chain(payload).items():
                self.on_deployment(topic, waiting)

    def on_tick(self) -> None:
        if self._gate_made is not None:
            for topic, waiting in self._gate_made.fresh_again().items():
                self.on_deployment(topic, waiting)

    def on_ignored(self, ignored: Ignored, workload: str = "") -> None:
        """A deployment that passed the gate, and that the update rules would not follow."""
        from edge_agent.deployment_gate import Refusal

        self._gate.refuse(
            Refusal(
                generation=ignored.generation,
                digest=ignored.digest,
                code=ignored.code,
                message=ignored.message,
                workload=workload,
            )
        )

    @property
    def _gate(self) -> "DeploymentGate":
        if self._gate_made is None:
            # Imported when there is something to verify: a device that only serves does without its memory.
            from edge_agent.deployment_gate import DeploymentGate

            self._gate_made = DeploymentGate(
                self._config.state_dir,
                device_id=self._config.device_id,
                configured_keys=self._config.director_keys,
                known_time=self._known_time,
                on_refused=self._on_refused,
                monotonic=time.monotonic,
            )
        return self._gate_made
