"""How a deployment's artifact comes to be on this device, whole and released.

Rules:
- What is here already, under its digest, is not fetched again.
- Refused before its first block: what exceeds the workload's limit, the device's quota, or the disk.
- A delta is followed where the deployment offers one that this device can use (edge_agent.delta_source). What
  goes wrong on that way ends the way, not the fetch.
- What is whole still waits for the release gate, where there is one.
- Every call returns the events that the update rules are to hear, in order; none means: it goes on. A message
  or a tick that fails in a way that nobody foresaw ends the fetch ("update-internal"), which would else wait
  for what never comes.
"""

import logging
import random
from collections.abc import Callable
from typing import Protocol

from edge_agent import fetch
from edge_agent.blobs import BlobStore
from edge_agent.delta_source import DeltaSource, names_of
from edge_agent.fetch import Fetcher, FetchSettings
from edge_agent.release_gate import Candidate, Gate
from edge_agent.update_events import DeltaGivenUp, Event, Fetch, FetchCompleted, FetchFailed, unforeseen
from edge_agent.update_state import Slot
from edgeloop import topics
from edgeloop.artifact import BlockAssembler
from edgeloop.errors import RejectedError
from edgeloop.v1 import artifact_pb2

logger = logging.getLogger(__name__)


class Wire(Protocol):
    """What it needs of the broker; never blocks, and drops what cannot be sent now."""

    def subscribe(self, topic: str) -> None: ...
    def unsubscribe(self, topic: str) -> None: ...
    def request(self, slot: Slot, request: fetch.Request) -> None: ...

    @property
    def fed_at_s(self) -> float | None:
        """When bytes of a message that is not whole yet came last, by the monotonic clock; else None."""


class Acquisition:
    """Of one slot at a time. Owned by the agent's thread."""

    def __init__(
        self,
        *,
        blobs: BlobStore,
        wire: Wire,
        # None: this device checks no TUF metadata.
        release_gate: Gate | None,
        settings: FetchSettings,
        # Packed or unpacked; None for no limit of this workload's own.
        max_artifact_bytes: int | None,
        # What must not make way for a new artifact.
        kept: Callable[[], tuple[Slot, ...]],
        rng: random.Random,
        monotonic: Callable[[], float],
    ) -> None:
        self._blobs = blobs
        self._wire = wire
        self._gate = release_gate
        self._settings = settings
        self._max_artifact_bytes = max_artifact_bytes
        self._kept = kept
        self._rng = rng
        self._monotonic = monotonic
        self.deltas = DeltaSource(blobs, kept)
        # When a block of the delta came last, or the broker did.
        self._delta_fed_at_s = 0.0
        self._fetcher: Fetcher | None = None
        self._candidate: Slot | None = None
        self._connected = False

    @property
    def deadline_s(self) -> float | None:
        """When `on_tick` has something to do, by the monotonic clock."""
        deadlines = (
            self._fetcher.deadline_s if self._fetcher else None,
            self._gate.deadline_s if self._gate else None,
        )
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    @property
    def progress(self) -> float:
        """Of the fetch, 0 to 1; 0 when none is under way."""
        return self._fetcher.progress if self._fetcher else 0.0

    def use_gate(self, gate: Gate | None) -> None:
        """From now on; what is under way is to be begun again."""
        self.stop()
        self._gate = gate

    def begin(self, slot: Slot) -> list[Event]:
        self.stop()
        self._fetcher = fetcher = Fetcher(slot, self._settings, self._rng)
        fetcher.on_connected(self._connected, self._monotonic())
        manifest = self._blobs.find_manifest(slot.manifest_digest)
        if manifest is None:
            return self._go_on(fetcher.begin_manifest(self._monotonic()))
        try:
            fetch.check_fits(slot, manifest)
        except RejectedError as error:
            return self._failed(error)
        return self._begin_blocks(fetcher, manifest)

    def on_message(self, topic: str, payload: bytes) -> list[Event]:
        """A manifest, a block or TUF metadata."""
        return self._guarded(lambda: self._on_message(topic, payload))

    def _on_message(self, topic: str, payload: bytes) -> list[Event]:
        if self._gate is not None and topic.startswith(topics.TUF):
            return self._released(self._gate.on_message(topic, payload))
        if self._fetcher is not None:
            return self._go_on(self._fetcher.on_message(topic, payload, self._monotonic()))
        return []

    def on_broker(self, connected: bool) -> None:
        self._connected = connected
        self._delta_fed_at_s = self._monotonic()
        if self._fetcher is not None:
            self._fetcher.on_connected(connected, self._monotonic())

    def on_tick(self) -> list[Event]:
        return self._guarded(self._on_tick)

    def _on_tick(self) -> list[Event]:
        events: list[Event] = []
        if self.deltas.offer is not None and self._is_delta_silent():
            silent = f"no block of the delta came for {self._settings.delta_silence_s:g} s"
            return self._without_delta(RejectedError(silent, code="delta-missing"))
        if self._fetcher is not None and self._fetcher.deadline_s is not None:
            events.extend(self._go_on(self._fetcher.on_tick(self._monotonic(), self._wire.fed_at_s)))
        if self._gate is not None:
            events.extend(self._released(self._gate.on_tick()))
        return events

    def check_limit(self, manifest: artifact_pb2.Manifest) -> None:
        """Raises RejectedError("artifact-over-limit")."""
        size_bytes = max(manifest.size_bytes, manifest.executable_size_bytes)
        if self._max_artifact_bytes is not None and size_bytes > self._max_artifact_bytes:
            raise RejectedError(
                f"artifact {manifest.digest[:12]} has {size_bytes} bytes, and this device gives workload "
                f"{manifest.workload} {self._max_artifact_bytes}: deploy a smaller one, or raise "
                "max_artifact_bytes in its [[workload]] table",
                code="artifact-over-limit",
            )

    def stop(self) -> None:
        """Nothing more of it is wanted; what has come stays."""
        if self._fetcher is not None:
            for topic in self._fetcher.topics:
                self._wire.unsubscribe(topic)
        self.leave()

    def leave(self) -> None:
        """As `stop`, where the connection ends as well."""
        if self._fetcher is not None:
            self._blobs.end_fetch(self._fetcher.slot.digest)
            self._fetcher.stop()
            self._fetcher = None
        self.deltas.leave()
        if self._gate is not None:
            self._gate.stop()
        self._candidate = None

    # --- inside -------------------------------------------------------------------------------------

    def _guarded(self, step: Callable[[], list[Event]]) -> list[Event]:
        slot = self._fetcher.slot if self._fetcher else self._candidate
        try:
            return step()
        except Exception as error:
            if slot is None:
                raise
            logger.exception("a fetch failed in an unforeseen way")
            self.stop()
            return unforeseen(Fetch(slot=slot), error)

    def _begin_blocks(self, fetcher: Fetcher, manifest: artifact_pb2.Manifest) -> list[Event]:
        if self._blobs.has_artifact(manifest):
            self.stop()
            return self._whole(fetcher.slot, manifest)
        kept = self._kept()
        try:
            self.deltas.choose(fetcher.slot, manifest)
        except RejectedError as error:
            return self._without_delta(error)
        offer = self.deltas.offer
        digest = offer.digest if offer else ""
        try:
            self.check_limit(manifest)
            self._blobs.keep_within_quota(
                manifest,
                keep_artifacts=names_of(kept),
                keep_manifests={slot.manifest_digest for slot in kept},
                delta_digest=digest,
            )
            self._blobs.check_room(manifest, delta_digest=digest)
        except RejectedError as error:
            return self._failed(error)
        if offer is not None:
            assembler = self.deltas.begin()
        else:
            assembler = BlockAssembler(manifest)
            self._blobs.kept_blocks(manifest, assembler)
        if assembler.num_verified:
            logger.info(
                "fetch goes on digest=%s%s blocks=%d of=%d",
                manifest.digest[:12],
                f" delta={digest[:12]}" if digest else "",
                assembler.num_verified,
                assembler.num_blocks,
            )
        self._delta_fed_at_s = self._monotonic()
        return self._go_on(fetcher.begin_blocks(assembler, self._monotonic(), digest=digest))

    def _is_delta_silent(self) -> bool:
        return self._connected and (
            self._monotonic() >= self._delta_fed_at_s + self._settings.delta_silence_s
        )

    def _without_delta(self, error: RejectedError) -> list[Event]:
        """Begins again, for the artifact itself."""
        assert self._fetcher is not None
        slot = self._fetcher.slot
        told = self.deltas.give_up(error)
        given_up = DeltaGivenUp(generation=slot.generation, code=told.code, message=told.message)
        return [given_up, *self.begin(slot)]

    def _go_on(self, effects: list[fetch.FetchEffect]) -> list[Event]:
        """Carries out what the fetcher wants; stops at the first that ends the fetch."""
        fetcher = self._fetcher
        assert fetcher is not None
        for effect in effects:
            try:
                match effect:
                    case fetch.Subscribe(topic=topic):
                        self._wire.subscribe(topic)
                    case fetch.Unsubscribe(topic=topic):
                        self._wire.unsubscribe(topic)
                    case fetch.Request():
                        self._wire.request(fetcher.slot, effect)
                    case fetch.KeepBlock(n=n, data=data):
                        offer = self.deltas.offer
                        self._blobs.keep_block(offer.digest if offer else fetcher.slot.digest, n, data)
                        self._delta_fed_at_s = self._monotonic()
                    case fetch.KeepManifest(raw=raw, manifest=manifest):
                        self._blobs.keep_manifest(fetcher.slot.manifest_digest, raw)
                        return self._begin_blocks(fetcher, manifest)
                    case fetch.Complete():
                        whole = self._blobs.read_manifest(fetcher.slot.manifest_digest)
                        if self.deltas.offer is not None:
                            self.deltas.finish(whole)
                        else:
                            self._blobs.assemble(whole)
                            logger.info(
                                "made of its blocks digest=%s bytes=%d", whole.digest[:12], whole.size_bytes
                            )
                        self.deltas.forget(fetcher.slot)
                        self.stop()
                        return self._whole(fetcher.slot, whole)
                    case fetch.Refuse(code=code, message=message):
                        raise RejectedError(message, code=code)
            except RejectedError as error:
                return self._failed(error) if self.deltas.offer is None else self._without_delta(error)
        return []

    def _failed(self, error: RejectedError) -> list[Event]:
        assert self._fetcher is not None
        generation = self._fetcher.slot.generation
        self.stop()
        return [FetchFailed(generation=generation, code=error.code, message=error.message)]

    def _whole(self, slot: Slot, manifest: artifact_pb2.Manifest) -> list[Event]:
        """It is all here: may it run at all?"""
        if self._gate is None:
            return [FetchCompleted(generation=slot.generation)]
        self._candidate = slot
        self._gate.begin(Candidate(slot=slot, size_bytes=manifest.size_bytes))
        return []

    def _released(self, verdict: bool | RejectedError | None) -> list[Event]:
        slot = self._candidate
        if verdict is None or slot is None:
            return []
        self._candidate = None
        if isinstance(verdict, RejectedError):
            return [FetchFailed(generation=slot.generation, code=verdict.code, message=verdict.message)]
        return [FetchCompleted(generation=slot.generation)]
