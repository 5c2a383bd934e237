"""What only the control plane that holds the lease runs: cluster, jobs, controller, publisher, MQTT session.

Rules that this module keeps:

* All of it writes through a store with a fence: once another has taken the lease over, nothing is written,
  TUF metadata and the record of what is on the broker included.
* Every part is made anew each time: what one holding knew in memory says nothing to the next.
* Stopping is in the reverse order of starting, and ends all of it even when one part fails to.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloud.compute_host import COMPUTE_KEY, ComputeHost, NoCompute
from cloud.controller import Controller
from cloud.deltas import DeltaShelf
from cloud.departures import Departures
from cloud.director_keys import DirectorKeys
from cloud.elector import CONTROLLER
from cloud.jobrunner import JobRunner
from cloud.loop import ControlLoop
from cloud.presence import PresenceBook
from cloud.publisher import Publisher
from cloud.registry import Registry
from cloud.settings import ServeSettings
from cloud.store import Store, lease_fence
from cloud.tuf_repository import TufRepository
from edgeloop import topics
from edgeloop.artifact import parse_manifest
from edgeloop.mqtt import MqttSession


@dataclass(frozen=True, kw_only=True, slots=True)
class ActingParts:
    """What acting is made of. The last two are called once for each holding."""

    settings: ServeSettings
    state_dir: Path
    store: Store
    registry: Registry
    #: The broker forgets who is there with each of its restarts.
    broker_forgets: bool
    new_compute: Callable[[], ComputeHost | NoCompute]
    new_session: Callable[[], MqttSession]


class Acting:
    """``start`` and ``stop`` in turns, from one event loop; the rest from any thread."""

    def __init__(self, parts: ActingParts) -> None:
        self._parts = parts
        self._stack = contextlib.AsyncExitStack()
        self._loop: ControlLoop | None = None
        self._session: MqttSession | None = None
        self._compute: ComputeHost | NoCompute | None = None
        self._publisher: Publisher | None = None

    @property
    def acts(self) -> bool:
        """Whether this control plane is the one."""
        return self._loop is not None

    @property
    def connected(self) -> bool:
        """Whether the broker answers."""
        return self._session is not None and self._session.connected

    @property
    def publisher_backlog(self) -> int:
        """Changes that the broker does not hold yet; 0 while another acts."""
        publisher = self._publisher
        return 0 if publisher is None else publisher.backlog

    def describe_compute(self) -> str:
        """For people."""
        return "none: this one stands by" if self._compute is None else self._compute.describe()

    def poke(self) -> None:
        """Something happened that a controller may wait for. Nothing happens while another acts."""
        loop = self._loop
        if loop is not None:
            loop.poke()

    async def start(self, epoch: int) -> None:
        """Begin to act under this epoch of the lease."""
        parts, stack = self._parts, self._stack
        store = parts.store.fenced(lease_fence(CONTROLLER, epoch))
        await asyncio.to_thread(store.set_meta, COMPUTE_KEY, parts.settings.compute)
        compute = self._compute = parts.new_compute()
        stack.push_async_callback(asyncio.to_thread, compute.stop)
        compute.start()
        session = self._session = parts.new_session()
        deltas = DeltaShelf(parts.state_dir / "deltas", parts.registry)
        publisher = Publisher(
            bus=session,
            blobs=parts.registry,
            state_path=parts.state_dir / "published.json",
            deltas=deltas,
            shared=store,
        )
        director = DirectorKeys(parts.settings.director, on_chain=publisher.set_director_keys)
        tuf = TufRepository(
            parts.settings.director,
            size_of=lambda manifest_digest: _artifact_bytes(parts.registry, manifest_digest),
            on_files=publisher.set_tuf,
            timestamp_lifetime_s=parts.settings.tuf_timestamp_lifetime_s,
            acting=store.transaction,
        )
        runner = JobRunner(
            store,
            now_s=time.time,
            on_lost=compute.lost,
            has_blob=parts.registry.exists,
            get_blob=parts.registry.get,
        )
        controller = Controller(
            store,
            director=director.current,
            ship=publisher.set_desired,
            settings=parts.settings.policy,
            deployment_lifetime_s=parts.settings.deployment_lifetime_s,
            release=tuf.release,
            deltas=deltas,
            computes_here=parts.settings.compute == "ray" and not parts.settings.ray_address,
        )
        presence = PresenceBook(store, forget_on_connect=parts.broker_forgets)
        loop = ControlLoop(
            controller=controller,
            runner=runner,
            compute=compute,
            presence=presence,
            departures=Departures(store, publisher.clear),
            step_interval_s=parts.settings.step_interval_s,
        )
        session.on_state(publisher.on_connected)
        session.on_state(presence.on_connected)
        session.subscribe(topics.ALL_PRESENCE, presence.heard)
        session.subscribe(topics.ALL_REQUESTS, publisher.on_request)
        self._publisher = publisher
        publisher.start()
        stack.push_async_callback(asyncio.to_thread, publisher.stop)
        session.start()
        stack.push_async_callback(asyncio.to_thread, session.close)
        loop.start()
        stack.push_async_callback(asyncio.to_thread, loop.stop)
        self._loop = loop

    async def stop(self) -> None:
        """Stop all of it, last first. Safe to call twice."""
        self._loop = None
        try:
            await self._stack.aclose()
        finally:
            self._session = None
            self._compute = None
            self._publisher = None


def _artifact_bytes(registry: Registry, manifest_digest: str) -> int:
    """Length of a manifest's artifact. Raises ``EdgeloopError``."""
    return parse_manifest(registry.get(manifest_digest), expected_digest=manifest_digest).size_bytes
