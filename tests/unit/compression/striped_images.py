"""Images whose class is the place of a bright row: small, and quick to learn."""

from __future__ import annotations

import numpy as np

from cloud.training.datasets import Dataset, Split


def stripes(count: int, seed: int, *, noise: float = 0.3) -> Split:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    inputs = rng.normal(0, noise, size=(count, 1, 12, 12)).astype(np.float32)
    inputs[np.arange(count), 0, labels * 3] += 1.5
    return Split(inputs=inputs, labels=labels.astype(np.int64))


def striped(*, noise: float = 0.3) -> Dataset:
    """192 images to learn from, 80 to choose by and 80 to report."""
    train, validation, test = (stripes(count, seed, noise=noise) for seed, count in enumerate((192, 80, 80)))
    return Dataset(train=train, validation=validation, test=test, num_classes=4)
