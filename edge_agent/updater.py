"""Carries out what the update rules decide: the only code that touches journal, blobs, broker and engine.

Rules:
- Runs on the agent's own thread alone; what other threads find out comes back through the inbox.
- A new state is saved before any effect of it. While it cannot be saved (full disk), nothing is done about
  it: the event waits and is tried again, and what serves goes on serving.
- Nothing is loaded for serving but bytes that were hashed on this read, under a manifest that was.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edge_agent import fetch, update
from edge_agent.blobs import BlobStore
from edge_agent.fetch import Fetcher, FetchSettings
from edge_agent.inference import InferenceEngine, ServedModel
from edge_agent.journal import Journal
from edge_agent.runtime import Runtime, load_artifact
from edge_agent.selftest import SelfTestJob, SelfTestProcess, SelfTestResult
from edge_agent.trial import TrialMeter
from edge_agent.update import UpdateSettings
from edge_agent.update_events import (
    Activate,
    ActivationFailed,
    CollectGarbage,
    Effect,
    Event,
    Fetch,
    FetchCompleted,
    FetchFailed,
    Ignored,
    SelfTest,
    SelfTestFailed,
    SelfTestPassed,
    Started,
    StatusDelivered,
    StopFetch,
    StopSelfTest,
    StopServing,
    Verified,
    Verify,
    VerifyFailed,
)
from edge_agent.update_state import Slot, State, StatusNote
from edgeloop.artifact import BlockAssembler
from edgeloop.errors import RejectedError, TransientError
from edgeloop.v1 import artifact_pb2

logger = logging.getLogger(__name__)

RETRY_S = 5.0


class Wire(Protocol):
    """What the updater needs of the broker; never blocks, and drops what cannot be sent now."""

    def subscribe(self, topic: str) -> None: ...
    def unsubscribe(self, topic: str) -> None: ...
    def request(self, slot: Slot, request: fetch.Request) -> None: ...


class Updater:
    def __init__(
        self,
        *,
        state_dir: Path,
        blobs: BlobStore,
        engine: InferenceEngine,
        meter: TrialMeter,
        wire: Wire,
        # Called on the self-test's thread: must post to the inbox, which calls `on_self_test`.
        post_self_test: Callable[[SelfTestProcess, SelfTestResult], None],
        # Makes a status durable on its way to the cloud; TransientError when that cannot be done now.
        deliver: Callable[[StatusNote, float], None],
        # A deployment that the update rules would not follow.
        on_ignored: Callable[[Ignored], None],
        update_settings: UpdateSettings,
        fetch_settings: FetchSettings,
        self_test_timeout_s: float,
        num_threads: int,
        # Bytes, packed or unpacked; None for no limit of this workload's own.
        max_artifact_bytes: int | None = None,
        # What other workloads on this blob store need, asked before anything is collected.
        kept_elsewhere: Callable[[], tuple[Slot, ...]] = tuple,
        # Begins a self-test once its turn comes.
        begin_test: Callable[[SelfTestProcess], None] = SelfTestProcess.start,
        rng: random.Random,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = Journal(state_dir)
        self._blobs = blobs
        self._engine = engine
        self._meter = meter
        self._wire = wire
        self._post_self_test = post_self_test
        self._deliver = deliver
        self._on_ignored = on_ignored
        self._update_settings = update_settings
        self._fetch_settings = fetch_settings
        self._self_test_timeout_s = self_test_timeout_s
        self._num_threads = num_threads
        self._max_artifact_bytes = max_artifact_bytes
        self._kept_elsewhere = kept_elsewhere
        self._begin_test = begin_test
        self._rng = rng
        self._clock = clock
        self._monotonic = monotonic
        self._pending: deque[Event] = deque()
        # When to try again what the disk refused; None while it does not.
        self._retry_at_s: float | None = None
        self._deliver_at_s: float | None = None
        self._fetcher: Fetcher | None = None
        self._connected = False
        self._self_test: SelfTestProcess | None = None
        self.state = self._journal.load()

    # --- from the agent -----------------------------------------------------------------------------

    def start(self) -> None:
        """Serves what may serve, before anything else; statuses wait for the first tick."""
        self._deliver_at_s = self._monotonic()
        self.handle(Started())
        if self._engine.serving is None and self._pending:
            # The start itself could not be saved; a model that is known good needs no saving.
            for slot in filter(None, (self.state.committed, self.state.previous)):
                failed = self._activate(slot)
                self._pending.extend(failed)
                if not failed:
                    break

    def handle(self, event: Event) -> None:
        self._pending.append(event)
        self._work()

    def on_message(self, topic: str, payload: bytes) -> None:
        """A manifest or a block."""
        if self._fetcher is not None:
            self._pending.extend(self._fetch_on(self._fetcher.on_message(topic, payload, self._monotonic())))
            self._work()

    def on_broker(self, connected: bool) -> None:
        self._connected = connected
        if self._fetcher is not None:
            self._fetcher.on_connected(connected, self._monotonic())

    def on_self_test(self, process: SelfTestProcess, result: SelfTestResult) -> None:
        if process is not self._self_test:
            return
        self._self_test = None
        generation = self.state.generation
        if result.passed:
            logger.info("self-test passed generation=%d p50_ms=%.3f", generation, result.p50_ms)
            self.handle(SelfTestPassed(generation=generation))
        elif result.storage_failed:
            self.handle(VerifyFailed(generation=generation, code=result.code, message=result.message))
        else:
            self.handle(SelfTestFailed(generation=generation, code=result.code, message=result.message))

    def on_tick(self) -> None:
        now_s = self._monotonic()
        if self._retry_at_s is not None and now_s >= self._retry_at_s:
            self._retry_at_s = None
            self._work()
        if self._deliver_at_s is not None and now_s >= self._deliver_at_s:
            self._deliver_at_s = None
            self._flush_outbox()
        if self._fetcher is not None and self._fetcher.deadline_s is not None:
            self._pending.extend(self._fetch_on(self._fetcher.on_tick(now_s)))
        progress = self._meter.progress()
        if progress is not None and self._retry_at_s is None:
            self._pending.append(progress)
        if self._pending and self._retry_at_s is None:
            self._work()

    def concerns(self, topic: str) -> bool:
        """Whether a message under this topic is of what it fetches or has just fetched."""
        target = self.state.target
        return target is not None and (target.digest in topic or target.manifest_digest in topic)

    @property
    def deadline_s(self) -> float | None:
        """When `on_tick` has something to do, by the monotonic clock."""
        deadlines = [
            self._retry_at_s,
            self._deliver_at_s,
            self._fetcher.deadline_s if self._fetcher else None,
        ]
        if self.state.state is State.TRIAL:
            deadlines.append(self._monotonic() + 0.1)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    @property
    def progress(self) -> float:
        """Of the fetch, 0 to 1; 0 when none is under way."""
        return self._fetcher.progress if self._fetcher else 0.0

    def stop(self) -> None:
        """Ends what is under way without a verdict on it."""
        self._stop_self_test()
        if self._fetcher is not None:
            self._fetcher.stop()
            self._fetcher = None

    # --- the loop -----------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._pending:
            event = self._pending[0]
            new, effects = update.step(self.state, event, self._clock(), self._update_settings)
            if new != self.state:
                try:
                    self._journal.save(new)
                except OSError as error:
                    self._stall(f"state cannot be saved ({error.strerror})")
                    return
            self._pending.popleft()
            if new.state is not self.state.state or new.generation != self.state.generation:
                logger.info(
                    "deployment state=%s generation=%d digest=%s%s",
                    new.state.value,
                    new.generation,
                    new.target.digest[:12] if new.target else "",
                    f" code={new.code} reason={new.message}" if new.code else "",
                )
                if new.state is not State.TRIAL:
                    self._meter.end_trial()
            self.state = new
            for effect in effects:
                self._pending.extend(self._carry_out(effect))
            if not self._pending:
                self._flush_outbox()

    def _stall(self, why: str) -> None:
        if self._retry_at_s is None:
            logger.error("%s; nothing changes until it can, trying again every %g s", why, RETRY_S)
        self._retry_at_s = self._monotonic() + RETRY_S

    def _flush_outbox(self) -> None:
        """Statuses may wait, updates do not wait for them."""
        if self._deliver_at_s is not None:
            return
        for note in self.state.outbox:
            try:
                self._deliver(note, self.progress)
            except TransientError as error:
                # The spool says once what is wrong.
                logger.debug("a status waits to be kept for the cloud reason=%s", error)
                self._deliver_at_s = self._monotonic() + RETRY_S
                return
            self._pending.append(StatusDelivered(note=note))

    def _carry_out(self, effect: Effect) -> list[Event]:
        match effect:
            case Fetch(slot=slot):
                return self._begin_fetch(slot)
            case StopFetch():
                self._stop_fetch()
            case Verify(slot=slot):
                return self._verify(slot)
            case SelfTest(slot=slot):
                self._begin_self_test(slot)
            case StopSelfTest():
                self._stop_self_test()
            case Activate(slot=slot):
                return self._activate(slot)
            case StopServing():
                logger.error("nothing is left that may serve; waiting for a newer deployment")
                self._engine.withdraw()
            case CollectGarbage():
                self._collect()
            case Ignored():
                self._on_ignored(effect)
        return []

    # --- fetching -----------------------------------------------------------------------------------

    def _begin_fetch(self, slot: Slot) -> list[Event]:
        self._stop_fetch()
        self._fetcher = fetcher = Fetcher(slot, self._fetch_settings, self._rng)
        fetcher.on_connected(self._connected, self._monotonic())
        manifest = self._blobs.find_manifest(slot.manifest_digest)
        if manifest is None:
            return self._fetch_on(fetcher.begin_manifest(self._monotonic()))
        try:
            fetch.check_fits(slot, manifest)
        except RejectedError as error:
            return self._fetch_failed(error)
        return self._begin_blocks(fetcher, manifest)

    def _begin_blocks(self, fetcher: Fetcher, manifest: artifact_pb2.Manifest) -> list[Event]:
        if self._blobs.has_artifact(manifest):
            self._stop_fetch()
            return [FetchCompleted(generation=fetcher.slot.generation)]
        try:
            self._check_limit(manifest)
            self._blobs.check_room(manifest)
        except RejectedError as error:
            return self._fetch_failed(error)
        assembler = BlockAssembler(manifest)
        self._blobs.kept_blocks(manifest, assembler)
        if assembler.num_verified:
            logger.info(
                "fetch goes on digest=%s blocks=%d of=%d",
                manifest.digest[:12],
                assembler.num_verified,
                assembler.num_blocks,
            )
        return self._fetch_on(fetcher.begin_blocks(assembler, self._monotonic()))

    def _check_limit(self, manifest: artifact_pb2.Manifest) -> None:
        size_bytes = max(manifest.size_bytes, manifest.executable_size_bytes)
        if self._max_artifact_bytes is not None and size_bytes > self._max_artifact_bytes:
            raise RejectedError(
                f"artifact {manifest.digest[:12]} has {size_bytes} bytes, and this device gives workload "
                f"{manifest.workload} {self._max_artifact_bytes}: deploy a smaller one, or raise "
                "max_artifact_bytes in its [[workload]] table",
                code="artifact-over-limit",
            )

    def _fetch_on(self, effects: list[fetch.FetchEffect]) -> list[Event]:
        """Carries out what the fetcher wants; stops at the first that ends the fetch."""
        fetcher = self._fetcher
        assert fetcher is not None
        generation = fetcher.slot.generation
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
                        self._blobs.keep_block(fetcher.slot.digest, n, data)
                    case fetch.KeepManifest(raw=raw, manifest=manifest):
                        self._blobs.keep_manifest(fetcher.slot.manifest_digest, raw)
                        return self._begin_blocks(fetcher, manifest)
                    case fetch.Complete():
                        self._blobs.assemble(self._blobs.read_manifest(fetcher.slot.manifest_digest))
                        self._stop_fetch()
                        return [FetchCompleted(generation=generation)]
                    case fetch.Refuse(code=code, message=message):
                        self._fetcher = None
                        return [FetchFailed(generation=generation, code=code, message=message)]
            except RejectedError as error:
                return self._fetch_failed(error)
        return []

    def _fetch_failed(self, error: RejectedError) -> list[Event]:
        assert self._fetcher is not None
        generation = self._fetcher.slot.generation
        self._stop_fetch()
        return [FetchFailed(generation=generation, code=error.code, message=error.message)]

    def _stop_fetch(self) -> None:
        if self._fetcher is not None:
            for topic in self._fetcher.topics:
                self._wire.unsubscribe(topic)
            self._fetcher.stop()
            self._fetcher = None

    # --- trying and serving -------------------------------------------------------------------------

    def _verify(self, slot: Slot) -> list[Event]:
        try:
            manifest = self._blobs.read_manifest(slot.manifest_digest)
            fetch.check_fits(slot, manifest)
            self._check_limit(manifest)
            self._blobs.read_artifact(manifest)
        except RejectedError as error:
            return [VerifyFailed(generation=slot.generation, code=error.code, message=error.message)]
        return [Verified(generation=slot.generation)]

    def _begin_self_test(self, slot: Slot) -> None:
        self._stop_self_test()
        job = SelfTestJob(
            artifact_path=self._blobs.artifact_path(slot.digest),
            manifest_path=self._blobs.manifest_path(slot.manifest_digest),
            manifest_digest=slot.manifest_digest,
            num_threads=self._num_threads,
            timeout_s=self._self_test_timeout_s,
        )
        process = SelfTestProcess(job, lambda result: self._post_self_test(process, result))
        self._self_test = process
        self._begin_test(process)

    def _stop_self_test(self) -> None:
        if self._self_test is not None:
            self._self_test.stop()
            self._self_test = None

    def _activate(self, slot: Slot) -> list[Event]:
        serving = self._engine.serving
        try:
            if serving is not None and serving.digest == slot.digest:
                # The same bytes under another generation: nothing to load.
                model = self._served(serving.runtime, slot, serving.metric)
                if serving.generation != slot.generation:
                    self._engine.swap(model)
            else:
                manifest = self._blobs.read_manifest(slot.manifest_digest)
                fetch.check_fits(slot, manifest)
                data = self._blobs.read_artifact(manifest)
                runtime = load_artifact(data, manifest, num_threads=self._num_threads)
                model = self._served(runtime, slot, manifest.metric)
                self._engine.swap(model)
        except RejectedError as error:
            logger.error(
                "model cannot serve digest=%s code=%s reason=%s", slot.digest[:12], error.code, error
            )
            return [ActivationFailed(slot=slot, code=error.code, message=error.message)]
        if self.state.state is State.TRIAL and slot == self.state.target:
            self._meter.begin_trial(model.key)
        return []

    @staticmethod
    def _served(runtime: Runtime, slot: Slot, metric: str) -> ServedModel:
        return ServedModel(
            runtime=runtime,
            digest=slot.digest,
            generation=slot.generation,
            workload=slot.workload,
            metric=metric,
        )

    def _collect(self) -> None:
        kept = (*self.state.kept, *self._kept_elsewhere())
        try:
            num_removed = self._blobs.collect(
                keep_artifacts={slot.digest for slot in kept},
                keep_manifests={slot.manifest_digest for slot in kept},
            )
        except OSError as error:
            # Only room is lost; the next commit tries again.
            logger.warning("old artifacts could not be deleted reason=%s", error.strerror)
        else:
            if num_removed:
                logger.info("old artifacts deleted entries=%d", num_removed)
