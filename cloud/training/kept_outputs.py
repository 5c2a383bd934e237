"""What a teacher gives for the validation and test splits, kept so that several can be scored together.

Rules: numbers and labels alone, in numpy's own format, read without running code from it; no torch here,
since the control plane scores ensembles and loads no data. What would take too much space is not kept, and
the ensemble's accuracy is then not known.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud.domain.losses import Loss
from cloud.training.scores import score
from edgeloop.errors import RejectedError

#: Of one teacher, both splits: 10,000 samples of 10 classes take 0.4 MB.
MAX_BYTES = 64 * 1024 * 1024
_SPLITS = ("validation", "test")

Given = tuple[NDArray[np.float32], NDArray[Any]]


def to_bytes(validation: Given, test: Given) -> bytes:
    """Outputs and labels of both splits; the same ones give the same bytes. Empty where they are too many."""
    if sum(array.nbytes for given in (validation, test) for array in given) > MAX_BYTES:
        return b""
    arrays = {
        f"{split}_{what}": array
        for split, given in zip(_SPLITS, (validation, test), strict=True)
        for what, array in zip(("outputs", "labels"), given, strict=True)
    }
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # its stub takes the names for its one option
    return stream.getvalue()


def score_mean(loss: Loss, kept: Sequence[bytes]) -> tuple[float, float]:
    """What the mean of these teachers' outputs reaches on the validation and the test split, 0 to 1.

    Raises ``RejectedError`` when they are not of the same samples.
    """
    each = [_read(data) for data in kept]
    found = []
    for split in _SPLITS:
        outputs = [arrays[f"{split}_outputs"] for arrays in each]
        labels = [arrays[f"{split}_labels"] for arrays in each]
        if not each or any(
            one.shape != outputs[0].shape or not np.array_equal(own, labels[0])
            for one, own in zip(outputs, labels, strict=True)
        ):
            raise RejectedError(
                f"the teachers' outputs for the {split} split are not of the same samples",
                code="outputs-differ",
            )
        found.append(score(loss, np.stack(outputs).mean(axis=0, dtype=np.float32), labels[0]))
    return found[0], found[1]


def _read(data: bytes) -> dict[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return {f"{split}_{what}": stored[f"{split}_{what}"] for split in _SPLITS for what in
                    ("outputs", "labels")}  # fmt: skip
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RejectedError(
            f"a teacher's kept outputs cannot be read: {error}", code="outputs-unreadable"
        ) from error
