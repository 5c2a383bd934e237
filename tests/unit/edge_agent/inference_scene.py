"""A runtime and a reference kernel that count, fail and wait as told, for tests of the engine."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from edge_agent.inference import ServedModel
from edgeloop.errors import RejectedError

SAMPLE = np.ones((1, 2), np.float32)
#: Many times what any run takes here, also one in the middle of which this process stood still.
LONG_S = 1e6


class FakeRuntime:
    """Multiplies by its factor; counts, fails or blocks as told."""

    input_shape = (1, 2)
    sample_shape = (2,)
    output_shape = (1, 2)

    def __init__(self, factor: float, *, gate: threading.Event | None = None) -> None:
        self.factor = factor
        self.gate = gate
        self.begun = threading.Event()
        self.failing = False
        self.num_runs = 0
        self.threads: set[str] = set()

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        self.num_runs += 1
        self.threads.add(threading.current_thread().name)
        if self.failing:
            raise RejectedError("kernel failed", code="model-run")
        if self.gate is not None and threading.current_thread().name == "inference":
            self.begun.set()
            assert self.gate.wait(60)
        return inputs * np.float32(self.factor)


class FakeReference:
    def __init__(self) -> None:
        self.num_timed = 0

    def time_once(self) -> float:
        self.num_timed += 1
        return 0.25


def model(runtime: FakeRuntime, generation: int = 1) -> ServedModel:
    return ServedModel(runtime=runtime, digest=f"{generation:064x}", generation=generation, workload="digits")
