"""What belongs to one workload of this device: its model, its journal, its counts and its trial.

Rule: runs on the agent's own thread alone, except for what the engine and the meter allow others.
"""

import random
from collections.abc import Callable
from pathlib import Path

from edge_agent.acquisition import Wire
from edge_agent.batching import BatchSettings
from edge_agent.blobs import BlobStore
from edge_agent.config import AgentConfig
from edge_agent.fetch import FetchSettings
from edge_agent.inbox import Post, SelfTestEnded
from edge_agent.inference import InferenceEngine, ServedModel
from edge_agent.release_gate import Gate
from edge_agent.runtime import ReferenceKernel
from edge_agent.selftest import SelfTestProcess
from edge_agent.status_file import WorkloadStatus
from edge_agent.trial import TrialMeter
from edge_agent.update_events import DeploymentSeen, Ignored, Stopping
from edge_agent.update_state import Slot, StatusNote, UpdateState
from edge_agent.update_steps import UpdateSettings
from edge_agent.updater import Updater
from edge_agent.workload_settings import WorkloadSettings


class ServedWorkload:
    """`start`, then messages and ticks through `updater`, then `stop` and `close`."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        # None: whichever is deployed.
        settings: WorkloadSettings | None,
        state_dir: Path,
        blobs: BlobStore,
        wire: Wire,
        post: Callable[[Post], None],
        # As the updater's.
        deliver: Callable[[StatusNote, float], None],
        on_ignored: Callable[[Ignored], None],
        kept_elsewhere: Callable[[], tuple[Slot, ...]],
        begin_test: Callable[[SelfTestProcess], None],
        # Asked now, and again at `renew_gate`.
        gate: Callable[[], Gate | None],
        window_s: float,
        rng: random.Random,
    ) -> None:
        self.name = settings.name if settings else ""
        self._gate = gate
        # What the cloud says of it; see WorkloadStatus.
        self.profile = self.profile_message = ""
        limits = settings or WorkloadSettings(name="")
        self.meter = TrialMeter(window_s=window_s)
        self.engine = InferenceEngine(
            meter=self.meter,
            emulated_slowdown=config.emulate_slowdown,
            reference=ReferenceKernel(),
            max_pending=limits.max_pending,
            batching=BatchSettings(
                max_batch_size=config.serve_max_batch_size,
                max_queue_delay_us=config.serve_max_queue_delay_us,
            ),
        )
        self.updater = Updater(
            state_dir=state_dir,
            blobs=blobs,
            engine=self.engine,
            meter=self.meter,
            wire=wire,
            post_self_test=lambda process, result: post(SelfTestEnded(process=process, result=result)),
            deliver=deliver,
            on_ignored=on_ignored,
            release_gate=gate(),
            update_settings=UpdateSettings(trial_requests=config.trial_requests, trial_s=config.trial_s),
            fetch_settings=FetchSettings(
                block_timeout_s=config.block_timeout_s, delta_silence_s=120 * config.block_timeout_s
            ),
            self_test_timeout_s=config.self_test_timeout_s,
            num_threads=limits.num_threads or config.num_threads,
            max_artifact_bytes=limits.max_artifact_bytes,
            kept_elsewhere=kept_elsewhere,
            begin_test=begin_test,
            rng=rng,
        )

    @property
    def state(self) -> UpdateState:
        return self.updater.state

    @property
    def serving(self) -> ServedModel | None:
        return self.engine.serving

    @property
    def runs(self) -> tuple[int, str]:
        """Newest generation accepted, and the digest that serves: what a registration says."""
        serving = self.serving
        return self.state.generation, serving.digest if serving else ""

    def start(self) -> None:
        """Serves what may serve."""
        self.updater.start()
        self.engine.start()

    def accepted(self, payload: bytes) -> bool:
        """Whether these very bytes are what it follows already, however long ago they expired."""
        target = self.state.target
        return target is not None and payload == target.signed

    def follow(self, slot: Slot) -> None:
        self.updater.handle(DeploymentSeen(slot=slot))

    def renew_gate(self) -> None:
        """What the release gate follows from has changed."""
        self.updater.use_gate(self._gate())

    def status(self) -> WorkloadStatus:
        state, serving = self.state, self.serving
        return WorkloadStatus(
            workload=self.name,
            profile=self.profile,
            profile_message=self.profile_message,
            state=state.state.value,
            generation=state.generation,
            code=state.code,
            message=state.message,
            progress=self.updater.progress,
            serving_digest=serving.digest if serving else "",
            serving_generation=serving.generation if serving else 0,
            num_quarantined=len(state.quarantine),
            num_requests=self.meter.num_served,
            num_errors=self.meter.num_failed,
        )

    def describe(self) -> str:
        """For the supervisor's line."""
        state, serving = self.state, self.serving
        what = f"serves {serving.digest[:12]}" if serving else "serves nothing yet"
        what = f"{self.name} {what}" if self.name else what
        return f"{what}, generation {state.generation} {state.state.value}"

    def stop(self) -> None:
        """Ends what is under way without a verdict on it, so that the next start knows of no crash."""
        try:
            self.updater.stop()
        finally:
            self.updater.handle(Stopping())

    def close(self) -> None:
        """Serves what was accepted, then nothing more."""
        self.engine.close()
