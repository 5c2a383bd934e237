"""The local inference API of real agents, called with the real tritonclient."""

from __future__ import annotations

import multiprocessing
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_calls
from agent_harness import NUM_INPUTS, AgentProcess, Cloud, golden_inputs, make_model, ship
from machine import WAIT_S, wait_until

from edge_agent.runtime import load_onnx

pytestmark = pytest.mark.mosquitto

TRANSPORTS = pytest.mark.parametrize("transport", ["grpc", "rest"])
ANY = "127.0.0.1:0"
NUM_SWAPS = 20

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def clients() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        yield pool


@pytest.fixture(scope="module")
def agent(module_mosquitto, tmp_path_factory) -> Iterator[AgentProcess]:
    """Serves one model to all tests that only ask."""
    cloud = Cloud(module_mosquitto.host, module_mosquitto.port)
    folder = tmp_path_factory.mktemp("oip")
    agent = AgentProcess(cloud, folder, serve_grpc=ANY, serve_rest=ANY)
    model = ship(make_model(1))
    cloud.publish(model)
    cloud.deploy("gw-1", model, 1)
    agent.start().wait_state("active", 1)
    agent.wait(lambda status: bool(status["grpc_address"] and status["rest_address"]))
    yield agent
    agent.kill()
    cloud.close()


@pytest.fixture
def call(agent, clients) -> Call:
    """Runs one function of `triton_calls` against the agent, over one transport."""

    def run(function: Callable[..., Any], transport: str, *arguments: object, **options: object) -> Any:
        address = agent.status()[f"{transport}_address"]
        return clients.submit(function, transport, address, "tiny", *arguments, **options).result(WAIT_S)

    return run


SAMPLES = golden_inputs(3)
OUTPUTS = load_onnx(make_model(1)).run(SAMPLES)


@TRANSPORTS
def test_the_server_and_its_model_describe_themselves(agent, call, transport) -> None:
    said = call(triton_calls.describe, transport)
    assert (said["live"], said["ready"], said["model_ready"], said["other_ready"]) == (
        True,
        True,
        True,
        False,
    )
    assert said["server"]["name"] == "edgeloop-agent"
    assert "binary_tensor_data" in said["server"]["extensions"]
    model = said["model"]
    assert model["name"] == "tiny"
    assert model["versions"] == [agent.status()["serving_digest"][:12]]
    (tensor,) = model["inputs"]
    assert (tensor["name"], tensor["datatype"]) == ("x", "FP32")
    assert [int(size) for size in tensor["shape"]] == [-1, NUM_INPUTS]


@TRANSPORTS
@pytest.mark.parametrize("num_samples", [1, 3])
def test_it_answers_what_the_model_does(agent, call, transport, num_samples) -> None:
    found = call(triton_calls.infer, transport, SAMPLES[:num_samples])
    np.testing.assert_allclose(found["outputs"], OUTPUTS[:num_samples], atol=1e-5)
    assert (found["model_name"], found["id"]) == ("tiny", "r7")
    version = found["model_version"]
    assert version == agent.status()["serving_digest"][:12]
    again = call(triton_calls.infer, transport, SAMPLES[:num_samples], version=version, output="y")
    np.testing.assert_allclose(again["outputs"], OUTPUTS[:num_samples], atol=1e-5)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("packing", [None, "gzip", "deflate"])
def test_http_takes_and_gives_json_and_binary_packed_or_not(call, binary, packing) -> None:
    found = call(
        triton_calls.infer,
        "rest",
        SAMPLES,
        binary=binary,
        output="y",
        request_compression_algorithm=packing,
        response_compression_algorithm=packing,
    )
    np.testing.assert_allclose(found["outputs"], OUTPUTS, atol=1e-5)


@TRANSPORTS
@pytest.mark.parametrize(
    ("changes", "grpc_status", "http_status", "words"),
    [
        ({"name": "z"}, "INVALID_ARGUMENT", "400", "the model takes 'x'"),
        ({"output": "z"}, "INVALID_ARGUMENT", "400", "the model has 'y'"),
        ({"version": "123"}, "NOT_FOUND", "404", "version '123' of 'tiny' does not serve"),
        ({"shape": [3, 5]}, "INVALID_ARGUMENT", "400", "has 192 bytes of data"),
        (
            {"array": SAMPLES.astype(np.float64), "datatype": "FP64"},
            "INVALID_ARGUMENT",
            "400",
            "is FP64, the model takes FP32",
        ),
        ({"array": SAMPLES[:, :5]}, "INVALID_ARGUMENT", "400", "the model takes [-1, 16]"),
        ({"array": golden_inputs(65)}, "INVALID_ARGUMENT", "400", "1 to 64 samples"),
    ],
    ids=["input", "output", "version", "size", "datatype", "shape", "batch"],
)
def test_a_wrong_request_gets_a_clear_error(
    call, transport, changes, grpc_status, http_status, words
) -> None:
    changes = {"array": SAMPLES, **changes}
    found = call(triton_calls.infer, transport, changes.pop("array"), **changes)
    assert found["status"] == (f"StatusCode.{grpc_status}" if transport == "grpc" else http_status)
    assert words in found["message"]


def test_an_oversized_request_is_refused(call) -> None:
    huge = np.zeros((20_000, NUM_INPUTS), np.float32)
    found = call(triton_calls.infer, "rest", huge)
    assert (found["status"], "at most" in found["message"]) == ("413", True)
    found = call(triton_calls.infer, "grpc", np.zeros((300_000, NUM_INPUTS), np.float32))
    assert found["status"] == "StatusCode.RESOURCE_EXHAUSTED"


@TRANSPORTS
def test_a_model_that_is_not_there_is_named(agent, clients, transport) -> None:
    address = agent.status()[f"{transport}_address"]
    found = clients.submit(triton_calls.infer, transport, address, "other", SAMPLES).result(WAIT_S)
    assert found["status"] == ("StatusCode.NOT_FOUND" if transport == "grpc" else "404")
    assert "this agent serves 'tiny'" in found["message"]


def test_metrics_tell_what_serves(agent, call) -> None:
    call(triton_calls.infer, "rest", SAMPLES)
    address = agent.status()["rest_address"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as page:
        lines = page.read().decode().splitlines()
    digest = agent.status()["serving_digest"]
    assert f'edgeloop_model_info{{workload="tiny",digest="{digest}"}} 1' in lines
    assert "edgeloop_serving_ready 1" in lines


@pytest.mark.slow  # twenty installations, each with a self-test in a process of its own
@pytest.mark.timeout(600)
def test_no_request_fails_in_twenty_swaps_under_load(mosquitto, clients, tmp_path: Path) -> None:
    models = [ship(make_model(seed)) for seed in range(NUM_SWAPS + 1)]
    sample = SAMPLES[:1]
    wanted = {model.digest[:12]: load_onnx(model.data).run(sample) for model in models}
    cloud = Cloud(mosquitto.host, mosquitto.port)
    agent = AgentProcess(cloud, tmp_path, serve_grpc=ANY, serve_rest=ANY, rate_hz="1", log_level="info")
    stop = tmp_path / "stop"
    try:
        for model in models:
            cloud.publish(model)
        cloud.deploy("gw-1", models[0], 1)
        agent.start().wait_state("active", 1)
        status = agent.wait(lambda status: bool(status["grpc_address"] and status["rest_address"]))
        running = [
            clients.submit(
                triton_calls.load,
                transport,
                status[f"{transport}_address"],
                "tiny",
                sample,
                wanted,
                str(stop),
            )
            for transport in ("grpc", "rest")
        ]
        first_served = status["num_requests"]
        agent.wait(lambda status: status["num_requests"] > first_served + 50)
        for generation, model in enumerate(models[1:], start=2):
            cloud.deploy("gw-1", model, generation)
            agent.wait_state("active", generation)
            for transport in ("grpc", "rest"):  # however seldom a client gets to ask
                seen = Path(f"{stop}-{transport}-{model.digest[:12]}")
                wait_until(seen.exists, what=f"an answer of generation {generation} over {transport}")
        stop.touch()
        found = [client.result(WAIT_S) for client in running]
        assert [said["errors"] for said in found] == [[], []]
        for said in found:
            assert set(said["versions"]) == set(wanted)
        # Whatever the applications asked is in the reports, under the digest that answered.
        num_asked = sum(sum(said["versions"].values()) for said in found)
        assert agent.stop() == 0
        assert agent.status()["num_requests"] >= num_asked
        agent.check_all_reported()
    finally:
        stop.touch()
        if agent.process is not None and agent.process.poll() is None:
            agent.kill()
        cloud.close()


def test_the_api_serves_the_committed_model_without_broker_and_cloud(mosquitto, clients, tmp_path) -> None:
    cloud = Cloud(mosquitto.host, mosquitto.port)
    agent = AgentProcess(cloud, tmp_path, serve_grpc=ANY, serve_rest=ANY)
    model = ship(make_model(1))
    try:
        cloud.publish(model)
        cloud.deploy("gw-1", model, 1)
        agent.start().wait_state("active", 1)
        agent.kill()
        cloud.broker, cloud.server = "127.0.0.1:1", "127.0.0.1:1"
        status = agent.start().wait(
            lambda status: bool(
                status["grpc_address"] and status["rest_address"] and status["serving_digest"]
            )
        )
        for transport in ("grpc", "rest"):
            address = status[f"{transport}_address"]
            found = clients.submit(triton_calls.infer, transport, address, "tiny", SAMPLES).result(WAIT_S)
            np.testing.assert_allclose(found["outputs"], OUTPUTS, atol=1e-5)
    finally:
        agent.kill()
        cloud.close()
