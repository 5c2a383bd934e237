"""Serves the model (signatures first; being filled in)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.meter import LatencyMeter
from edge_agent.runtime import ReferenceKernel, Runtime


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceResult:
    outputs: NDArray[np.float32]
    digest: str
    generation: int
    service_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    runtime: Runtime
    digest: str
    generation: int
    workload: str


class InferenceEngine:
    """One thread owns the runtime; submit never blocks; a swap loses no request."""

    def __init__(
        self,
        *,
        meter: LatencyMeter,
        emulated_slowdown: int = 1,
        reference: ReferenceKernel | None = None,
        reference_interval_s: float = 0.25,
        max_pending: int = 64,
        clock: Callable[[], float] = ...,  # type: ignore[assignment]  # skeleton
    ) -> None: ...

    def start(self) -> None: ...
    def close(self) -> None: ...
    def submit(self, inputs: NDArray[np.float32]) -> Future[InferenceResult]:
        """[n, ...] or one sample without the batch axis. TransientError "no-model"/"inference-busy"/"inference-stopped"."""
        raise NotImplementedError

    def swap(self, model: ServedModel) -> None:
        """Warms the new runtime up on the caller's thread, then every request not yet begun goes to it."""

    def withdraw(self) -> None:
        """Serves nothing from now on (agent without a model)."""

    @property
    def serving(self) -> ServedModel | None: ...
