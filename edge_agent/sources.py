"""Replay source (signatures first; being filled in)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.inference import InferenceResult


def load_replay(path: Path) -> NDArray[np.float32]:
    """key "inputs", float32, finite; ConfigError otherwise."""
    raise NotImplementedError


class ReplaySource:
    def __init__(
        self,
        inputs: NDArray[np.float32],
        *,
        rate_hz: float,
        submit: Callable[[NDArray[np.float32]], Future[InferenceResult]],
        loop: bool = True,
    ) -> None: ...

    def start(self) -> None: ...
    def close(self) -> None: ...

    num_submitted: int
    num_skipped: int
    num_failed: int
