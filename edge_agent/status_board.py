"""What the agent says of itself at this moment, and when that is worth writing down.

Rules:
- Written as soon as a headline changes, and every few seconds else, so that a reader sees that it is alive.
- A disk that takes no status file costs nothing else: `last` is what `/metrics` shows.
"""

import functools
import logging
import os
import time
from importlib import metadata

from edge_agent.config import AgentConfig
from edge_agent.network import Network
from edge_agent.runtime import rss_bytes
from edge_agent.sensors.wiring import Sensors
from edge_agent.serving.local_api import LocalApi
from edge_agent.spool import ReportSpool
from edge_agent.status_file import AgentStatus, write_status
from edge_agent.workload_set import WorkloadSet
from edgeloop.v1 import fleet_service_pb2

logger = logging.getLogger(__name__)

STATUS_INTERVAL_S = 5.0
# Of what the cloud says.
MAX_CHARS = 1000


@functools.cache
def agent_version() -> str:
    """Of the installed package, looked up once: it is read from the disk. Empty where that does not say."""
    try:
        return metadata.version("edgeloop")
    except (metadata.PackageNotFoundError, OSError) as error:
        logger.warning("this agent does not know its version reason=%r", error)
        return ""


class StatusBoard:
    """Owned by the agent's thread; `last` may be read by any."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        boot_id: str,
        # When the process began, by the wall clock.
        start_s: float,
        workloads: WorkloadSet,
        network: Network,
        spool: ReportSpool,
        sensors: Sensors,
        api: LocalApi,
    ) -> None:
        self._config = config
        self._boot_id = boot_id
        self._start_s = start_s
        self._workloads = workloads
        self._network = network
        self._spool = spool
        self._sensors = sensors
        self._api = api
        self._profile = ""
        self._profile_message = ""
        self.broker_connected = False
        self.last: AgentStatus | None = None
        self._write_at_s = 0.0

    def on_registered(self, response: fleet_service_pb2.RegisterResponse) -> None:
        """What the cloud matched the device to, and each of its workloads."""
        profile, message = response.profile[:MAX_CHARS], response.message[:MAX_CHARS]
        if (profile, message) != (self._profile, self._profile_message):
            if profile:
                logger.info("registered profile=%s", profile)
            else:
                logger.warning("registered, but no profile matches reason=%s", message)
        self._profile, self._profile_message = profile, message
        # A control plane of before it could say so says nothing of them.
        said = {hosted.workload: (hosted.profile, hosted.message) for hosted in response.profiles}
        for workload in self._workloads:
            profile, message = (text[:MAX_CHARS] for text in said.get(workload.name, ("", "")))
            if message and message != workload.profile_message:
                logger.warning(
                    "registered, but no profile matches workload=%s reason=%s", workload.name, message
                )
            workload.profile, workload.profile_message = profile, message

    def tick(self, now_s: float) -> None:
        """Writes what is due, by the monotonic clock."""
        status = self._now(running=True)
        if now_s >= self._write_at_s or self.last is None or self.last.headline != status.headline:
            self._write(status)

    def write(self, *, running: bool = True) -> None:
        """Writes now."""
        self._write(self._now(running=running))

    def _write(self, status: AgentStatus) -> None:
        self._write_at_s = time.monotonic() + STATUS_INTERVAL_S
        self.last = status
        try:
            write_status(self._config.state_dir, status)
        except OSError as error:
            logger.debug("status file is not written reason=%s", error.strerror)

    def _now(self, *, running: bool) -> AgentStatus:
        first = self._workloads.first
        state, serving = first.state, first.serving
        return AgentStatus(
            pid=os.getpid(),
            running=running,
            device_id=self._config.device_id,
            boot_id=self._boot_id,
            agent_version=agent_version(),
            profile=self._profile,
            profile_message=self._profile_message,
            state=state.state.value,
            generation=state.generation,
            digest=state.target.digest if state.target else "",
            progress=first.updater.progress,
            code=state.code,
            message=state.message,
            serving_digest=serving.digest if serving else "",
            serving_generation=serving.generation if serving else 0,
            workload=serving.workload if serving else "",
            committed_digest=state.committed.digest if state.committed else "",
            num_quarantined=len(state.quarantine),
            num_deltas=sum(w.updater.deltas.num_applied for w in self._workloads),
            num_deltas_given_up=sum(w.updater.deltas.num_given_up for w in self._workloads),
            broker_connected=self.broker_connected,
            server_connected=self._network.server_connected,
            num_pending_reports=self._spool.num_pending,
            num_dropped_reports=self._spool.num_dropped,
            spool_problem=self._spool.problem,
            identity_problem=self._network.identity_problem,
            sources=self._sensors.counts.by_source(),
            num_requests=sum(workload.meter.num_served for workload in self._workloads),
            num_errors=sum(workload.meter.num_failed for workload in self._workloads),
            grpc_address=self._api.grpc_address,
            rest_address=self._api.rest_address,
            emulated_slowdown=self._config.emulate_slowdown,
            rss_bytes=rss_bytes(),
            start_time_s=self._start_s,
            first_inference_s=min(
                (w.meter.first_record_s for w in self._workloads if w.meter.first_record_s > 0), default=0.0
            ),
            workloads=[workload.status() for workload in self._workloads if workload.name],
            update_time_s=time.time(),
        )
