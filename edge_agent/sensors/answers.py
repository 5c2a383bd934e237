"""What goes back for a sample: an answer or an error, as JSON. Pure.

Rules that this module keeps:

- An answer names the model that computed it, by digest and generation, and what that cost.
- An error has the code and the message of the error; both name their source (topic or file), and the id that
  the sample brought.
- What JSON cannot say (a model that answers NaN) is an error, not an invalid text.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.inference import InferenceResult
from edge_agent.sensors.samples import Sample, SampleId
from edgeloop.errors import EdgeloopError, RejectedError


def encode_answer(
    sample: Sample, result: InferenceResult, *, source: str, classifier: bool, more: dict[str, object]
) -> bytes:
    """Raises ``RejectedError`` (``output-value``)."""
    outputs = result.outputs
    if not np.isfinite(outputs).all():
        raise RejectedError("the model answered values that are not finite", code="output-value")
    said: dict[str, object] = {"id": sample.id} if sample.id is not None else {}
    said["source"] = source
    said["outputs"] = _said(outputs, sample)
    if classifier and outputs.ndim == 2 and outputs.shape[1] > 1:
        said["class"] = _said(outputs.argmax(axis=1), sample)
    said["model"] = result.digest
    said["generation"] = result.generation
    said["latency_ms"] = round(result.service_ms, 4)
    return _encoded(said | more)


def encode_error(error: EdgeloopError, *, source: str, sample_id: SampleId | None = None) -> bytes:
    said: dict[str, object] = {"id": sample_id} if sample_id is not None else {}
    return _encoded(said | {"source": source, "code": error.code, "error": error.message})


def _said(array: NDArray[Any], sample: Sample) -> object:
    return (array if sample.is_batch else array[0]).tolist()


def _encoded(said: dict[str, object]) -> bytes:
    return json.dumps(said, separators=(",", ":"), allow_nan=False).encode()
