"""What goes back for a sample: an answer or an error, as JSON. Pure.

Rules that this module keeps:

- An answer names the model that computed it, by digest and generation, and what that cost.
- An error has the code and the message of the error; both name their source (topic or file), and the id that
  the sample brought.
- A model that is judged by its accuracy answers a class: the highest output, or, of one output, whether it is
  above 0, as the cloud counts when it scores. A regression answers values alone.
- What JSON cannot say (a model that answers NaN) is an error, not an invalid text.
"""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.inference import InferenceResult
from edge_agent.sensors.samples import Sample, SampleId
from edgeloop.errors import EdgeloopError, RejectedError

#: Manifests that say nothing are of classifiers.
_CLASSIFIERS: Final = ("", "accuracy")


def encode_answer(sample: Sample, result: InferenceResult, *, source: str, more: dict[str, object]) -> bytes:
    """Raises ``RejectedError`` (``output-value``)."""
    outputs = result.outputs
    if not np.isfinite(outputs).all():
        raise RejectedError("the model answered values that are not finite", code="output-value")
    said: dict[str, object] = {"id": sample.id} if sample.id is not None else {}
    said["source"] = source
    said["outputs"] = _said(outputs, sample)
    if result.metric in _CLASSIFIERS and outputs.ndim == 2:
        classes = outputs.argmax(axis=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).astype(int)
        said["class"] = _said(classes, sample)
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
