"""Carries out what the update rules decide: the only code that touches journal, blobs, broker and engine.

Rules:
- Runs on the agent's own thread alone; what other threads find out comes back through the inbox.
- A new state is saved before any effect of it. While it cannot be saved (full disk), nothing is done about
  it: the event waits and is tried again, and what serves goes on serving.
- A failing trial gives way to the last known good without a save too: a start then would serve the same.
- What fails in a way that nobody foresaw ends the step that it was, as any failure of it does: no event is
  tried twice for it, and no state waits for an answer that never comes.
- Nothing is loaded for serving but bytes that were hashed on this read, under a manifest that was.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from edge_agent import update
from edge_agent.acquisition import Acquisition, Wire
from edge_agent.blobs import BlobStore
from edge_agent.delta_source import DeltaSource, names_of
from edge_agent.fetch import FetchSettings
from edge_agent.inference import InferenceEngine
from edge_agent.journal import Journal
from edge_agent.model_loader import ModelLoader, served_as
from edge_agent.release_gate import Gate
from edge_agent.selftest import SelfTestProcess, SelfTestResult
from edge_agent.trial import TrialMeter
from edge_agent.update_events import (
    Activate,
    ActivateLater,
    ActivationFailed,
    CollectGarbage,
    Effect,
    Event,
    Fetch,
    Ignored,
    SelfTest,
    SelfTestFailed,
    SelfTestPassed,
    Started,
    StatusDelivered,
    Steady,
    StopFetch,
    StopSelfTest,
    StopServing,
    Verified,
    Verify,
    VerifyFailed,
    unforeseen,
)
from edge_agent.update_state import Slot, State, StatusNote
from edge_agent.update_steps import UpdateSettings
from edgeloop import topics
from edgeloop.errors import RejectedError, TransientError

logger = logging.getLogger(__name__)

RETRY_S = 5.0
# Time for the cloud to be heard before a model is loaded that may end this process.
LATER_S = 60.0


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
        # None: this device checks no TUF metadata.
        release_gate: Gate | None = None,
        update_settings: UpdateSettings,
        fetch_settings: FetchSettings,
        self_test_timeout_s: float,
        num_threads: int,
        # Bytes, packed or unpacked; None for no limit of this workload's own.
        max_artifact_bytes: int | None = None,
        # What other workloads on this blob store need, asked before anything is collected.
        kept_elsewhere: Callable[[], tuple[Slot, ...]] = tuple,
        # Begins a self-test once its turn comes.
        begin_test: Callable[[SelfTestProcess], None] = lambda process: process.start(),
        rng: random.Random,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = Journal(state_dir)
        self._blobs = blobs
        self._engine = engine
        self._meter = meter
        self._post_self_test = post_self_test
        self._deliver = deliver
        self._on_ignored = on_ignored
        self._update_settings = update_settings
        self._kept_elsewhere = kept_elsewhere
        self._acquisition = Acquisition(
            blobs=blobs,
            wire=wire,
            release_gate=release_gate,
            settings=fetch_settings,
            max_artifact_bytes=max_artifact_bytes,
            kept=self._kept,
            rng=rng,
            monotonic=monotonic,
        )
        self._loader = ModelLoader(
            blobs,
            check_limit=self._acquisition.check_limit,
            num_threads=num_threads,
            self_test_timeout_s=self_test_timeout_s,
            max_batch_size=engine.batching.max_batch_size,
        )
        self._begin_test = begin_test
        self._clock = clock
        self._monotonic = monotonic
        self._pending: deque[Event] = deque()
        # When to try again what the disk refused; None while it does not.
        self._retry_at_s: float | None = None
        self._deliver_at_s: float | None = None
        self._started_at_s = monotonic()
        # A slot that is to serve from then on, unless another does.
        self._later: tuple[Slot, float] | None = None
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
        """A manifest, a block or TUF metadata."""
        self._pending.extend(self._acquisition.on_message(topic, payload))
        self._work()

    def on_broker(self, connected: bool) -> None:
        self._acquisition.on_broker(connected)

    def use_gate(self, gate: Gate | None) -> None:
        """As it is configured now. What was being fetched begins again, with what is here already."""
        self._acquisition.use_gate(gate)
        if self.state.state is State.FETCHING and self.state.target is not None:
            self._pending.extend(self._acquisition.begin(self.state.target))
            self._work()

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
        self._pending.extend(self._acquisition.on_tick())
        if self._later is not None and now_s >= self._later[1]:
            slot, self._later = self._later[0], None
            if self._engine.serving is None and slot == self.state.committed:
                self._started_at_s = now_s
                self._pending.extend(self._activate(slot))
        if (
            self.state.num_unsteady
            and self._retry_at_s is None
            and self._engine.serving is not None
            and now_s >= self._started_at_s + self._update_settings.steady_s
        ):
            self._pending.append(Steady())
        progress = self._meter.progress()
        if progress is not None and self._retry_at_s is None:
            self._pending.append(progress)
        if self._pending and self._retry_at_s is None:
            self._work()

    def concerns(self, topic: str) -> bool:
        """Whether a message under this topic is of what it fetches or has just fetched, or for all."""
        target = self.state.target
        return topic.startswith(topics.TUF) or (
            target is not None and (target.digest in topic or target.manifest_digest in topic)
        )

    @property
    def deadline_s(self) -> float | None:
        """When `on_tick` has something to do, by the monotonic clock."""
        deadlines = [
            self._retry_at_s,
            self._deliver_at_s,
            self._acquisition.deadline_s,
        ]
        if self.state.state is State.TRIAL:
            deadlines.append(self._monotonic() + 0.1)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    @property
    def deltas(self) -> DeltaSource:
        """For its counts."""
        return self._acquisition.deltas

    @property
    def progress(self) -> float:
        """Of the fetch, 0 to 1; 0 when none is under way."""
        return self._acquisition.progress

    def stop(self) -> None:
        """Ends what is under way without a verdict on it."""
        self._stop_self_test()
        self._acquisition.leave()

    # --- the loop -----------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._pending:
            event = self._pending.popleft()
            new, effects = update.step(self.state, event, self._clock(), self._update_settings)
            if new != self.state:
                try:
                    self._journal.save(new)
                except OSError as error:
                    self._pending.appendleft(event)
                    self._stall(f"state cannot be saved ({error.strerror})")
                    self._return_to_good(effects)
                    return
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
                try:
                    self._pending.extend(self._carry_out(effect))
                except Exception as error:
                    logger.exception("an update failed in an unforeseen way")
                    self._pending.extend(unforeseen(effect, error))
            if not self._pending:
                self._flush_outbox()

    def _return_to_good(self, effects: tuple[Effect, ...]) -> None:
        """A model on trial that fails must not go on failing for want of a disk."""
        good = self.state.committed
        if self.state.state is State.TRIAL and good is not None and Activate(slot=good) in effects:
            self._activate(good)

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
                return self._acquisition.begin(slot)
            case StopFetch():
                self._acquisition.stop()
            case Verify(slot=slot):
                return self._verify(slot)
            case SelfTest(slot=slot):
                self._begin_self_test(slot)
            case StopSelfTest():
                self._stop_self_test()
            case Activate(slot=slot):
                return self._activate(slot)
            case ActivateLater(slot=slot):
                logger.error(
                    "digest=%s is loaded in %g s only: it may be what ended the agent; deploy another one",
                    slot.digest[:12],
                    LATER_S,
                )
                self._later = (slot, self._monotonic() + LATER_S)
            case StopServing():
                logger.error("nothing is left that may serve; waiting for a newer deployment")
                self._engine.withdraw()
            case CollectGarbage():
                self._collect()
            case Ignored():
                self._on_ignored(effect)
        return []

    # --- trying and serving -------------------------------------------------------------------------

    def _verify(self, slot: Slot) -> list[Event]:
        try:
            self._loader.verify(slot)
        except RejectedError as error:
            return [VerifyFailed(generation=slot.generation, code=error.code, message=error.message)]
        return [Verified(generation=slot.generation)]

    def _begin_self_test(self, slot: Slot) -> None:
        self._stop_self_test()
        process = SelfTestProcess(
            self._loader.self_test(slot), lambda result: self._post_self_test(process, result)
        )
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
                model = served_as(slot, serving)
                if serving.generation != slot.generation:
                    self._engine.swap(model)
            else:
                model = self._loader.load(slot)
                self._engine.swap(model)
        except RejectedError as error:
            logger.error(
                "model cannot serve digest=%s code=%s reason=%s", slot.digest[:12], error.code, error
            )
            return [ActivationFailed(slot=slot, code=error.code, message=error.message)]
        if self.state.state is State.TRIAL and slot == self.state.target:
            self._meter.begin_trial(model.key)
        return []

    def _kept(self) -> tuple[Slot, ...]:
        return (*self.state.kept, *self._kept_elsewhere())

    def _collect(self) -> None:
        kept = self._kept()
        try:
            num_removed = self._blobs.collect(
                keep_artifacts=names_of(kept),
                keep_manifests={slot.manifest_digest for slot in kept},
            )
        except OSError as error:
            # Only room is lost; the next commit tries again.
            logger.warning("old artifacts could not be deleted reason=%s", error.strerror)
        else:
            if num_removed:
                logger.info("old artifacts deleted entries=%d", num_removed)
