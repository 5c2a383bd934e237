"""One device of the simulated fleet: the agent's own update and fetch rules over a disk that is a value.

The world that it lives in gives it time, a network and a chance to crash; see `simulation_fleet`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edge_agent import fetch, update
from edge_agent import update_events as ev
from edge_agent.fetch import Fetcher, FetchSettings
from edge_agent.update_state import (
    UNFINISHED_STATES,
    Slot,
    State,
    StatusNote,
    UpdateState,
)
from edge_agent.update_steps import UpdateSettings
from edgeloop import artifact, topics
from edgeloop.artifact import BlockAssembler
from edgeloop.v1 import artifact_pb2

if TYPE_CHECKING:
    from simulation_fleet import FleetWorld

BLOCK = artifact.MIN_BLOCK_SIZE_BYTES
NUM_BLOCKS = 4
UPDATE = UpdateSettings(trial_requests=5, trial_s=30.0)
FETCH = FetchSettings(block_timeout_s=5.0)


@dataclass(frozen=True, kw_only=True)
class Model:
    """``ill``: "" for a good one, "test" fails its self-test, "trial" its requests, "crash" kills it."""

    blocks: tuple[bytes, ...]
    manifest: artifact_pb2.Manifest
    raw: bytes
    manifest_digest: str
    ill: str

    @property
    def digest(self) -> str:
        return self.manifest.digest


def make_model(seed: int, ill: str = "") -> Model:
    data = np.random.default_rng(seed).bytes(BLOCK * NUM_BLOCKS - 5)
    tensor = artifact_pb2.TensorSpec(name="x", datatype="FP32", shape=[0, 2])
    manifest = artifact.build_manifest(
        data,
        workload="tiny",
        profile="small",
        precision=artifact_pb2.PRECISION_FP32,
        inputs=[tensor],
        outputs=[tensor],
        golden=artifact.golden_set(np.zeros((1, 2)), np.zeros((1, 2)), absolute_tolerance=0.1),
        accuracy=0.5,
        block_size_bytes=BLOCK,
    )
    raw = artifact.encode_manifest(manifest)
    return Model(
        blocks=tuple(artifact.split_blocks(data, BLOCK)),
        manifest=manifest,
        raw=raw,
        manifest_digest=artifact.sha256_hex(raw),
        ill=ill,
    )


MODELS = (make_model(1), make_model(2), make_model(3, "test"), make_model(4, "trial"), make_model(5, "crash"))


class CrashError(Exception):
    """The process was killed here."""


@dataclass
class Disk:
    """What a kill leaves: the saved state, whole artifacts, manifests and verified blocks."""

    state: UpdateState = field(default_factory=UpdateState)
    artifacts: set[str] = field(default_factory=set)
    manifests: set[str] = field(default_factory=set)
    blocks: dict[str, set[int]] = field(default_factory=dict)


class Agent:
    """The updater's loop over the real rules; see ``edge_agent.updater`` for the one that ships."""

    def __init__(self, world: FleetWorld, device_id: str) -> None:
        self.world, self.device_id = world, device_id
        self.disk = Disk()
        self.serving: tuple[int, str] = (0, "")
        self.verified: set[str] = set()
        self.fetcher: Fetcher | None = None
        self.subscribed: set[str] = set()
        self.life = 0
        self.up = False
        self.trial = 0

    def start(self) -> None:
        self.life += 1
        self.up = True
        self.serving, self.fetcher = (0, ""), None
        self.subscribed = {topics.deployment(self.device_id)}
        self.handle(ev.Started())
        if self.up:
            self.world.deliver_retained(self, topics.deployment(self.device_id))
            self._tick(self.life)

    def crash(self) -> None:
        self.up = False
        self.subscribed.clear()
        self.world.at(self.world.now_s + self.world.rng.uniform(1, 20), self.start)

    def later(self, delay_s: float, run: Callable[[], None]) -> None:
        """A timer or thread of this process: it dies with it."""
        life = self.life
        self.world.at(
            self.world.now_s + delay_s, lambda: run() if self.up and self.life == life else None, self
        )

    def handle(self, first: ev.Event) -> None:
        pending = [first]
        try:
            while pending:
                event = pending.pop(0)
                new, effects = update.step(self.disk.state, event, self.world.now_s, UPDATE)
                if new != self.disk.state:
                    self.world.may_crash_agent()
                    self.disk.state = new
                    self.world.may_crash_agent()
                for effect in effects:
                    pending += self._carry_out(effect)
                if not pending:
                    pending += [ev.StatusDelivered(note=note) for note in self._reported()]
        except CrashError:
            self.crash()

    def _reported(self) -> list[StatusNote]:
        """The spool is on the disk and sends until it is heard."""
        for note in self.disk.state.outbox:
            self.world.spool(self.device_id, note)
        return list(self.disk.state.outbox)

    def _carry_out(self, effect: ev.Effect) -> list[ev.Event]:
        match effect:
            case ev.Fetch(slot=slot):
                return self._fetch(slot)
            case ev.StopFetch():
                self._end_fetch()
            case ev.Verify(slot=slot):
                if slot.digest not in self.disk.artifacts:
                    return [ev.VerifyFailed(generation=slot.generation, code="artifact-missing", message="")]
                self.verified.add(slot.digest)
                return [ev.Verified(generation=slot.generation)]
            case ev.SelfTest(slot=slot):
                ill = self.world.models[slot.digest].ill == "test"
                result: ev.Event = (
                    ev.SelfTestFailed(generation=slot.generation, code="self-test-output", message="")
                    if ill
                    else ev.SelfTestPassed(generation=slot.generation)
                )
                self.later(2.0, lambda: self.handle(result))
            case ev.Activate(slot=slot):
                if slot.digest not in self.disk.artifacts:
                    return [ev.ActivationFailed(slot=slot, code="artifact-missing", message="")]
                self.verified.add(slot.digest)
                self.serving = (slot.generation, slot.digest)
                if self.world.models[slot.digest].ill == "crash":
                    self.later(1.0, self.crash)
            case ev.StopServing():
                self.serving = (0, "")
            case ev.CollectGarbage():
                kept = self.disk.state.kept
                self.disk.artifacts &= {slot.digest for slot in kept}
                self.disk.manifests &= {slot.manifest_digest for slot in kept}
                self.disk.blocks = {
                    digest: blocks
                    for digest, blocks in self.disk.blocks.items()
                    if digest in {slot.digest for slot in kept}
                }
        return []

    def _tick(self, life: int) -> None:
        if not self.up or life != self.life:
            return
        is_busy = self.disk.state.state in UNFINISHED_STATES
        self.later(5.0 if is_busy else 20.0, lambda: self._tick(life))
        if self.fetcher is not None and self.fetcher.deadline_s is not None:
            self._do(self.fetcher.on_tick(self.world.now_s))
        state = self.disk.state
        if state.state is State.TRIAL and self.up and state.target is not None:
            ill = self.world.models[state.target.digest].ill
            self.handle(
                ev.TrialProgress(
                    generation=state.generation,
                    num_good=0 if ill else 5,
                    num_errors=3 if ill == "trial" else 0,
                    clean_s=0.0,
                )
            )

    # Fetching.

    def _fetch(self, slot: Slot) -> list[ev.Event]:
        self._end_fetch()
        if slot.digest in self.disk.artifacts:
            return [ev.FetchCompleted(generation=slot.generation)]
        self.fetcher = Fetcher(slot, FETCH, self.world.rng)
        if slot.manifest_digest in self.disk.manifests:
            effects = self._begin_blocks(slot)
        else:
            effects = self.fetcher.begin_manifest(self.world.now_s)
        return self._effects(effects)

    def _begin_blocks(self, slot: Slot) -> list[fetch.FetchEffect]:
        assert self.fetcher is not None
        model = self.world.models[slot.digest]
        assembler = BlockAssembler(model.manifest)
        for n in self.disk.blocks.get(slot.digest, ()):
            assembler.accept(n, model.blocks[n])
        return self.fetcher.begin_blocks(assembler, self.world.now_s)

    def on_message(self, topic: str, payload: bytes) -> None:
        if not self.up or topic not in self.subscribed:
            return
        if topic == topics.deployment(self.device_id):
            self.handle(ev.DeploymentSeen(slot=self.world.signed[payload]))
        elif self.fetcher is not None:
            self._do(self.fetcher.on_message(topic, payload, self.world.now_s))

    def _do(self, effects: list[fetch.FetchEffect]) -> None:
        for event in self._effects(effects):
            self.handle(event)

    def _effects(self, effects: list[fetch.FetchEffect]) -> list[ev.Event]:
        for effect in effects:
            fetcher = self.fetcher
            assert fetcher is not None
            slot = fetcher.slot
            match effect:
                case fetch.Subscribe(topic=topic):
                    self.subscribed.add(topic)
                    self.world.deliver_retained(self, topic)
                case fetch.Unsubscribe(topic=topic):
                    self.subscribed.discard(topic)
                case fetch.Request():
                    self.world.request(slot, effect)
                case fetch.KeepManifest():
                    self.disk.manifests.add(slot.manifest_digest)
                    return self._effects(self._begin_blocks(slot))
                case fetch.KeepBlock(n=n, data=data):
                    assert data == self.world.models[slot.digest].blocks[n], "altered bytes were kept"
                    self.disk.blocks.setdefault(slot.digest, set()).add(n)
                case fetch.Complete():
                    assert len(self.disk.blocks[slot.digest]) == NUM_BLOCKS
                    self.disk.artifacts.add(slot.digest)
                    del self.disk.blocks[slot.digest]
                    self._end_fetch()
                    return [ev.FetchCompleted(generation=slot.generation)]
                case fetch.Refuse(code=code, message=message):
                    self.fetcher = None
                    return [ev.FetchFailed(generation=slot.generation, code=code, message=message)]
        return []

    def _end_fetch(self) -> None:
        if self.fetcher is not None:
            self.subscribed -= set(self.fetcher.topics)
            self.fetcher = None
