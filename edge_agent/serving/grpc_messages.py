"""What the gRPC form of the protocol says: its messages to values and back. Pure.

Rules that this module keeps:

- A message that parsed is still hostile: it gives a value or a ``RejectedError``.
- A caller gets its outputs the way it sent its inputs: raw for raw, by type for by type.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from edge_agent.serving import rest_messages, tensors
from edge_agent.serving.inference import grpc_service_pb2 as pb
from edge_agent.serving.model_service import PLATFORM, Inference, ModelMetadata
from edgeloop.errors import RejectedError

_CONTENTS: Final = MappingProxyType(
    {
        "BOOL": "bool_contents",
        "INT8": "int_contents",
        "INT16": "int_contents",
        "INT32": "int_contents",
        "INT64": "int64_contents",
        "UINT8": "uint_contents",
        "UINT16": "uint_contents",
        "UINT32": "uint_contents",
        "UINT64": "uint64_contents",
        "FP32": "fp32_contents",
        "FP64": "fp64_contents",
    }
)


def parse_inputs(request: pb.ModelInferRequest) -> list[tuple[str, tensors.AnyArray]]:
    """The input tensors. ``RejectedError``: ``input-...``, ``parameter-unsupported``, ``request-field``."""
    raw = request.raw_input_contents
    num_inputs = len(request.inputs)
    if num_inputs > rest_messages.MAX_TENSORS:
        raise RejectedError(
            f"{num_inputs} inputs, at most {rest_messages.MAX_TENSORS} are taken", code="request-field"
        )
    if raw and len(raw) != num_inputs:
        raise RejectedError(
            f"{len(raw)} raw_input_contents for {num_inputs} inputs; send one for each", code="input-size"
        )
    if request.parameters:
        rest_messages.refuse_unsupported(request.parameters, "the request")
    found = []
    for n, tensor in enumerate(request.inputs):
        name = tensor.name
        if tensor.parameters:
            rest_messages.refuse_unsupported(tensor.parameters, f"input {name!r}")
        if not raw:
            found.append((name, _from_contents(tensor)))
        elif tensor.HasField("contents"):
            raise RejectedError(
                f"input {name!r} has contents beside raw_input_contents; send one of them", code="input-size"
            )
        else:
            found.append((name, tensors.from_raw(name, tensor.datatype, tensor.shape, raw[n])))
    return found


def parse_output_names(request: pb.ModelInferRequest) -> list[str]:
    """The outputs that are asked for; none means all."""
    for output in request.outputs:
        if output.parameters:
            rest_messages.refuse_unsupported(output.parameters, f"output {output.name!r}")
    return [output.name for output in request.outputs]


def parse_timeout_s(parameters: Mapping[str, pb.InferParameter]) -> float | None:
    """The ``timeout`` parameter."""
    if "timeout" not in parameters:
        return None
    parameter = parameters["timeout"]
    choice = parameter.WhichOneof("parameter_choice")
    return rest_messages.timeout_s(getattr(parameter, choice) if choice else None)


def infer_response(request: pb.ModelInferRequest, answer: Inference) -> pb.ModelInferResponse:
    """The answer to ``request``."""
    array = answer.outputs
    response = pb.ModelInferResponse(
        model_name=request.model_name, model_version=answer.version, id=request.id
    )
    output = response.outputs.add(name=answer.output_name, datatype=tensors.datatype_of(array))
    output.shape.extend(array.shape)
    if request.raw_input_contents:
        response.raw_output_contents.append(tensors.to_raw(array))
    else:
        output.contents.fp32_contents.extend(array.ravel().tolist())
    return response


def metadata_response(metadata: ModelMetadata) -> pb.ModelMetadataResponse:
    """What the model takes and gives."""
    return pb.ModelMetadataResponse(
        name=metadata.name,
        versions=[metadata.version],
        platform=PLATFORM,
        inputs=[
            pb.ModelMetadataResponse.TensorMetadata(name=item.name, datatype=item.datatype, shape=item.shape)
            for item in metadata.inputs
        ],
        outputs=[
            pb.ModelMetadataResponse.TensorMetadata(name=item.name, datatype=item.datatype, shape=item.shape)
            for item in metadata.outputs
        ],
    )


def _from_contents(tensor: pb.ModelInferRequest.InferInputTensor) -> tensors.AnyArray:
    name, datatype, contents = tensor.name, tensor.datatype, tensor.contents
    field = _CONTENTS.get(datatype, "")
    for descriptor, _ in contents.ListFields():
        if descriptor.name != field:
            raise RejectedError(
                f"input {name!r} is {datatype[:40]!r}, but its data are in {descriptor.name}",
                code="input-type",
            )
    values: list[object] = list(getattr(contents, field)) if field else []
    if datatype in ("FP32", "FP64") and values:
        # Numbers of this width already, infinity and the like among them, as in raw data.
        array = np.array(values, tensors.DATATYPES[datatype])
        return tensors.from_raw(name, datatype, tensor.shape, array.tobytes())
    return tensors.from_values(name, datatype, tensor.shape, values)
