"""Requests and responses of both transports, as bytes."""

from __future__ import annotations

import gzip
import json
import struct
import zlib

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from edge_agent.serving import grpc_messages, rest_messages
from edge_agent.serving.inference import grpc_service_pb2 as pb
from edge_agent.serving.model_service import Inference
from edgeloop.errors import RejectedError

SAMPLE = np.arange(4, dtype=np.float32).reshape(1, 4)


def refusal(call) -> RejectedError | None:
    """The one kind of error that hostile bytes may lead to; anything else fails the test."""
    try:
        call()
    except RejectedError as error:
        return error
    return None


def rest_body(**changes: object) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 1, 2, 3]}
    return json.dumps({"inputs": [tensor | changes]}).encode()


def binary_body(*, size: int = 16, said: int | None = None, extra: bytes = b"") -> tuple[bytes, int]:
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, 4],
        "parameters": {"binary_data_size": size if said is None else said},
    }
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return text + SAMPLE.tobytes()[:size] + extra, len(text)


# --- REST -------------------------------------------------------------------------------------------


def test_json_and_binary_say_the_same_tensor() -> None:
    plain = rest_messages.parse_infer(rest_body(), None)
    binary = rest_messages.parse_infer(*binary_body())
    for request in (plain, binary):
        ((name, array),) = request.inputs
        assert name == "x"
        np.testing.assert_array_equal(array, SAMPLE)
    assert (plain.binary_output, binary.binary_output) == (False, True)


@given(st.binary(max_size=300), st.none() | st.integers(-1, 400))
@example(b"[" * 100_000, None)
@example(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1' + b"0" * 5000 + b"]}]}", None)
def test_any_bytes_give_a_request_or_a_clear_error(body, header_length) -> None:
    error = refusal(lambda: rest_messages.parse_infer(body, header_length))
    assert error is None or (error.code and len(error.message) < 1000)


@given(st.data())
def test_a_request_with_any_part_replaced_gives_a_request_or_a_clear_error(data) -> None:
    request = {
        "id": "7",
        "parameters": {"timeout": 5, "binary_data_output": True},
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": [1, 4],
                "data": [0, 1, 2, 3],
                "parameters": {"binary_data_size": 16},
            }
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    junk = st.sampled_from(
        [None, True, -1, 0, 1 << 70, 1.5, "", "x", [], [[]], {}, {"a": []}, [None], [{}], [1, "a"]]
    )
    where: object = request
    while True:
        keys = list(where) if isinstance(where, dict) else range(len(where))
        key = data.draw(st.sampled_from(list(keys)))
        inner = where[key]
        if isinstance(inner, dict | list) and inner and data.draw(st.booleans()):
            where = inner
            continue
        if isinstance(where, dict) and data.draw(st.booleans()):
            del where[key]
        else:
            where[key] = data.draw(junk)
        break
    text = json.dumps(request).encode()

    def serve() -> None:
        parsed = rest_messages.parse_infer(text + SAMPLE.tobytes(), len(text))
        outputs = {"y": SAMPLE, "x": SAMPLE, "": SAMPLE}
        rest_messages.build_response(model_name="m", model_version="1", request=parsed, outputs=outputs)

    error = refusal(serve)
    assert error is None or (error.code and len(error.message) < 1000)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "request-json"),
        (b"\xff", "request-json"),
        (b"[]", "request-json"),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}', "request-json"),
        (b"{}", "request-field"),
        (rest_body(name=3), "request-field"),
        (rest_body(shape="1,4"), "input-shape"),
        (rest_body(shape=[1, 5]), "input-size"),
        (rest_body(datatype="BYTES"), "input-type"),
        (rest_body(parameters={"binary_data_size": 16}), "input-size"),
        (rest_body(parameters={"shared_memory_region": "r"}), "parameter-unsupported"),
        (b'{"id":"' + b"i" * 2000 + b'","inputs":[]}', "request-field"),
        (json.dumps({"inputs": [{}] * 65}).encode(), "request-field"),
    ],
)
def test_each_fault_of_a_request_has_its_code(body, code) -> None:
    with pytest.raises(RejectedError) as caught:
        rest_messages.parse_infer(body, None)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "broken",
    [
        binary_body(extra=b"z"),
        binary_body(said=12),
        binary_body(said=-4),
        binary_body(said=1 << 60),
        (binary_body()[0], 0),
        (binary_body()[0], 10_000),
    ],
    ids=["left over", "too few", "negative", "endless", "no header", "header past the body"],
)
def test_binary_data_that_do_not_add_up_are_refused(broken) -> None:
    with pytest.raises(RejectedError):
        rest_messages.parse_infer(*broken)


@given(st.booleans(), st.booleans(), st.text(max_size=10))
def test_a_response_says_what_was_asked_for(listed, binary, request_id) -> None:
    outputs = {"parameters": {"binary_data_output": binary}}
    if listed:
        outputs = {"outputs": [{"name": "y", "parameters": {"binary_data": binary}}]}
    body = json.dumps({"id": request_id, "inputs": [], **outputs}).encode()
    text, json_length = rest_messages.build_response(
        model_name="m",
        model_version="1",
        request=rest_messages.parse_infer(body, None),
        outputs={"y": SAMPLE},
    )
    said = json.loads(text[:json_length])
    assert said.get("id", "") == request_id
    (output,) = said["outputs"]
    assert (json_length is not None) == binary
    found = np.frombuffer(text[json_length:], "<f4") if binary else output["data"]
    np.testing.assert_array_equal(found, SAMPLE.ravel())
    assert (output["name"], output["shape"], output["datatype"]) == ("y", [1, 4], "FP32")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_packed_body_is_unpacked_within_its_bound(encoding) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    assert rest_messages.decompress(pack(b"a" * 1000), encoding, 1000) == b"a" * 1000
    for body, code in (
        (pack(b"a" * 1001), "request-too-large"),
        (pack(b"a" * (64 << 20)), "request-too-large"),
        (pack(b"a" * 500)[:-3], "request-encoding"),
        (pack(b"a") + b"b", "request-encoding"),
        (b"no", "request-encoding"),
    ):
        with pytest.raises(RejectedError) as caught:
            rest_messages.decompress(body, encoding, 1000)
        assert caught.value.code == code


# --- gRPC -------------------------------------------------------------------------------------------


def grpc_request(*, raw: bool = True) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    if raw:
        request.raw_input_contents.append(SAMPLE.tobytes())
    else:
        tensor.contents.fp32_contents.extend(SAMPLE.ravel().tolist())
    return request


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "by type"])
def test_a_caller_is_answered_the_way_it_asked(raw) -> None:
    request = grpc_request(raw=raw)
    ((name, array),) = grpc_messages.parse_inputs(request)
    assert name == "x"
    np.testing.assert_array_equal(array, SAMPLE)
    answer = Inference(version="1", output_name="y", outputs=SAMPLE * 2)
    response = grpc_messages.infer_response(request, answer)
    assert list(response.outputs[0].shape) == [1, 4]
    if raw:
        assert response.raw_output_contents == [(SAMPLE * 2).tobytes()]
    else:
        assert list(response.outputs[0].contents.fp32_contents) == [0, 2, 4, 6]


@given(st.binary(max_size=200), st.integers(0, 200), st.binary(max_size=8))
def test_any_grpc_bytes_give_tensors_or_a_clear_error(noise, at, patch) -> None:
    good = grpc_request().SerializeToString()
    for data in (noise, good[:at] + patch + good[at + len(patch) :], good + noise):
        try:
            request = pb.ModelInferRequest.FromString(data)
        except DecodeError:
            continue
        for parse, part in (
            (grpc_messages.parse_inputs, request),
            (grpc_messages.parse_output_names, request),
            (grpc_messages.parse_timeout_s, request.parameters),
        ):
            error = refusal(lambda parse=parse, part=part: parse(part))
            assert error is None or (error.code and len(error.message) < 2000)


def test_contents_of_another_type_or_beside_raw_data_are_refused() -> None:
    request = grpc_request(raw=False)
    request.inputs[0].contents.int_contents.append(1)
    with pytest.raises(RejectedError, match="int_contents"):
        grpc_messages.parse_inputs(request)
    both = grpc_request()
    both.inputs[0].contents.fp32_contents.append(1)
    with pytest.raises(RejectedError, match="beside raw_input_contents"):
        grpc_messages.parse_inputs(both)
    two = grpc_request()
    two.raw_input_contents.append(struct.pack("<f", 1))
    with pytest.raises(RejectedError, match="2 raw_input_contents for 1 inputs"):
        grpc_messages.parse_inputs(two)


def test_small_integers_are_checked_against_their_range() -> None:
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype="INT8", shape=[2])
    tensor.contents.int_contents.extend([127, 128])
    with pytest.raises(RejectedError, match="INT8 cannot hold"):
        grpc_messages.parse_inputs(request)


def test_the_timeout_parameter_is_microseconds_on_both_transports() -> None:
    request = pb.ModelInferRequest()
    assert grpc_messages.parse_timeout_s(request.parameters) is None
    request.parameters["timeout"].int64_param = 1500
    assert grpc_messages.parse_timeout_s(request.parameters) == pytest.approx(0.0015)
    body = json.dumps({"inputs": [], "parameters": {"timeout": 1500}}).encode()
    assert rest_messages.parse_infer(body, None).timeout_s == pytest.approx(0.0015)
    request.parameters["timeout"].string_param = "soon"
    with pytest.raises(RejectedError, match="microseconds"):
        grpc_messages.parse_timeout_s(request.parameters)


def test_no_field_of_the_protocol_is_missing_or_moved() -> None:
    """The numbers that clients in the field send, as the protocol gives them."""
    wanted = {
        "ModelInferRequest": "model_name=1 model_version=2 id=3 parameters=4 inputs=5 outputs=6 "
        "raw_input_contents=7",
        "ModelInferRequest.InferInputTensor": "name=1 datatype=2 shape=3 parameters=4 contents=5",
        "ModelInferRequest.InferRequestedOutputTensor": "name=1 parameters=2",
        "ModelInferResponse": "model_name=1 model_version=2 id=3 parameters=4 outputs=5 "
        "raw_output_contents=6",
        "ModelInferResponse.InferOutputTensor": "name=1 datatype=2 shape=3 parameters=4 contents=5",
        "InferTensorContents": "bool_contents=1 int_contents=2 int64_contents=3 uint_contents=4 "
        "uint64_contents=5 fp32_contents=6 fp64_contents=7 bytes_contents=8",
        "InferParameter": "bool_param=1 int64_param=2 string_param=3 double_param=4 uint64_param=5",
        "ModelMetadataResponse": "name=1 versions=2 platform=3 inputs=4 outputs=5",
        "ModelMetadataResponse.TensorMetadata": "name=1 datatype=2 shape=3",
        "ServerMetadataResponse": "name=1 version=2 extensions=3",
        "ModelReadyRequest": "name=1 version=2",
        "ModelMetadataRequest": "name=1 version=2",
    }
    for name, fields in wanted.items():
        outer, _, inner = name.partition(".")
        message = pb.DESCRIPTOR.message_types_by_name[outer]
        message = message.nested_types_by_name[inner] if inner else message
        assert " ".join(f"{field.name}={field.number}" for field in message.fields) == fields
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert service.full_name == "inference.GRPCInferenceService"
    assert [method.name for method in service.methods] == [
        *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
    ]
