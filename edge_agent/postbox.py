"""What goes to the cloud: kept in the spool first, and the reporter woken for it.

Rule: what cannot be kept now is a status that waits with whoever sent it, or a report that is lost and
counted; nothing here stops the agent.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from edge_agent.config import AgentConfig
from edge_agent.meter import WindowReport
from edge_agent.runtime import rss_bytes
from edge_agent.spool import ReportSpool
from edge_agent.update_state import State, StatusNote
from edgeloop.errors import TransientError
from edgeloop.v1 import deployment_pb2

if TYPE_CHECKING:
    from edge_agent.deployment_gate import Refusal

logger = logging.getLogger(__name__)

WIRE_STATES = {
    State.FETCHING: deployment_pb2.DEPLOYMENT_STATE_FETCHING,
    State.VERIFYING: deployment_pb2.DEPLOYMENT_STATE_VERIFYING,
    State.TESTING: deployment_pb2.DEPLOYMENT_STATE_TESTING,
    State.TRIAL: deployment_pb2.DEPLOYMENT_STATE_TRIAL,
    State.ACTIVE: deployment_pb2.DEPLOYMENT_STATE_ACTIVE,
    State.REJECTED: deployment_pb2.DEPLOYMENT_STATE_REJECTED,
    State.ROLLED_BACK: deployment_pb2.DEPLOYMENT_STATE_ROLLED_BACK,
    State.SUPERSEDED: deployment_pb2.DEPLOYMENT_STATE_SUPERSEDED,
}


class Postbox:
    """Used on the agent's own thread."""

    def __init__(self, config: AgentConfig, spool: ReportSpool, *, wake: Callable[[], None]) -> None:
        self._device_id = config.device_id
        self._emulated_slowdown = config.emulate_slowdown
        self._spool = spool
        self._wake = wake

    def deliver(self, note: StatusNote, progress: float) -> None:
        """Raises TransientError when it cannot be kept now."""
        status = deployment_pb2.DeploymentStatus(
            device_id=self._device_id,
            generation=note.generation,
            digest=note.digest,
            state=WIRE_STATES[note.state],
            code=note.code,
            message=note.message[:1000],
            progress=progress,
        )
        status.event_time.FromNanoseconds(int(note.event_s * 1e9))
        self._spool.enqueue_status(status)
        self._wake()

    def refused(self, refusal: "Refusal") -> None:
        """A deployment that was not accepted."""
        status = deployment_pb2.DeploymentStatus(
            device_id=self._device_id,
            generation=refusal.generation,
            digest=refusal.digest,
            state=deployment_pb2.DEPLOYMENT_STATE_REFUSED,
            code=refusal.code,
            message=refusal.message[:1000],
        )
        status.event_time.FromNanoseconds(time.time_ns())
        try:
            self._spool.enqueue_status(status)
        except TransientError as error:
            logger.warning("a refusal is not kept for the cloud reason=%s", error)
            return
        self._wake()

    def windows(self, windows: Iterable[WindowReport]) -> None:
        """Finished latency windows, each a report of its own."""
        windows = list(windows)
        if not windows:
            return
        # Imported once there is something to report: gRPC costs a third of the start.
        from edge_agent.reporter import build_report

        for window in windows:
            report = build_report(
                window,
                device_id=self._device_id,
                rss_bytes=rss_bytes(),
                emulated_slowdown=self._emulated_slowdown,
            )
            try:
                self._spool.append(report)
            except TransientError as error:
                # The spool has said so, and counts them.
                logger.debug("a latency window is lost reason=%s", error)
        self._wake()
