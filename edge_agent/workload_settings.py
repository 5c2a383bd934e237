"""What a settings file says of several workloads on one device.

Rules:
- Without a ``[[workload]]`` table the device runs one workload, whichever the cloud deploys to it.
- With tables, it hosts exactly these, each under a deployment topic and limits of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_agent.config_values import Place, text_value, whole
from edge_agent.source_settings import at_key, read_tables, table_values
from edgeloop import topics
from edgeloop.errors import RejectedError

MAX_WORKLOADS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadSettings:
    """One workload and its limits; None: as the device's own setting, or no limit."""

    name: str
    num_threads: int | None = None
    #: Requests that may wait for its model.
    max_pending: int = 64
    #: Deployments whose artifact is larger, packed or unpacked, are refused.
    max_artifact_bytes: int | None = None


def workload_name(value: object, place: Place) -> str:
    """A name that topics may hold."""
    text = text_value(value, place)
    try:
        return topics.check_workload(text)
    except RejectedError as error:
        place.fail(value, f"the name of a workload ({error})")


_KEYS: Mapping[str, Callable[[object, Place], object]] = {
    "name": workload_name,
    "num_threads": whole(1, 256),
    "max_pending": whole(1, 100_000),
    "max_artifact_bytes": whole(1, 2**40),
}


def read_workloads(value: object, place: Place) -> tuple[WorkloadSettings, ...]:
    """The ``[[workload]]`` tables."""
    found: list[WorkloadSettings] = []
    for table, at in read_tables(value, place, at_most=MAX_WORKLOADS):
        workload = WorkloadSettings(**table_values(table, at, _KEYS, required=("name",)))
        if any(other.name == workload.name for other in found):
            at_key(at, "name").fail(workload.name, "a workload that no other table names")
        found.append(workload)
    return tuple(found)
