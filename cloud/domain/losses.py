"""What a network is trained for, and by which metric it is judged.

Rule: every metric lies from 0 to 1 and higher is better, so that whatever compares accuracies need not know
which it compares.
"""

from __future__ import annotations

from enum import StrEnum


class Loss(StrEnum):
    CROSS_ENTROPY = "cross-entropy"  # one class of several; the metric is accuracy
    BINARY = "binary"  # yes or no by one output; the metric is accuracy
    REGRESSION = "regression"  # numbers, by mean squared error; the metric is R squared, 0 where it is below

    @property
    def metric(self) -> str:
        """``accuracy``, or ``r2``: the share of the labels' variance that the outputs explain."""
        return "r2" if self is Loss.REGRESSION else "accuracy"
