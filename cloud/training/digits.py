"""scikit-learn's bundled handwritten digits, enlarged so that a network has something to do.

Rules: the split is stratified, 60/20/20, and depends on ``split_seed`` alone. Values are scaled from 0..16
to -1..1, then enlarged from 8x8 to ``image_size`` by bilinear interpolation, corners kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud.training.options import check_options, check_range

DEFAULTS: Mapping[str, Any] = {"image_size": 24, "split_seed": 0}
SHARES = (0.6, 0.2)


def load(options: Mapping[str, Any]) -> dict[str, Any]:
    """The six arrays; inputs are ``[n, 1, image_size, image_size]``."""
    values = check_options(options, DEFAULTS, field="dataset_options")
    size = check_range(values, "image_size", 8, 128, field="dataset_options")
    pixels, labels = read_digits()
    images = enlarge(pixels / np.float32(8.0) - np.float32(1.0), size)[:, None]
    answer: dict[str, Any] = {"num_classes": 10}
    for split, rows in zip(
        ("train", "validation", "test"), stratified_split(labels, SHARES, values["split_seed"]), strict=True
    ):
        answer[f"{split}_inputs"], answer[f"{split}_labels"] = images[rows], labels[rows]
    return answer


def read_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images ``[1797, 8, 8]`` of 0..16, and labels.

    The table is read from scikit-learn's own folder: importing that package takes each worker seconds.
    """
    found = find_spec("sklearn")
    folder = Path(found.origin).parent if found is not None and found.origin else None
    table = folder / "datasets" / "data" / "digits.csv.gz" if folder else None
    if table is None or not table.is_file():
        from sklearn.datasets import load_digits  # the slow way, should the folder ever look different

        bunch = load_digits()
        return np.asarray(bunch.images, dtype=np.float32), np.asarray(bunch.target, dtype=np.int64)
    rows = np.loadtxt(table, delimiter=",", dtype=np.float32)
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


def stratified_split(
    labels: NDArray[np.int64], shares: tuple[float, float], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of three splits, each with every class in the same proportion, shuffled."""
    rng = np.random.default_rng(seed)
    parts: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        first, second = round(len(rows) * shares[0]), round(len(rows) * (shares[0] + shares[1]))
        for part, piece in zip(parts, np.split(rows, [first, second]), strict=True):
            part.append(piece)
    first_rows, second_rows, third_rows = (rng.permutation(np.concatenate(part)) for part in parts)
    return first_rows, second_rows, third_rows


def enlarge(images: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Bilinear, separable: the same small matrix is applied to rows and to columns."""
    side = images.shape[-1]
    position = np.linspace(0.0, side - 1.0, size)
    low = np.minimum(position.astype(np.int64), side - 2)
    matrix = np.zeros((size, side), dtype=np.float32)
    matrix[np.arange(size), low] = 1.0 - (position - low)
    matrix[np.arange(size), low + 1] = position - low
    return np.ascontiguousarray(matrix @ images @ matrix.T, dtype=np.float32)
