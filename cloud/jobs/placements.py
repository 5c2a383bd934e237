"""Frees processors that a training which was killed from outside still holds.

Ray Train reserves its workers' processors in a placement group and has a cleaner that removes the group when
the run's controller is gone. The cleaner asks the dashboard's state API, and where there is no dashboard
(which we do not start) it asks for ever: after two cancelled trainings a cluster of two processors runs
nothing more. So we look ourselves, in Ray's own table, which needs no dashboard.

Rules: a group is removed only when this job made it, the actor that made it is dead, and it was not meant to
outlive that actor. All this runs in the cluster's processes: the control plane never waits for Ray's table.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Any, Self

logger = logging.getLogger(__name__)

#: How long after a cancellation its groups are looked for; that an actor is dead is known within seconds.
SWEEP_S = 15.0
SWEEP_INTERVAL_S = 1.0


def free_orphans() -> int:
    """Remove the groups that nobody holds any more; how many there were. Raises ``RayError`` as Ray does."""
    import ray
    from ray._private.state import state  # no public call tells whether a group's maker is alive
    from ray.core.generated import gcs_pb2
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    num_freed = 0
    accessor: Any = state._connect_and_get_accessor()
    message: Any = gcs_pb2  # Ray ships no types for it
    for raw in accessor.get_placement_group_table():
        group = message.PlacementGroupTableData.FromString(raw)
        removed = group.state == message.PlacementGroupTableData.REMOVED
        if removed or group.is_detached or not group.creator_actor_dead or group.creator_job_id.hex() != job:
            continue
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
        num_freed += 1
    if num_freed:
        logger.info("freed the processors of %d trainings that were killed", num_freed)
    return num_freed


def sweep(duration_s: float = SWEEP_S) -> None:
    """Free what is orphaned within this time; a task of its own after a cancellation."""
    until_s = time.monotonic() + duration_s
    while time.monotonic() < until_s:
        free_orphans()
        time.sleep(SWEEP_INTERVAL_S)


class Sweeping:
    """Frees, beside a training that is stood over, what its last attempt may have left."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                free_orphans()
            except Exception as error:  # noqa: BLE001 - the training matters more, and the next look may succeed
                logger.warning("placement groups could not be looked through: %s", error)
            self._ended.wait(5 * SWEEP_INTERVAL_S)
