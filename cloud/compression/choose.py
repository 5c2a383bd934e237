"""Two decisions on measured figures: which precision ships, and whether a student may replace its parent.

Rules of the precision: fp32 ships when int8 costs more accuracy than the workload's ``search.tolerance``, or
is slower by more than noise; otherwise int8, which is smaller. Rule of the parent: a student no wider than
what it replaces, yet slower by more than noise, is rejected; a wider one is meant to be slower.

A slowdown ratio comes from interleaved runs and is a cautious one (``Timing.slowdown_ratio``).
"""

from __future__ import annotations

from cloud.domain.specs import Precision

#: Two graphs that differ in their weights' values alone were seen 4 % apart: where memory happens to lie.
NOISE_RATIO = 0.05
ACCURACY_TOLERANCE = 0.01


def choose_precision(
    *,
    fp32_accuracy: float,
    int8_accuracy: float,
    int8_slowdown_ratio: float,
    tolerance: float = ACCURACY_TOLERANCE,
) -> Precision:
    """What ships of the two forms of one student; accuracies are on the validation split."""
    if int8_accuracy < fp32_accuracy - tolerance or int8_slowdown_ratio > 1.0 + NOISE_RATIO:
        return Precision.FP32
    return Precision.INT8


def reject_against_parent(*, slowdown_ratio: float, num_weights: int, parent_num_weights: int) -> str:
    """Why the student may not replace its parent, or ""."""
    if num_weights > parent_num_weights or slowdown_ratio <= 1.0 + NOISE_RATIO:
        return ""
    return (
        f"measures {slowdown_ratio - 1.0:.1%} slower than what it replaces, with no more weights "
        f"({num_weights} against {parent_num_weights})"
    )
