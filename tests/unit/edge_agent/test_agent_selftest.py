"""The self-test with real child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.append(str(Path(__file__).parents[2] / "integration"))

from agent_harness import NUM_INPUTS, NUM_OUTPUTS, Shipment, make_model, ship

from edge_agent.selftest import SelfTestJob, SelfTestProcess, SelfTestResult, read_result, run_self_test
from edgeloop import artifact
from edgeloop.v1 import artifact_pb2


def job(
    folder: Path, shipment: Shipment, *, data: bytes | None = None, timeout_s: float = 60.0
) -> SelfTestJob:
    (folder / "artifact").write_bytes(shipment.data if data is None else data)
    (folder / "manifest").write_bytes(shipment.raw_manifest)
    return SelfTestJob(
        artifact_path=folder / "artifact",
        manifest_path=folder / "manifest",
        manifest_digest=shipment.manifest_digest,
        timeout_s=timeout_s,
    )


def hold(found: SelfTestJob) -> None:
    """The child of this job waits for its model without end: nobody writes into that pipe."""
    found.artifact_path.unlink()
    os.mkfifo(found.artifact_path)


def relabelled(data: bytes) -> Shipment:
    """``data`` under the manifest of a good model, as a cloud with bad intentions would sign it."""
    good = ship(make_model(1)).manifest
    manifest = artifact.build_manifest(
        data,
        workload="tiny",
        profile="small",
        precision=good.precision,
        inputs=good.inputs,
        outputs=good.outputs,
        golden=good.golden,
        accuracy=0.5,
    )
    return Shipment(data=data, manifest=manifest, raw_manifest=artifact.encode_manifest(manifest))


def test_a_good_model_passes_and_says_how_fast_it_was(tmp_path: Path) -> None:
    result = run_self_test(job(tmp_path, ship(make_model(1))))
    assert result.passed, result
    assert 0 < result.p50_ms < float("inf")
    assert result.max_error < 1e-3


def test_a_packed_model_is_unpacked_and_tried_in_the_child(tmp_path: Path) -> None:
    result = run_self_test(job(tmp_path, ship(make_model(1), packed=True)))
    assert result.passed, result
    assert result.max_error < 1e-3


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("executable_digest", "ab" * 32, "executable-altered"),
        ("executable_size_bytes", artifact.MAX_EXECUTABLE_BYTES, "packed-size"),
        ("format", "onnx", "model-load"),
    ],
)
def test_a_packed_model_that_is_not_what_its_manifest_says_fails_to_load(
    tmp_path: Path, field: str, value: object, code: str
) -> None:
    good = ship(make_model(1), packed=True)
    manifest = artifact_pb2.Manifest.FromString(good.raw_manifest)
    setattr(manifest, field, value)
    if field == "format":
        manifest.ClearField("executable_digest")
        manifest.ClearField("executable_size_bytes")
    wrong = Shipment(data=good.data, manifest=manifest, raw_manifest=artifact.encode_manifest(manifest))
    result = run_self_test(job(tmp_path, wrong))
    assert result.code == "self-test-load"
    assert code in result.message


def test_outputs_that_differ_from_the_golden_ones_fail(tmp_path: Path) -> None:
    result = run_self_test(job(tmp_path, ship(make_model(1), golden_offset=0.01)))
    assert result.code == "self-test-output"
    assert "0.01" in result.message


def test_outputs_that_are_no_numbers_fail(tmp_path: Path) -> None:
    result = run_self_test(job(tmp_path, ship(make_model(1, divide_by_zero=True))))
    assert result.code == "self-test-output"
    assert "no numbers" in result.message


def test_bytes_that_no_runtime_loads_fail_as_such(tmp_path: Path) -> None:
    shipment = relabelled(b"\x08\x08" + b"not a model" * 100)
    assert run_self_test(job(tmp_path, shipment)).code == "self-test-load"


@pytest.mark.parametrize("damage", ["artifact", "manifest", "no artifact"])
def test_damage_on_the_disk_is_not_blamed_on_the_model(tmp_path: Path, damage: str) -> None:
    found = job(tmp_path, ship(make_model(1)))
    if damage == "no artifact":
        found.artifact_path.unlink()
    else:
        path = tmp_path / damage
        path.write_bytes(path.read_bytes()[:-1])
    assert run_self_test(found).storage_failed


def test_a_child_that_takes_too_long_is_killed_and_reported(tmp_path: Path) -> None:
    held = job(tmp_path, ship(make_model(1)), timeout_s=0.5)
    hold(held)
    assert run_self_test(held).code == "self-test-timeout"


def greedy_model() -> bytes:
    """A file of a few hundred bytes that asks for a tensor of 16 GiB when it runs, whatever its input."""
    initializers = [
        numpy_helper.from_array(np.array([2**32], np.int64), "size"),
        numpy_helper.from_array(np.array([0, 1], np.int64), "axes"),
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
        helper.make_node("Expand", ["sum", "size"], ["huge"]),
        helper.make_node("Sin", ["huge"], ["waves"]),
        helper.make_node("ReduceMax", ["waves"], ["most"], keepdims=0),
        helper.make_node("Slice", ["x", "zero", "four", "one"], ["head"]),
        helper.make_node("Add", ["head", "most"], ["y"]),
    ]
    for name, value in (("zero", 0), ("four", NUM_OUTPUTS), ("one", 1)):
        initializers.append(numpy_helper.from_array(np.array([value], np.int64), name))
    graph = helper.make_graph(
        nodes,
        "greedy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", NUM_INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", NUM_OUTPUTS])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_a_model_that_wants_too_much_memory_fails_in_the_child_alone(tmp_path: Path) -> None:
    result = run_self_test(job(tmp_path, relabelled(greedy_model())))
    assert not result.passed
    assert "memory" in result.message, result


def test_the_child_is_what_the_kernel_ends_first_for_want_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: list[int] = []
    communicate = subprocess.Popen.communicate

    def look(process: subprocess.Popen[bytes], *given: Any, **named: Any) -> Any:
        scores.append(int(Path(f"/proc/{process.pid}/oom_score_adj").read_text()))
        return communicate(process, *given, **named)

    monkeypatch.setattr(subprocess.Popen, "communicate", look)
    assert run_self_test(job(tmp_path, ship(make_model(1)))).passed
    assert scores == [1000]


def test_a_stopped_test_reports_nothing(tmp_path: Path) -> None:
    results: list[SelfTestResult] = []
    held = job(tmp_path, ship(make_model(1)))
    hold(held)
    process = SelfTestProcess(held, results.append)
    process.start()
    process.stop()
    process._thread.join(60)
    assert not process._thread.is_alive()
    assert results == []


def test_a_result_arrives_once_from_another_thread(tmp_path: Path) -> None:
    arrived = threading.Event()
    results: list[SelfTestResult] = []

    def keep(result: SelfTestResult) -> None:
        results.append(result)
        arrived.set()

    SelfTestProcess(job(tmp_path, ship(make_model(1))), keep).start()
    assert arrived.wait(60)
    assert [result.passed for result in results] == [True]


@pytest.mark.parametrize(
    ("exit_code", "output"),
    [
        (-9, b""),
        (-11, b'{"code": "", "message": "", "p50_ms": 1, "max_error": 0}'),
        (1, b""),
        (0, b""),
        (0, b"[]"),
        (0, b'{"code": ""}'),
        (0, b'{"code": "active", "message": "", "p50_ms": 1, "max_error": 0}'),
        (0, b'{"code": "", "message": "", "p50_ms": NaN, "max_error": 0}'),
    ],
)
def test_a_child_that_died_or_talks_nonsense_never_passes(exit_code: int, output: bytes) -> None:
    assert read_result(exit_code, output, b"boom").code == "self-test-crash"


def test_a_sensible_answer_is_taken() -> None:
    said = {"code": "", "message": "", "p50_ms": 1.5, "max_error": 0.0}
    assert read_result(0, json.dumps(said).encode(), b"").passed
