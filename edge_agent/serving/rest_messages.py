"""What the REST form of the protocol says: requests from bytes, responses to bytes. Pure.

Rules that this module keeps:

- Any bytes give a request or a ``RejectedError`` that says what is wrong with them.
- The binary-data extension is spoken both ways: the JSON comes first, its length in a header; the tensors
  that say ``binary_data_size`` follow it in their order, and together they are the whole body.
- What this server cannot do and a caller would rely on (shared memory, classification) is refused; other
  parameters that it does not know are for other servers and are let pass.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from edge_agent.serving import tensors
from edgeloop.errors import RejectedError

#: Far more than any served model has; a bound for loops over what a sender wrote.
MAX_TENSORS: Final = 64
MAX_ID_CHARS: Final = 1024
MAX_NAME_CHARS: Final = 256
UNSUPPORTED: Final = frozenset({"shared_memory_region", "classification"})
HEADER_LENGTH: Final = "Inference-Header-Content-Length"


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestedOutput:
    name: str
    binary: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """A request to infer, its model aside, which the path names."""

    request_id: str
    inputs: Sequence[tuple[str, tensors.AnyArray]]
    #: Empty: all of them.
    outputs: Sequence[RequestedOutput]
    #: Whether outputs that are not listed come as binary data.
    binary_output: bool
    #: As the caller asks; None when it does not.
    timeout_s: float | None


def parse_infer(body: bytes, header_length: int | None) -> InferRequest:
    """The request in ``body``, whose first ``header_length`` bytes are JSON (None: all of them)."""
    if header_length is not None and not 0 < header_length <= len(body):
        _refuse(f"{HEADER_LENGTH} is {header_length}, but the body has {len(body)} bytes", "request-size")
    json_bytes = body if header_length is None else body[:header_length]
    said = _load(json_bytes)
    if not isinstance(said, dict):
        _refuse("the request is not a JSON object", "request-json")
    request_id = said.get("id", "")
    if not isinstance(request_id, str) or len(request_id) > MAX_ID_CHARS:
        _refuse(f"id is not a text of at most {MAX_ID_CHARS} characters", "request-field")
    parameters = _parameters(said, "the request")
    binary = memoryview(body)[len(json_bytes) :]
    inputs = []
    for item in _objects(said, "inputs"):
        tensor, num_used = _input(item, binary)
        inputs.append(tensor)
        binary = binary[num_used:]
    if len(binary):
        _refuse(f"{len(binary)} bytes of binary data belong to no input", "request-size")
    outputs = [
        RequestedOutput(
            name=_name(item, "an output"),
            binary=_flag(_parameters(item, "an output"), "binary_data", _binary_output(parameters)),
        )
        for item in _objects(said, "outputs", optional=True)
    ]
    return InferRequest(
        request_id=request_id,
        inputs=inputs,
        outputs=outputs,
        binary_output=_binary_output(parameters),
        timeout_s=timeout_s(parameters.get("timeout")),
    )


def timeout_s(microseconds: object) -> float | None:
    """The ``timeout`` parameter, as both transports carry it; 0 and less mean none."""
    if microseconds is None:
        return None
    if type(microseconds) is not int:
        _refuse("parameter timeout is not a whole number of microseconds", "request-field")
    return microseconds / 1e6 if 0 < microseconds < 1 << 62 else None


def build_response(
    *, model_name: str, model_version: str, request: InferRequest, outputs: Mapping[str, tensors.AnyArray]
) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON when binary data follows it."""
    wanted = request.outputs or [RequestedOutput(name=name, binary=request.binary_output) for name in outputs]
    described: list[dict[str, object]] = []
    binary: list[bytes] = []
    for output in wanted:
        array = outputs[output.name]
        entry: dict[str, object] = {
            "name": output.name,
            "datatype": tensors.datatype_of(array),
            "shape": list(array.shape),
        }
        if output.binary:
            raw = tensors.to_raw(array)
            binary.append(raw)
            entry["parameters"] = {"binary_data_size": len(raw)}
        else:
            entry["data"] = tensors.to_values(output.name, array)
        described.append(entry)
    said: dict[str, object] = {"model_name": model_name, "model_version": model_version, "outputs": described}
    if request.request_id:
        said["id"] = request.request_id
    text = json.dumps(said, separators=(",", ":"), allow_nan=False).encode()
    return (b"".join((text, *binary)), len(text)) if binary else (text, None)


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body under its Content-Encoding; ``request-too-large`` before more than ``max_bytes`` exist."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        _refuse(
            f"Content-Encoding {encoding[:40]!r} is not known; send gzip, deflate or none", "request-encoding"
        )
    inflater = zlib.decompressobj(31 if encoding == "gzip" else 15)
    try:
        data = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RejectedError(f"the body is not {encoding}: {error}", code="request-encoding") from error
    if len(data) > max_bytes:
        _refuse(f"the request unpacks to more than {max_bytes} bytes", "request-too-large")
    if not inflater.eof or inflater.unused_data:
        _refuse(f"the body is not one whole {encoding} stream", "request-encoding")
    return data


def _load(text: bytes) -> Any:
    def refuse_constant(word: str) -> NoReturn:
        raise ValueError(f"{word} is not JSON; send such values as binary data")

    try:
        return json.loads(text.decode("utf-8"), parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        message = str(error)[:200] or "nested too deeply"
        raise RejectedError(f"the request is not JSON: {message}", code="request-json") from error


def _input(item: dict[str, Any], binary: memoryview) -> tuple[tuple[str, tensors.AnyArray], int]:
    """One input, and how much of the binary data it took."""
    name = _name(item, "an input")
    shape, datatype = item.get("shape"), item.get("datatype", "")
    if not isinstance(shape, list):
        _refuse(f"shape of input {name!r} is not a list", "input-shape")
    size = _parameters(item, f"input {name!r}").get("binary_data_size")
    if size is None:
        if "data" not in item:
            _refuse(f"input {name!r} has neither data nor the parameter binary_data_size", "input-size")
        return (name, tensors.from_values(name, datatype, shape, item["data"])), 0
    if "data" in item:
        _refuse(f"input {name!r} has both data and the parameter binary_data_size", "input-size")
    if type(size) is not int or not 0 <= size <= len(binary):
        _refuse(
            f"binary_data_size of input {name!r} is not a number of bytes that follow the JSON (left: "
            f"{len(binary)}; is {HEADER_LENGTH} set?)",
            "input-size",
        )
    return (name, tensors.from_raw(name, datatype, shape, binary[:size])), size


def _objects(said: dict[str, Any], key: str, *, optional: bool = False) -> list[dict[str, Any]]:
    items = said.get(key, [] if optional else None)
    if items is None and optional:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        _refuse(f"{key} is not a list of objects", "request-field")
    if len(items) > MAX_TENSORS:
        _refuse(f"{len(items)} {key}, at most {MAX_TENSORS} are taken", "request-field")
    return items


def _name(item: dict[str, Any], what: str) -> str:
    name = item.get("name")
    if not isinstance(name, str) or len(name) > MAX_NAME_CHARS:
        _refuse(f"{what} has no name of at most {MAX_NAME_CHARS} characters", "request-field")
    return name


def _parameters(item: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        _refuse(f"parameters of {what} are not an object", "request-field")
    refuse_unsupported(parameters, what)
    return parameters


def refuse_unsupported(parameters: Mapping[str, object], what: str) -> None:
    """Raises for parameters whose neglect would give the caller something else than it asked for."""
    for key in UNSUPPORTED:
        if key in parameters:
            _refuse(f"parameter {key} of {what} is not supported", "parameter-unsupported")


def _flag(parameters: dict[str, Any], key: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        _refuse(f"parameter {key} is neither true nor false", "request-field")
    return value


def _binary_output(parameters: dict[str, Any]) -> bool:
    return _flag(parameters, "binary_data_output", False)


def _refuse(message: str, code: str) -> NoReturn:
    raise RejectedError(message, code=code)
