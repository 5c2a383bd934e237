"""Puts a sensor's sample to the model and waits for the answer, as the local API does for applications.

Rules that this module keeps:

- Samples go through the agent's one engine, so they are metered, and count in a trial, as all others do.
- A sample is read as the model that serves at that moment takes it; a swap in between fails nothing, since
  students of a workload take the same inputs.
- Nothing waits for longer than its deadline, a full engine included; nobody waits on once a stop is asked.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Final

from edge_agent.inference import InferenceEngine, InferenceResult
from edge_agent.sensors.answers import encode_answer, encode_error
from edge_agent.sensors.samples import Sample, SampleId, UnfitError, parse_sample
from edgeloop.errors import EdgeloopError, RejectedError, TransientError

_BUSY_WAIT_S: Final = 0.01
_BUSY_CODE: Final = "inference-busy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What goes back, as JSON, and the error that it tells of, if any."""

    data: bytes
    error: EdgeloopError | None = None


class Asker:
    """Called from any thread."""

    def __init__(self, engine: InferenceEngine, *, timeout_s: float, max_bytes: int) -> None:
        self._engine = engine
        self._timeout_s = timeout_s
        self.max_bytes = max_bytes
        self._stop = threading.Event()

    def stop(self) -> None:
        """Questions that wait for room in the engine give up."""
        self._stop.set()

    def ask(
        self,
        payload: bytes,
        *,
        sample_format: str,
        source: str,
        more: dict[str, object] | None = None,
    ) -> Reply:
        """The answer, or what is wrong; never raises for either.

        Errors are ``TransientError`` (``no-model``, ``inference-busy``, ``inference-stopped``,
        ``request-deadline``) and ``RejectedError`` (``input-...``, ``output-value``, ``request-too-large``,
        ``model-run``).
        """
        sample_id: SampleId | None = None
        try:
            sample = self._parse(payload, sample_format)
            sample_id = sample.id
            result = self._result(sample)
            data = encode_answer(sample, result, source=source, more=more or {})
        except EdgeloopError as error:
            if isinstance(error, UnfitError):
                sample_id = error.sample_id
            return Reply(data=encode_error(error, source=source, sample_id=sample_id), error=error)
        return Reply(data=data)

    def _parse(self, payload: bytes, sample_format: str) -> Sample:
        if len(payload) > self.max_bytes:
            raise RejectedError(
                f"{len(payload)} bytes; at most {self.max_bytes} are taken (serve_max_request_bytes)",
                code="request-too-large",
            )
        model = self._engine.serving
        if model is None:
            raise TransientError("no model is installed yet; try again later", code="no-model")
        return parse_sample(payload, sample_format=sample_format, sample_shape=model.runtime.sample_shape)

    def _result(self, sample: Sample) -> InferenceResult:
        until_s = time.monotonic() + self._timeout_s
        future = self._submit(sample, until_s)
        try:
            return future.result(max(until_s - time.monotonic(), 0.0))
        except (FutureTimeoutError, CancelledError):
            future.cancel()
            raise TransientError(
                f"no answer within {self._timeout_s:g} s: the device is busy; send fewer samples, or allow "
                "more time (serve_timeout_s)",
                code="request-deadline",
            ) from None

    def _submit(self, sample: Sample, until_s: float) -> Future[InferenceResult]:
        while True:
            try:
                return self._engine.submit(sample.inputs, deadline_s=until_s)
            except TransientError as error:
                if error.code != _BUSY_CODE or time.monotonic() >= until_s or self._stop.wait(_BUSY_WAIT_S):
                    raise
