"""What devices that were deleted leave on the broker, until it is gone from there.

Rules that this module keeps:

* What is left is written down in the transaction that deletes a device. It is forgotten after the broker has
  acknowledged that it holds it no more: a broker or a control plane that is away meanwhile costs time alone,
  and whoever acts next goes on.
* A device that registered again under the same name keeps what it is told now.
* It is cleared at once, and once more after ``SETTLE_S``: of a device that is cut off the
  broker retains the will.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final, Protocol

from cloud.domain.identities import Departure
from edgeloop import topics
from edgeloop.errors import EdgeloopError, RejectedError

logger = logging.getLogger(__name__)

#: Longer than it takes to cut the session of a device off whose certificate was revoked.
SETTLE_S: Final = 60.0


class DepartureStore(Protocol):
    """What of the store is used here."""

    def departures(self) -> dict[str, Departure]: ...
    def forget_departure(self, device_id: str) -> None: ...


class Departures:
    """Owned by the control loop's thread. ``clear`` is ``Publisher.clear``."""

    def __init__(
        self, store: DepartureStore, clear: Callable[[Collection[str], Callable[[], None]], None]
    ) -> None:
        self._store = store
        self._clear = clear
        #: Whether it was asked for the last time, by device.
        self._asked: dict[str, bool] = {}

    def look(self) -> Mapping[str, Departure]:
        """Devices that were deleted. Never raises.

        Look before what should be on the broker is stated, and ``clear`` after it: then a device that was
        deleted before the look is not among that any more.
        """
        try:
            return self._store.departures()
        except EdgeloopError as error:
            logger.warning("what deleted devices left is looked for again: %s", error)
            return {}

    def clear(self, left: Mapping[str, Departure], now_s: float) -> None:
        """Have what they left taken off the broker."""
        # One that was forgotten may be deleted once more.
        self._asked = {device_id: last for device_id, last in self._asked.items() if device_id in left}
        for device_id, departure in sorted(left.items()):
            last = now_s - departure.delete_time_s >= SETTLE_S
            if self._asked.get(device_id, not last) == last:
                continue
            self._asked[device_id] = last
            forget = partial(self._store.forget_departure, device_id) if last else _nothing
            self._clear(topics_of(device_id, departure.workloads), forget)


def _nothing() -> None:
    return None


def topics_of(device_id: str, workloads: Collection[str]) -> list[str]:
    """All that is retained for one device and by it."""
    try:
        found = [topics.presence(device_id), topics.deployment(device_id)]
    except RejectedError:  # a name that no agent could have had was never published for
        return []
    for workload in sorted(workloads):
        try:
            found.append(topics.workload_deployment(device_id, workload))
        except RejectedError:
            continue
    return found
