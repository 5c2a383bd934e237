"""What the local API offers, whatever the transport: each model under the name of its workload.

Rules that this module keeps:

- A request is checked against the model that serves when it comes, and answered by the one that serves when
  its turn comes; a swap between the two fails nothing, since students of a workload take the same inputs.
  The version in the answer is that of the model that computed it.
- The version of a model is the first 12 digits of its digest. A caller that names none gets whichever serves;
  one that names a version gets that very one or "not found", never another.
- Nothing waits for longer than its deadline: what has not begun by then never runs.
- A request goes through the engine of its workload, so it is metered, and counts in a trial, as all are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.inference import MAX_BATCH, InferenceEngine, ServedModel
from edge_agent.serving.tensors import AnyArray, datatype_of
from edgeloop.errors import RejectedError, TransientError

VERSION_DIGITS: Final = 12
SERVER_NAME: Final = "edgeloop-agent"
#: Parts of the protocol beyond its core.
EXTENSIONS: Final = ("binary_tensor_data", "parameters")
#: The protocol's word for ONNX files.
PLATFORM: Final = "onnx_onnxv1"
_FP32: Final = np.dtype(np.float32)
_ANY_SIZE: Final = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorMetadata:
    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelMetadata:
    name: str
    version: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """One answer."""

    version: str
    output_name: str
    outputs: NDArray[np.float32]


class ModelService:
    """Called from any thread."""

    def __init__(self, engines: Mapping[str, InferenceEngine], *, timeout_s: float) -> None:
        """``engines`` by workload; one under "" serves whichever it was given."""
        self._engines = dict(engines)
        self._timeout_s = timeout_s

    @property
    def ready(self) -> bool:
        """Whether every workload has a verified model that serves."""
        return all(engine.serving is not None for engine in self._engines.values())

    def is_ready(self, name: str, version: str) -> bool:
        """Whether this model serves, in this version if one is named."""
        engine = self._engine_of(name)
        model = engine.serving if engine is not None else None
        return model is not None and model.workload == name and _is_version(model, version)

    def metadata(self, name: str, version: str) -> ModelMetadata:
        """What it takes and gives. Raises ``no-model``, ``model-unknown``, ``version-unknown``."""
        _, model = self._find(name, version)
        runtime = model.runtime
        return ModelMetadata(
            name=model.workload,
            version=version_of(model.digest),
            inputs=(_described(runtime.input_name, runtime.sample_shape),),
            outputs=(_described(runtime.output_name, runtime.output_shape[1:]),),
        )

    def max_request_bytes(self, bytes_per_element: int) -> int:
        """Upper bound of what the largest batch takes, with room for the rest of a request."""
        models = (engine.serving for engine in self._engines.values())
        num_elements = max(
            (int(np.prod(model.one_shape)) for model in models if model is not None), default=0
        )
        return MAX_BATCH * num_elements * bytes_per_element + (64 << 10)

    def infer(
        self,
        name: str,
        version: str,
        *,
        inputs: Sequence[tuple[str, AnyArray]],
        output_names: Sequence[str],
        timeout_s: float | None,
    ) -> Inference:
        """One request, answered or refused within its deadline.

        Raises ``TransientError`` (``no-model``, ``inference-busy``, ``request-deadline``) and
        ``RejectedError`` (``model-unknown``, ``version-unknown``, ``input-...``, ``output-name``,
        ``model-run``).
        """
        engine, model = self._find(name, version)
        array = _only_input(model, inputs)
        output_name = model.runtime.output_name
        for wanted in output_names:
            if wanted != output_name:
                raise RejectedError(
                    f"output {wanted[:80]!r} is unknown; the model has {output_name!r}", code="output-name"
                )
        wait_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        result = engine.serve_here(array, wait_s=wait_s)
        if result is None:
            future = engine.submit(array, deadline_s=time.monotonic() + wait_s)
            try:
                result = future.result(max(wait_s, 0.0))
            except (FutureTimeoutError, CancelledError):
                future.cancel()
                raise TransientError(
                    f"no answer within {wait_s:g} s: the device is busy; send fewer requests, or allow more "
                    "time",
                    code="request-deadline",
                ) from None
        return Inference(version=version_of(result.digest), output_name=output_name, outputs=result.outputs)

    def _engine_of(self, name: str) -> InferenceEngine | None:
        return self._engines.get("") or self._engines.get(name)

    def _find(self, name: str, version: str) -> tuple[InferenceEngine, ServedModel]:
        engine = self._engine_of(name)
        if engine is None:
            known = ", ".join(map(repr, sorted(self._engines)))
            raise RejectedError(
                f"model {name[:80]!r} is unknown; this agent serves {known}", code="model-unknown"
            )
        model = engine.serving
        if model is None:
            raise TransientError("no model is installed yet; try again later", code="no-model")
        if name != model.workload:
            raise RejectedError(
                f"model {name[:80]!r} is unknown; this agent serves {model.workload!r}", code="model-unknown"
            )
        if not _is_version(model, version):
            raise RejectedError(
                f"version {version[:80]!r} of {name!r} does not serve; leave the version out, or ask for "
                f"{version_of(model.digest)!r}",
                code="version-unknown",
            )
        return engine, model


def version_of(digest: str) -> str:
    """The version that a digest goes by."""
    return digest[:VERSION_DIGITS]


def _is_version(model: ServedModel, version: str) -> bool:
    return version in ("", version_of(model.digest), model.digest)


def _described(name: str, sample_shape: tuple[int, ...]) -> TensorMetadata:
    return TensorMetadata(name=name, datatype="FP32", shape=(_ANY_SIZE, *sample_shape))


def _only_input(model: ServedModel, inputs: Sequence[tuple[str, AnyArray]]) -> NDArray[np.float32]:
    expected = model.runtime.input_name
    if len(inputs) != 1:
        raise RejectedError(f"{len(inputs)} inputs; the model takes one, {expected!r}", code="input-name")
    name, array = inputs[0]
    if name != expected:
        raise RejectedError(
            f"input {name[:80]!r} is unknown; the model takes {expected!r}", code="input-name"
        )
    if array.dtype != _FP32:
        raise RejectedError(
            f"input {name!r} is {datatype_of(array)}, the model takes FP32", code="input-type"
        )
    shape = array.shape
    if shape[1:] != model.one_shape[1:] or not shape or not 0 < shape[0] <= MAX_BATCH:
        raise RejectedError(
            f"input {name!r} has shape {list(shape)}; the model takes {[_ANY_SIZE, *model.one_shape[1:]]}, "
            f"with 1 to {MAX_BATCH} samples in the first dimension",
            code="input-shape",
        )
    return array
