"""The updater with a real disk and engine, and a broker and cloud that are only lists."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.append(str(Path(__file__).parents[2] / "integration"))

from agent_harness import Shipment, golden_inputs, make_model, ship
from updater_device import FIRST, SECOND, Device, slot

from edge_agent.batching import BatchSettings
from edge_agent.meter import WindowKey
from edge_agent.runtime import load_onnx
from edge_agent.selftest import SelfTestResult
from edge_agent.update_events import DeploymentSeen
from edge_agent.update_state import State
from edge_agent.updater import RETRY_S
from edgeloop import artifact
from edgeloop.v1 import artifact_pb2


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
