"""A device around the updater: a real disk and engine, and a broker and cloud that are only lists."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "integration"))

from agent_harness import Shipment, make_model, ship

from edge_agent import fetch
from edge_agent.batching import BatchSettings
from edge_agent.blobs import BlobStore
from edge_agent.fetch import FetchSettings
from edge_agent.inference import InferenceEngine
from edge_agent.selftest import SelfTestProcess, SelfTestResult
from edge_agent.trial import TrialMeter
from edge_agent.update_events import DeploymentSeen, Ignored
from edge_agent.update_state import Slot, State, StatusNote
from edge_agent.update_steps import UpdateSettings
from edge_agent.updater import Updater
from edgeloop import topics
from edgeloop.errors import TransientError

FIRST, SECOND = ship(make_model(1)), ship(make_model(2))


def slot(shipment: Shipment, generation: int) -> Slot:
    return Slot(
        generation=generation,
        digest=shipment.digest,
        manifest_digest=shipment.manifest_digest,
        workload="tiny",
        profile="small",
        signed=b"signed",
    )


class Device:
    """One state folder and all that stands around the updater; `restart` keeps only the folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.now_s = 0.0
        self.subscribed: set[str] = set()
        self.requests: list[fetch.Request] = []
        self.delivered: list[StatusNote] = []
        self.ignored: list[Ignored] = []
        self.spool_fails = False
        self.quota_bytes: int | None = None
        self.tests: list[SelfTestProcess] = []
        self.batching = BatchSettings()
        monkeypatch.setattr(SelfTestProcess, "start", lambda process: self.tests.append(process))
        self.restart()

    def restart(self) -> None:
        self.subscribed.clear()
        self.meter = TrialMeter(window_s=30.0, monotonic=lambda: self.now_s)
        self.engine = InferenceEngine(meter=self.meter, batching=self.batching)
        self.updater = Updater(
            state_dir=self.folder,
            blobs=BlobStore(self.folder / "blobs", reserve_bytes=0, quota_bytes=self.quota_bytes),
            engine=self.engine,
            meter=self.meter,
            wire=self,
            post_self_test=lambda process, result: None,
            deliver=self.deliver,
            on_ignored=self.ignored.append,
            update_settings=UpdateSettings(trial_requests=3, trial_s=30.0),
            fetch_settings=FetchSettings(),
            self_test_timeout_s=5.0,
            num_threads=1,
            rng=random.Random(0),
            monotonic=lambda: self.now_s,
        )
        self.updater.start()

    @property
    def fed_at_s(self) -> float | None:
        return None

    def subscribe(self, topic: str) -> None:
        self.subscribed.add(topic)

    def unsubscribe(self, topic: str) -> None:
        self.subscribed.discard(topic)

    def request(self, slot: Slot, request: fetch.Request) -> None:
        self.requests.append(request)

    def deliver(self, note: StatusNote, progress: float) -> None:
        if self.spool_fails:
            raise TransientError("full", code="spool-write")
        self.delivered.append(note)

    def tick(self, seconds: float = 0.0) -> None:
        self.now_s += seconds
        self.updater.on_tick()

    def fetch(self, shipment: Shipment) -> None:
        where = topics.manifest(shipment.manifest_digest)
        if where in self.subscribed:
            self.updater.on_message(where, shipment.raw_manifest)
        while self.updater.state.state is State.FETCHING and self.subscribed:
            topic = min(self.subscribed)
            self.updater.on_message(topic, shipment.blocks[topics.block_of(topic)[1]])

    def pass_test(self) -> None:
        self.updater.on_self_test(self.tests[-1], SelfTestResult(p50_ms=1.0))

    def serve(self, num: int = 3) -> None:
        serving = self.engine.serving
        assert serving is not None
        for _ in range(num):
            self.meter.record(serving.key, 1.0, 0.0)
        self.tick()

    def install(self, shipment: Shipment, generation: int) -> None:
        self.updater.handle(DeploymentSeen(slot=slot(shipment, generation)))
        self.fetch(shipment)
        self.pass_test()
        self.serve()
        assert self.updater.state.state is State.ACTIVE

    @property
    def serving(self) -> str:
        return self.engine.serving.digest if self.engine.serving else ""
