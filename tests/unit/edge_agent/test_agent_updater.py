"""The updater with a real disk and engine, and a broker and cloud that are only lists."""

from __future__ import annotations

import errno
import os
import random
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.append(str(Path(__file__).parents[2] / "integration"))

from agent_harness import Shipment, golden_inputs, make_model, ship

from edge_agent import fetch
from edge_agent.batching import BatchSettings
from edge_agent.blobs import BlobStore
from edge_agent.fetch import FetchSettings
from edge_agent.inference import InferenceEngine
from edge_agent.journal import Journal
from edge_agent.meter import WindowKey
from edge_agent.runtime import load_onnx
from edge_agent.selftest import SelfTestProcess, SelfTestResult
from edge_agent.trial import TrialMeter
from edge_agent.update_events import DeploymentSeen, Ignored
from edge_agent.update_state import Slot, State, StatusNote
from edge_agent.update_steps import UpdateSettings
from edge_agent.updater import RETRY_S, Updater
from edgeloop import artifact, topics
from edgeloop.errors import TransientError
from edgeloop.v1 import artifact_pb2

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


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(tmp_path, monkeypatch)


def test_one_model_after_the_other_and_only_what_is_kept_stays_on_the_disk(device: Device) -> None:
    third = ship(make_model(3))
    for generation, shipment in enumerate((FIRST, SECOND, third), start=1):
        device.install(shipment, generation)
        assert device.serving == shipment.digest
        assert device.subscribed == set()
    assert {path.name for path in (device.folder / "blobs" / "artifacts").iterdir()} == {
        SECOND.digest,
        third.digest,
    }
    assert [note.state for note in device.delivered if note.generation == 2][-1] is State.ACTIVE
    assert device.updater.state.outbox == ()
    device.restart()
    assert device.serving == third.digest


def test_a_packed_model_serves_what_its_graph_computes_and_after_a_restart_as_well(device: Device) -> None:
    graph = make_model(4)
    device.install(ship(graph, packed=True), 1)
    wanted = load_onnx(graph).run(golden_inputs())
    for _ in range(2):
        assert device.engine.serving is not None
        assert np.array_equal(device.engine.serving.runtime.run(golden_inputs()), wanted)
        device.restart()


def test_a_packed_model_that_is_not_what_its_manifest_says_never_serves(device: Device) -> None:
    device.install(FIRST, 1)
    good = ship(make_model(4), packed=True)
    manifest = artifact_pb2.Manifest.FromString(good.raw_manifest)
    manifest.executable_digest = "ab" * 32
    wrong = Shipment(data=good.data, manifest=manifest, raw_manifest=artifact.encode_manifest(manifest))
    device.updater.handle(DeploymentSeen(slot=slot(wrong, 2)))
    device.fetch(wrong)
    device.pass_test()  # a self-test that was fooled
    assert device.serving == FIRST.digest
    assert "executable-altered" in [note.code for note in device.delivered if note.generation == 2]


def test_the_same_artifact_under_a_new_generation_needs_no_broker(device: Device) -> None:
    device.install(FIRST, 1)
    runtime = device.engine.serving.runtime
    device.updater.handle(DeploymentSeen(slot=slot(FIRST, 2)))
    assert device.updater.state.state is State.ACTIVE
    assert device.engine.serving.generation == 2
    assert device.engine.serving.runtime is runtime
    assert device.requests == []


def test_while_the_state_cannot_be_saved_nothing_is_done_and_then_it_is(device: Device, monkeypatch) -> None:
    device.install(FIRST, 1)

    def full(journal: Journal, state: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", full)
        device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
        device.tick(RETRY_S)
        assert (device.updater.state.generation, device.subscribed) == (1, set())
        assert device.serving == FIRST.digest
        # A start in this situation serves too.
        device.restart()
        assert device.serving == FIRST.digest
        device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.tick(RETRY_S)
    assert device.updater.state.generation == 2
    assert device.subscribed == {topics.manifest(SECOND.manifest_digest)}


def test_a_start_on_trial_that_cannot_be_saved_serves_the_last_good_model(
    device: Device, monkeypatch
) -> None:
    device.install(FIRST, 1)
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.fetch(SECOND)
    device.pass_test()
    assert device.serving == SECOND.digest

    def full(journal: Journal, state: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Journal, "save", full)
    device.restart()
    assert device.serving == FIRST.digest


def test_a_damaged_model_and_a_state_that_cannot_be_saved_leave_the_one_before_it(
    device: Device, monkeypatch
) -> None:
    device.install(FIRST, 1)
    device.install(SECOND, 2)

    def full(journal: Journal, state: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = device.folder / "blobs" / "artifacts" / SECOND.digest
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", full)
        device.restart()
        assert device.serving == FIRST.digest
    device.tick(RETRY_S)
    assert (device.serving, device.updater.state.state) == (FIRST.digest, State.FETCHING)
    device.fetch(SECOND)
    device.pass_test()
    assert device.serving == SECOND.digest


def test_what_does_not_verify_and_cannot_be_deleted_is_not_served(device: Device, monkeypatch) -> None:
    device.install(FIRST, 1)
    device.install(SECOND, 2)
    path = device.folder / "blobs" / "artifacts" / SECOND.digest
    path.write_bytes(b"\0")

    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    device.restart()
    assert device.serving == FIRST.digest


def test_serving_does_not_wait_for_the_spool(device: Device, monkeypatch) -> None:
    device.spool_fails = True
    device.install(FIRST, 1)
    served: list[str] = []
    monkeypatch.setattr(device, "deliver", lambda note, progress: served.append(device.serving))
    device.restart()
    assert (device.serving, served) == (FIRST.digest, [])
    device.tick()
    assert served == [FIRST.digest]


def test_statuses_wait_for_a_spool_that_fails_and_survive_a_restart(device: Device) -> None:
    device.spool_fails = True
    device.install(FIRST, 1)
    assert device.delivered == []
    device.restart()
    device.spool_fails = False
    device.tick(RETRY_S)
    assert [(note.generation, note.state) for note in device.delivered] == [(1, State.ACTIVE)]


def test_a_trial_that_fails_returns_to_the_good_model_and_its_errors_count_for_no_other(
    device: Device,
) -> None:
    device.install(FIRST, 1)
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.fetch(SECOND)
    device.pass_test()
    old = WindowKey(digest=FIRST.digest, generation=1, workload="tiny")
    for _ in range(10):
        device.meter.record_error(old, 0.0)
    device.tick()
    assert device.updater.state.state is State.TRIAL
    for _ in range(3):
        device.meter.record_error(device.engine.serving.key, 0.0)
    device.tick()
    assert device.updater.state.state is State.ROLLED_BACK
    assert device.serving == FIRST.digest


def test_a_quiet_trial_commits_by_the_clock_that_does_not_jump(device: Device) -> None:
    device.updater.handle(DeploymentSeen(slot=slot(FIRST, 1)))
    device.fetch(FIRST)
    device.pass_test()
    device.tick(29.0)
    assert device.updater.state.state is State.TRIAL
    device.tick(1.0)
    assert device.updater.state.state is State.ACTIVE


def test_the_answer_of_a_test_that_was_given_up_is_not_taken(device: Device) -> None:
    device.install(FIRST, 1)
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.fetch(SECOND)
    late = device.tests[-1]
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 3)))
    assert device.updater.state.state is State.TESTING
    device.updater.on_self_test(late, SelfTestResult())
    assert device.updater.state.state is State.TESTING
    device.pass_test()
    assert device.updater.state.state is State.TRIAL


def test_a_file_that_vanishes_before_its_test_is_fetched_again(device: Device) -> None:
    device.updater.handle(DeploymentSeen(slot=slot(FIRST, 1)))
    device.fetch(FIRST)
    (device.folder / "blobs" / "artifacts" / FIRST.digest).unlink()
    device.updater.on_self_test(device.tests[-1], SelfTestResult(code="artifact-missing", message="m"))
    assert device.updater.state.state is State.FETCHING
    device.fetch(FIRST)
    device.pass_test()
    assert device.serving == FIRST.digest


@pytest.mark.parametrize("damage", ["deleted", "altered"])
def test_a_block_that_the_disk_loses_before_the_last_has_come_is_fetched_again_alone(
    device: Device, damage: str
) -> None:
    device.install(FIRST, 1)
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.updater.on_message(topics.manifest(SECOND.manifest_digest), SECOND.raw_manifest)
    topic = min(device.subscribed)
    lost = topics.block_of(topic)[1]
    device.updater.on_message(topic, SECOND.blocks[lost])
    path = device.folder / "blobs" / "partial" / SECOND.digest / str(lost)
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(bytes(len(SECOND.blocks[lost])))
    came = []
    while device.updater.state.state is State.FETCHING and device.subscribed:
        topic = min(device.subscribed)
        came.append(topics.block_of(topic)[1])
        device.updater.on_message(topic, SECOND.blocks[came[-1]])
    assert sorted(came) == sorted(range(len(SECOND.blocks)))
    device.pass_test()
    assert device.serving == SECOND.digest


def test_a_trial_that_fails_where_nothing_can_be_saved_gives_way_to_the_good_model(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.install(FIRST, 1)
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.fetch(SECOND)
    device.pass_test()
    assert device.serving == SECOND.digest

    def read_only(journal: Journal, state: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", read_only)
        for _ in range(3):
            device.meter.record_error(device.engine.serving.key, 0.0)
        device.tick()
        assert device.serving == FIRST.digest
        device.tick(RETRY_S)
        assert (device.serving, device.updater.state.state) == (FIRST.digest, State.TRIAL)
    device.tick(RETRY_S)
    assert (device.serving, device.updater.state.state) == (FIRST.digest, State.ROLLED_BACK)
    assert device.updater.state.quarantine == (SECOND.digest,)
    device.restart()
    assert device.serving == FIRST.digest


def used_bytes(device: Device) -> int:
    return sum(path.stat().st_size for path in (device.folder / "blobs").rglob("*") if path.is_file())


def test_many_updates_finished_and_given_up_stay_within_the_quota(device: Device) -> None:
    """Every other one is superseded with half of its blocks on the disk."""
    size = FIRST.manifest.size_bytes
    device.quota_bytes = 4 * size + 64 * 1024
    device.restart()
    for generation in range(1, 31):
        shipment = ship(make_model(100 + generation))
        if generation % 2:
            device.install(shipment, generation)
        else:
            device.updater.handle(DeploymentSeen(slot=slot(shipment, generation)))
            device.updater.on_message(topics.manifest(shipment.manifest_digest), shipment.raw_manifest)
            for n in range(len(shipment.blocks) // 2):
                device.updater.on_message(topics.block(shipment.digest, n), shipment.blocks[n])
        assert device.updater.state.code == ""
        assert used_bytes(device) <= device.quota_bytes
    device.install(FIRST, 31)
    kept = device.updater.state.kept
    assert {path.name for path in (device.folder / "blobs" / "artifacts").iterdir()} == {
        each.digest for each in kept
    }
    assert list((device.folder / "blobs" / "partial").iterdir()) == []


def test_what_was_given_up_goes_oldest_first_and_only_where_there_is_no_room(device: Device) -> None:
    size = FIRST.manifest.size_bytes
    device.quota_bytes = 3 * size + size // 2
    device.restart()
    device.install(FIRST, 1)
    partial = device.folder / "blobs" / "partial"
    for age, name in ((50, "a"), (30, "b")):
        folder = partial / (name * 64)
        folder.mkdir()
        (folder / "0").write_bytes(bytes(size // 3))
        os.utime(folder, (1000 - age, 1000 - age))
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.updater.on_message(topics.manifest(SECOND.manifest_digest), SECOND.raw_manifest)
    assert {path.name[0] for path in partial.iterdir() if path.name != SECOND.digest} == {"b"}
    device.fetch(SECOND)
    device.pass_test()
    device.serve()
    assert device.serving == SECOND.digest


def test_a_quota_without_room_for_a_second_model_is_said_and_the_first_serves(device: Device) -> None:
    size = FIRST.manifest.size_bytes
    device.quota_bytes = 2 * size + size // 2
    device.restart()
    device.install(FIRST, 1)
    device.updater.handle(DeploymentSeen(slot=slot(SECOND, 2)))
    device.updater.on_message(topics.manifest(SECOND.manifest_digest), SECOND.raw_manifest)
    state = device.updater.state
    assert (state.state, state.code) == (State.REJECTED, "storage-quota")
    assert "blob_quota_bytes" in state.message
    assert device.serving == FIRST.digest
    assert (device.folder / "blobs" / "artifacts" / FIRST.digest).exists()


def test_a_model_is_batched_once_its_golden_inputs_showed_that_it_can_be(device: Device) -> None:
    device.batching = BatchSettings(max_batch_size=8)
    device.restart()
    device.install(FIRST, 1)
    assert device.engine.serving is not None
    assert device.engine.serving.max_batch_size == 8
    # The same bytes under another generation, and the same device without the setting.
    device.install(FIRST, 2)
    assert device.engine.serving.max_batch_size == 8
    device.batching = BatchSettings()
    device.restart()
    assert device.engine.serving is not None
    assert device.engine.serving.max_batch_size == 1


def test_a_model_of_one_sample_at_a_time_serves_without_batches_and_says_why(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    graph = onnx.load_from_string(FIRST.data)
    for end in (graph.graph.input[0], graph.graph.output[0]):
        end.type.tensor_type.shape.dim[0].dim_value = 1
    fixed = ship(graph.SerializeToString())
    device.batching = BatchSettings(max_batch_size=8)
    device.restart()
    device.install(fixed, 1)
    assert device.engine.serving is not None
    assert device.engine.serving.max_batch_size == 1
    assert "not batched" in caplog.text
    assert "free batch dimension" in caplog.text
