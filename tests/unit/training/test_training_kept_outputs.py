"""What teachers gave, kept and scored together: without torch, and without trusting what is read."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud.domain.losses import Loss
from cloud.training import kept_outputs
from edgeloop.errors import RejectedError

LABELS = np.array([0, 1, 2, 0])


def logits(*rows: tuple[float, float, float]) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


#: Each is right about two of four; their doubts make the mean right about all.
FIRST = logits((3, 0, 0), (0, 3, 0), (0.6, 0, 0.5), (0.5, 0.6, 0))
SECOND = logits((0.5, 0.6, 0), (0.6, 0.5, 0), (0, 0, 3), (3, 0, 0))


def kept(outputs: NDArray[np.float32], labels: NDArray[Any] = LABELS) -> bytes:
    return kept_outputs.to_bytes((outputs, labels), (outputs[:2], labels[:2]))


def test_the_mean_is_scored_and_not_the_mean_of_scores() -> None:
    assert kept_outputs.score_mean(Loss.CROSS_ENTROPY, [kept(FIRST)]) == (0.5, 1.0)
    assert kept_outputs.score_mean(Loss.CROSS_ENTROPY, [kept(SECOND)]) == (0.5, 0.0)
    assert kept_outputs.score_mean(Loss.CROSS_ENTROPY, [kept(FIRST), kept(SECOND)]) == (1.0, 1.0)
    wanted = np.array([1.0, -1.0, 0.5, 2.0])
    numbers = [(wanted + sign).astype(np.float32)[:, None] for sign in (0.5, -0.5)]
    alone, _ = kept_outputs.score_mean(Loss.REGRESSION, [kept(numbers[0], wanted)])
    together, _ = kept_outputs.score_mean(Loss.REGRESSION, [kept(one, wanted) for one in numbers])
    assert alone < 0.9
    assert together == pytest.approx(1.0, abs=1e-6)


def test_the_same_outputs_are_the_same_blob_and_too_many_are_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert kept(FIRST) == kept(FIRST.copy()) != kept(SECOND)
    monkeypatch.setattr(kept_outputs, "MAX_BYTES", 16)
    assert kept(FIRST) == b""


def test_other_samples_and_damaged_or_hostile_blobs_are_refused() -> None:
    objects = io.BytesIO()
    np.savez(objects, validation_outputs=np.array([print], dtype=object))
    for blobs in (
        [kept(FIRST), kept(SECOND, LABELS[::-1])],
        [kept(FIRST), kept(SECOND[:2], LABELS[:2])],
        [kept(FIRST), b""],
        [kept(FIRST)[:-40]],
        [pickle.dumps({"validation_outputs": FIRST})],
        [objects.getvalue()],
        [],
    ):
        with pytest.raises(RejectedError):
            kept_outputs.score_mean(Loss.CROSS_ENTROPY, blobs)
