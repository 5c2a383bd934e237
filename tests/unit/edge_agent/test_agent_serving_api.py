"""The transports of the local API, over real sockets, with a model that does as the test says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from machine import wait_until
from serving_gateway import DIGEST, INFER, Gateway, grpc_request

from edge_agent.inference import MAX_BATCH
from edge_agent.serving.grpc_api import MAX_CALLS, SERVICE
from edge_agent.serving.inference import grpc_service_pb2 as pb

VERSION = "ab" * 6


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    gateway.install()
    yield gateway.start()
    gateway.close()


def start(target: Any, *arguments: Any) -> tuple[threading.Thread, list[Any]]:
    """In a thread; its result or its error lands in the list."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(target(*arguments))
        except grpc.RpcError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_requests_over_both_transports_are_answered_and_metered(gateway) -> None:
    assert gateway.infer()[1] == {
        "model_name": "digits",
        "model_version": VERSION,
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [2.0, 4.0]}],
    }
    answer = pb.ModelInferResponse.FromString(gateway.call("ModelInfer", grpc_request((3, 2))))
    assert (answer.model_version, list(answer.outputs[0].shape)) == (VERSION, [3, 2])
    (window,) = gateway.meter.flush(1e9)
    # One of HTTP, and each sample of the batch.
    assert (window.key.digest, window.latency.count, window.num_errors) == (DIGEST, 4, 0)


def test_it_is_live_but_not_ready_before_a_model_serves_and_after_it_is_withdrawn() -> None:
    gateway = Gateway().start()
    try:
        for installed in (False, True, False):
            gateway.install() if installed else gateway.engine.withdraw()
            assert gateway.ask("GET", "/v2/health/live")[0] == 200
            wanted = 200 if installed else 503
            for path in ("/v2/health/ready", "/v2/models/digits/ready", "/v2/models/digits"):
                assert gateway.ask("GET", path)[0] == wanted
            code, said = gateway.infer()
            assert (code, said.get("code")) == ((200, None) if installed else (503, "no-model"))
            ready = pb.ServerReadyResponse.FromString(gateway.call("ServerReady", b""))
            assert ready.ready == installed
            with grpc.insecure_channel(gateway.api.grpc_address) as channel:
                health = channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
            assert health == (b"\x08\x01" if installed else b"\x08\x02")
    finally:
        gateway.close()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": "z"}, "input-name"),
        ({"datatype": "INT32", "data": [1, 2]}, "input-type"),
        ({"shape": [2]}, "input-shape"),
        ({"shape": [1, 1, 2]}, "input-shape"),
        ({"shape": [0, 2], "data": []}, "input-shape"),
        ({"shape": [MAX_BATCH + 1, 2], "data": [0] * 2 * (MAX_BATCH + 1)}, "input-shape"),
        ({"shape": [2, 2]}, "input-size"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_and_is_no_error_of_the_model(gateway, changes, code) -> None:
    status_code, said = gateway.infer(**changes)
    assert (status_code, said["code"]) == (400, code)
    assert gateway.meter.flush(1e9) == []


@pytest.mark.parametrize(
    ("method", "path", "status_code", "code"),
    [
        ("POST", "/v2/models/other/infer", 404, "model-unknown"),
        ("POST", "/v2/models/digits/versions/1/infer", 404, "version-unknown"),
        ("GET", "/v2/models/other", 404, "model-unknown"),
        ("GET", "/v2/models/other/ready", 404, "model-unknown"),
        ("GET", "/v2/models/digits/versions/1/ready", 404, "version-unknown"),
        ("GET", INFER, 405, "method-wrong"),
        ("POST", "/v2", 405, "method-wrong"),
        ("GET", "/", 404, "path-unknown"),
        ("GET", "/v2/models/a/b/c/d", 404, "path-unknown"),
    ],
)
def test_a_wrong_path_or_method_or_model_has_its_own_status(gateway, method, path, status_code, code) -> None:
    found, body = gateway.ask(method, path, b"" if method == "POST" else None)
    assert (found, json.loads(body)["code"]) == (status_code, code)


def test_versions_and_escaped_names_lead_to_the_model(gateway) -> None:
    for path in ("/v2/models/digits", "/v2/models/%64igits", f"/v2/models/digits/versions/{VERSION}"):
        assert json.loads(gateway.ask("GET", path)[1])["versions"] == [VERSION]
    assert gateway.ask("GET", f"/v2/models/digits/versions/{DIGEST}/ready")[0] == 200
    assert gateway.ask("GET", "/v2/health/live?verbose=1")[0] == 200


def test_a_failing_model_is_an_error_of_the_server_and_counts_against_the_model(gateway) -> None:
    gateway.runtime.failing = True
    code, said = gateway.infer()
    assert (code, said["code"]) == (500, "model-run")
    with pytest.raises(grpc.RpcError) as caught:
        gateway.call("ModelInfer", grpc_request())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert gateway.meter.flush(1e9)[0].num_errors == 2


def test_grpc_errors_carry_their_code_and_malformed_messages_are_the_senders_fault(gateway) -> None:
    unknown = grpc_request()
    unknown.model_name = "other"
    for request, status_code, code in (
        (unknown, grpc.StatusCode.NOT_FOUND, "model-unknown"),
        (b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, "request-malformed"),
        (grpc_request((1, 3)), grpc.StatusCode.INVALID_ARGUMENT, "input-shape"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            gateway.call("ModelInfer", request)
        assert caught.value.code() is status_code
        assert dict(caught.value.trailing_metadata())["edgeloop-code"] == code
    with pytest.raises(grpc.RpcError) as caught:
        gateway.call("RepositoryIndex", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_request_that_waits_past_its_deadline_is_refused_and_never_runs(gateway) -> None:
    """Its own deadline of 50 ms: that of the API is ten minutes away, and no client here waits for that."""
    gateway.runtime.gate.clear()
    first, answers = start(gateway.infer)
    assert gateway.runtime.begun.wait(60)
    body = json.dumps(
        {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}],
            "parameters": {"timeout": 50_000},
        }
    ).encode()
    code, said = gateway.ask("POST", INFER, body)
    assert (code, json.loads(said)["code"]) == (503, "request-deadline")
    request = grpc_request()
    request.parameters["timeout"].int64_param = 50_000
    with pytest.raises(grpc.RpcError) as caught:
        gateway.call("ModelInfer", request)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert gateway.runtime.num_runs == 1, "the first one still runs"
    gateway.runtime.gate.set()
    first.join(60)
    assert answers[0][0] == 200
    assert gateway.infer()[0] == 200
    assert gateway.runtime.num_runs == 2


def test_more_requests_than_may_wait_are_refused_at_once(gateway) -> None:
    gateway.runtime.gate.clear()
    waiting = [start(gateway.infer) for _ in range(1)]
    assert gateway.runtime.begun.wait(60)
    waiting += [start(gateway.infer) for _ in range(4)]
    wait_until(lambda: gateway.engine._num_waiting == 4)
    code, said = gateway.infer()
    assert (code, said["code"]) == (503, "inference-busy")
    with pytest.raises(grpc.RpcError) as caught:
        gateway.call("ModelInfer", grpc_request())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    gateway.runtime.gate.set()
    for thread, _ in waiting:
        thread.join(60)
    assert [found[0][0] for _, found in waiting] == [200] * 5


def test_a_call_that_is_ending_takes_no_room_from_the_next(gateway) -> None:
    """As many as may be under way, and as many whose answer is out."""
    gateway.engine._max_pending = 4 * MAX_CALLS
    gateway.runtime.gate.clear()
    with grpc.insecure_channel(gateway.api.grpc_address) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        request = grpc_request().SerializeToString()
        calls = [infer.future(request) for _ in range(2 * MAX_CALLS)]
        # One has the turn.
        wait_until(lambda: gateway.engine._num_waiting == 2 * MAX_CALLS - 1)
        with pytest.raises(grpc.RpcError) as caught:
            infer(request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        gateway.runtime.gate.set()
        assert all(call.result(60) for call in calls)


def test_a_body_larger_than_the_largest_batch_is_refused_and_the_connection_goes_on(gateway) -> None:
    with contextlib.closing(gateway.connect()) as connection:
        connection.request("POST", INFER, b"x" * (4 << 20))
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["code"] == "request-too-large"
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().status == 200


def test_a_grpc_message_over_the_limit_is_refused() -> None:
    gateway = Gateway(serve_max_request_bytes=64 * 1024)
    gateway.install()
    gateway.start()
    try:
        with pytest.raises(grpc.RpcError) as caught:
            gateway.call("ModelInfer", b"\x0a" * (64 * 1024 + 1))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert gateway.call("ModelInfer", grpc_request())
    finally:
        gateway.close()


def test_stopping_lets_a_request_under_way_end() -> None:
    gateway = Gateway()
    gateway.install()
    gateway.start()
    gateway.runtime.gate.clear()
    http_thread, http_found = start(gateway.infer)
    assert gateway.runtime.begun.wait(60)
    grpc_thread, grpc_found = start(gateway.call, "ModelInfer", grpc_request())
    wait_until(lambda: gateway.engine._num_waiting == 1)
    threading.Timer(0.2, gateway.runtime.gate.set).start()
    gateway.close()
    http_thread.join(60)
    grpc_thread.join(60)
    assert http_found[0][0] == 200
    assert isinstance(grpc_found[0], bytes)
