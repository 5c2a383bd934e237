"""ONNX Runtime behind a small port.

Rules that this module keeps:

- A model comes as bytes, never as a path, and is one file: a tensor that points outside of these bytes
  is refused before the runtime sees it. The wire format is walked for that here, because the ``onnx``
  package is not installed on gateways, and because the runtime would open the file that such a tensor
  names, or (by a reserved name) read its own memory at an offset of the sender's choice.
- One input, one output, both float32; every dimension fixed but the batch, which is free or 1.
- One call at a time, on one thread unless asked for more, and no spinning: a gateway has other work.
- Callers own what they get: an output is a copy that no later call overwrites.
- Whatever the runtime raises leaves as ``RejectedError``, ``model-load`` or ``model-run``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgeloop.errors import RejectedError

Array = NDArray[np.float32]

#: Subgraphs nest inside attributes; nothing that an exporter writes comes near this.
_MAX_DEPTH = 32

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Where tensors can stand in a ModelProto: message -> field number -> message of the value. Only these
# fields are entered; all others are stepped over, so the walk costs microseconds a node whatever the
# weights weigh.
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_MODEL_GRAPH = 7
_TENSOR_NAME = 8
_TENSOR_EXTERNAL_DATA = 13
_TENSOR_DATA_LOCATION = 14


class Runtime(Protocol):
    """A loaded model. Calls may come from any thread; they run one after the other."""

    @property
    def input_name(self) -> str:
        """Name of the one input."""
        ...

    @property
    def output_name(self) -> str:
        """Name of the one output."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input, 0 for a free batch."""
        ...

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch."""
        ...

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output, 0 for a free batch."""
        ...

    def run(self, inputs: Array) -> Array:
        """Outputs [n, ...] for inputs [n, ...], in an array of their own. Raises ``RejectedError``."""
        ...


class OnnxRuntime:
    """One model in one ONNX Runtime session; made by ``load_onnx``."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._input_name, self.input_shape = _endpoint(session.get_inputs(), "input")
        self._output_name, self.output_shape = _endpoint(session.get_outputs(), "output")
        self.sample_shape = self.input_shape[1:]
        self.num_runs = 0
        # Bound once for batch 1: binding again for each call costs more than the plain run().
        self._one = (1, *self.sample_shape)
        self._input = np.zeros(self._one, np.float32)
        self._output = np.zeros((1, *self.output_shape[1:]), np.float32)
        self._binding = session.io_binding()
        self._binding.bind_input(
            self._input_name, "cpu", 0, np.float32, self._input.shape, self._input.ctypes.data
        )
        self._binding.bind_output(
            self._output_name, "cpu", 0, np.float32, self._output.shape, self._output.ctypes.data
        )

    @property
    def input_name(self) -> str:
        """Name of the one input."""
        return self._input_name

    @property
    def output_name(self) -> str:
        """Name of the one output."""
        return self._output_name

    def run(self, inputs: Array) -> Array:
        """Outputs for ``inputs``; more than one sample on a graph of batch 1 runs one by one."""
        if inputs.dtype != np.float32:
            raise RejectedError(f"inputs are {inputs.dtype}, the model takes float32", code="input-type")
        if inputs.shape == self._one:
            return self._run_one(inputs)
        if inputs.shape[1:] != self.sample_shape or not inputs.shape[0]:
            raise RejectedError(
                f"inputs have shape {list(inputs.shape)}, the model takes [n, "
                f"{', '.join(map(str, self.sample_shape))}] with n of at least 1",
                code="input-shape",
            )
        if self.input_shape[0] == 1:
            return np.concatenate([self._run_one(inputs[n : n + 1]) for n in range(len(inputs))])
        with self._lock:
            try:
                outputs: Array = self._session.run(
                    [self._output_name], {self._input_name: np.ascontiguousarray(inputs)}
                )[0]
            except Exception as error:
                raise _failed_run(error) from error
        return outputs

    def _run_one(self, inputs: Array) -> Array:
        with self._lock:
            np.copyto(self._input, inputs)
            try:
                self._session.run_with_iobinding(self._binding)
            except Exception as error:
                raise _failed_run(error) from error
            return self._output.copy()


def load_onnx(data: bytes, *, num_threads: int = 1) -> OnnxRuntime:
    """Loads a single-file ONNX model.

    Raises ``RejectedError``: ``external-data``, ``multi-input``, ``multi-output``, ``input-type``,
    ``output-type``, ``dynamic-shape``, ``fixed-batch``, ``model-load``.
    """
    refuse_external_data(data)
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Else the runtime would guess, and its own format is not what was walked above.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        # Without its fallback, which would print, and load the same once more.
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        return OnnxRuntime(session)
    except RejectedError:
        raise
    except Exception as error:
        raise RejectedError(
            f"the model does not load: {_first_line(error)}; export it again, or see the runtime version",
            code="model-load",
        ) from error


def refuse_external_data(data: bytes) -> None:
    """Raises ``RejectedError`` for a tensor outside of ``data``, or for bytes that are no ONNX model."""
    if not data:
        raise RejectedError("the model is empty", code="model-load")
    pending = [("Model", 0, len(data), 0)]
    seen_graph = False
    while pending:
        message, start, end, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise RejectedError(f"the model nests deeper than {_MAX_DEPTH} levels", code="model-load")
        fields = _FIELDS[message]
        external, name = False, b""
        for number, wire_type, value, stop in _walk(data, start, end):
            if message == "Tensor":
                if number == _TENSOR_NAME and wire_type == _BYTES:
                    name = data[value:stop]
                elif number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value):
                    external = True
            elif number in fields and wire_type == _BYTES:
                seen_graph |= message == "Model" and number == _MODEL_GRAPH
                pending.append((fields[number], value, stop, depth + 1))
        if external:
            raise RejectedError(
                f"tensor {name[:100].decode('utf-8', 'replace')!r} keeps its data outside of the file; "
                "export the model as one file",
                code="external-data",
            )
    if not seen_graph:
        raise RejectedError("the bytes hold no ONNX graph", code="model-load")


def _walk(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, value, end of the value) of one message.

    ``value`` is the number of a varint, else the offset at which the bytes begin. Stricter than protobuf
    where leniency could hide a field: groups are refused, and so are numbers that would be cut.
    """
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise _malformed(at)
        if wire_type == _VARINT:
            value, at = _varint(data, at, end)
            yield number, wire_type, value, at
            continue
        if wire_type == _BYTES:
            length, at = _varint(data, at, end)
        elif wire_type == _FIXED64:
            length = 8
        elif wire_type == _FIXED32:
            length = 4
        else:
            raise _malformed(at)
        if length > end - at:
            raise _malformed(at)
        yield number, wire_type, at, at + length
        at += length


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _malformed(at)


def _malformed(at: int) -> RejectedError:
    return RejectedError(f"the bytes are no ONNX model: malformed near byte {at}", code="model-load")


def _endpoint(endpoints: list[ort.NodeArg], kind: str) -> tuple[str, tuple[int, ...]]:
    """Name and shape of the one input or output, once its shape is one that this module serves."""
    if len(endpoints) != 1:
        raise RejectedError(
            f"the model has {len(endpoints)} {kind}s; only models of one {kind} are served",
            code=f"multi-{kind}",
        )
    (endpoint,) = endpoints
    if endpoint.type != "tensor(float)":
        raise RejectedError(f"{kind} {endpoint.name!r} is {endpoint.type}, not float32", code=f"{kind}-type")
    shape = endpoint.shape or []
    if not shape or any(not isinstance(size, int) or size < 1 for size in shape[1:]):
        raise RejectedError(
            f"{kind} {endpoint.name!r} has shape {shape}; every dimension but the batch must be fixed",
            code="dynamic-shape",
        )
    batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 0
    if batch > 1:
        raise RejectedError(
            f"{kind} {endpoint.name!r} has a fixed batch of {batch}; export it with a free batch or 1",
            code="fixed-batch",
        )
    return endpoint.name, (batch, *shape[1:])


def _failed_run(error: Exception) -> RejectedError:
    return RejectedError(f"the model failed to run: {_first_line(error)}", code="model-run")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
