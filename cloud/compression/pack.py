"""From an ONNX file to what goes over the wire, and back.

Rules: packing loses nothing, and that is checked on each file before it ships; a file that would shrink by
less than ``MIN_SAVING`` ships as it is. Everything here is about bytes of one's own: what comes from
elsewhere is opened by ``edge_agent.runtime`` against a manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import onnx

from edgeloop import packed
from edgeloop.artifact import MAX_EXECUTABLE_BYTES
from edgeloop.errors import RejectedError
from edgeloop.formats import ONNX_FORMAT, PACKED_FORMAT
from edgeloop.packed import Span

#: Unpacking takes a moment at each load: it must be worth something.
MIN_SAVING: Final = 0.03
#: A shorter tensor costs more as one of its own than among the bytes between.
_MIN_TENSOR_BYTES: Final = 128
_ELEMENT_BYTES: Final[dict[int, int]] = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.BFLOAT16: 2,
    onnx.TensorProto.DOUBLE: 8,
    onnx.TensorProto.INT32: 4,
    onnx.TensorProto.INT64: 8,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipped:
    """What a manifest describes. ``executable`` is empty for a format that runs as it is."""

    data: bytes
    artifact_format: str
    executable: bytes


def ship(data: bytes) -> Shipped:
    """The smaller of an ONNX file and its packed form."""
    small = pack_onnx(data)
    if len(small) > len(data) * (1 - MIN_SAVING):
        return Shipped(data=data, artifact_format=ONNX_FORMAT, executable=b"")
    return Shipped(data=small, artifact_format=PACKED_FORMAT, executable=data)


def pack_onnx(data: bytes) -> bytes:
    """The container of an ONNX file. ``executable_of`` gives back these very bytes."""
    small = packed.pack(data, list(_spans(data)))
    if executable_of(small) != data:
        raise RejectedError("the packed form of the model does not give the model back", code="pack-differs")
    return small


def executable_of(data: bytes) -> bytes:
    """The ONNX file in an artifact of one's own registry, packed or not."""
    if not packed.is_packed(data):
        return data
    size = packed.executable_bytes(data)
    if size > MAX_EXECUTABLE_BYTES:
        raise RejectedError(
            f"the artifact unpacks to {size} bytes, at most {MAX_EXECUTABLE_BYTES} are run",
            code="packed-size",
        )
    return packed.unpack(data, executable_bytes=size)


def _spans(data: bytes) -> Iterator[Span]:
    """The tensors whose bytes stand in the file as they are, in the order in which they stand there.

    protobuf writes nodes before initialisers, each in its order. An earlier place of the same bytes will do.
    """
    graph = onnx.load_from_string(data).graph
    constants = [
        attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")
    ]
    at = 0
    for tensor in [*constants, *graph.initializer]:
        raw = tensor.raw_data
        begin = data.find(raw, at) if len(raw) >= _MIN_TENSOR_BYTES else -1
        if begin < 0:
            continue
        element_bytes = _ELEMENT_BYTES.get(tensor.data_type, 1)
        if len(raw) % element_bytes:
            element_bytes = 1
        num_rows = tensor.dims[0] if len(tensor.dims) > 1 else 1
        if not num_rows or len(raw) % (element_bytes * num_rows):
            num_rows = 1
        yield Span(offset=begin, num_bytes=len(raw), element_bytes=element_bytes, num_rows=num_rows)
        at = begin + len(raw)
