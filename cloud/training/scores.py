"""How good outputs are, from 0 to 1, by the metric of each loss.

Rule: no torch here, since what the agent's runtime gives is scored in processes that have none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud.domain.losses import Loss


def score(loss: Loss, outputs: NDArray[np.float32], labels: NDArray[Any]) -> float:
    """Accuracy, or R squared (its mean over the outputs, and 0 where it is negative)."""
    if loss is Loss.REGRESSION:
        wanted = labels.astype(np.float64)
        missed = np.square(wanted - outputs.reshape(wanted.shape)).mean(axis=0)
        explained = 1.0 - missed / np.maximum(wanted.var(axis=0), 1e-30)
        return float(np.clip(explained.mean(), 0.0, 1.0))
    guesses = outputs[:, 0] > 0 if loss is Loss.BINARY else outputs.argmax(axis=1)
    return float((guesses == labels).mean())
