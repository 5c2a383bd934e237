"""What a workload learns from: three checked splits of float32 inputs and labels.

Rules: validation drives every choice, test is for reports alone, and the same workload always gives the
same arrays in the same order. Whatever arrives is checked here, so that nothing behind has to: shapes,
types, finite values, labels from 0 to ``num_classes - 1``, and every class in every split; of a regression,
finite labels of a reasonable scale that vary in every split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud.domain.losses import Loss
from cloud.domain.workloads import Workload
from cloud.training import digits, fashion_mnist
from cloud.training.callables import call, is_callable_path
from edgeloop.errors import ConfigError
from edgeloop.rules import MAX_NAME_CHARS

SPLITS = ("train", "validation", "test")
#: Inputs beyond this were not scaled, and their squares come near the end of float32.
MAX_INPUT = 1e15
MAX_CLASSES = 100_000
#: Beyond these a learning rate that fits other workloads fits this one no more.
MIN_TARGET_SPREAD, MAX_TARGET_SPREAD = 1e-3, 1e3
BUILT_IN = {"digits": digits.load, "fashion-mnist": fashion_mnist.load}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """``inputs`` is float32 ``[n, *input_shape]``.

    ``labels`` is int64 ``[n]``, classes from 0; of a regression, float32 ``[n, num_outputs]``.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """``num_classes`` is 0 for a regression."""

    train: Split
    validation: Split
    test: Split
    num_classes: int
    loss: Loss = Loss.CROSS_ENTROPY
    #: One for each value of a flattened input, for rules that people read; or nothing.
    feature_names: tuple[str, ...] = ()

    @property
    def num_outputs(self) -> int:
        """How many numbers a network gives for one input."""
        if self.loss is Loss.REGRESSION:
            return int(self.train.labels.shape[1])
        return 1 if self.loss is Loss.BINARY else self.num_classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch dimension."""
        return tuple(self.train.inputs.shape[1:])


def load_dataset(workload: Workload) -> Dataset:
    """The dataset that the workload names. Raises ``ConfigError`` naming the field and what to do."""
    name = workload.dataset
    if is_callable_path(name):
        answer = call(name, workload.dataset_options, source_dir=workload.source_dir, field="dataset")
        return check_dataset(answer, name=name, loss=workload.loss)
    if name not in BUILT_IN:
        raise ConfigError(
            f"dataset is {name!r}: it must be one of {', '.join(BUILT_IN)}, or module:callable",
            code="dataset-unknown",
        )
    return check_dataset(BUILT_IN[name](workload.dataset_options), name=name, loss=workload.loss)


def check_dataset(answer: Any, *, name: str, loss: Loss = Loss.CROSS_ENTROPY) -> Dataset:
    """Check the six arrays of a mapping or object: ``train_inputs``, ``train_labels``, ``validation_...``.

    ``num_classes`` is optional: without it, the highest training label decides. So is ``feature_names``, one
    name for each value of a flattened input.
    """
    splits = {split: _check_split(answer, split, name, loss) for split in SPLITS}
    shape = splits["train"].inputs.shape[1:]
    for split, arrays in splits.items():
        if arrays.inputs.shape[1:] != shape:
            raise _refuse(
                name, f"{split}_inputs", f"holds inputs of shape {arrays.inputs.shape[1:]}, train {shape}"
            )
    if loss is Loss.REGRESSION:
        targets = _check_targets(splits, name)
        return Dataset(
            train=targets["train"],
            validation=targets["validation"],
            test=targets["test"],
            num_classes=0,
            loss=loss,
        )
    num_classes = 2 if loss is Loss.BINARY else _num_classes(answer, splits["train"], name)
    for split, arrays in splits.items():
        _check_labels(arrays.labels, f"{split}_labels", num_classes, name)
    names = _feature_names(answer, math.prod(shape), name)
    return Dataset(
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        num_classes=num_classes,
        loss=loss,
        feature_names=names,
    )


def _check_split(answer: Any, split: str, name: str, loss: Loss) -> Split:
    inputs = _array(answer, f"{split}_inputs", name)
    labels = _array(answer, f"{split}_labels", name)
    if not np.issubdtype(inputs.dtype, np.floating):
        raise _refuse(
            name, f"{split}_inputs", f"is {inputs.dtype}: scale it to about -1..1 and make it float32"
        )
    if inputs.ndim < 2 or 0 in inputs.shape:
        raise _refuse(
            name, f"{split}_inputs", f"has shape {inputs.shape}: it must be [samples, ...], not empty"
        )
    if loss is Loss.REGRESSION:
        if not np.issubdtype(labels.dtype, np.number) or labels.ndim not in (1, 2) or 0 in labels.shape:
            raise _refuse(
                name,
                f"{split}_labels",
                f"is {labels.dtype} of shape {labels.shape}: a regression wants numbers [n] or [n, outputs]",
            )
        labels = labels.reshape(len(labels), -1).astype(np.float32)
    elif not np.issubdtype(labels.dtype, np.integer):
        raise _refuse(name, f"{split}_labels", f"is {labels.dtype}: labels must be integers")
    if len(labels) != len(inputs) or (loss is not Loss.REGRESSION and labels.ndim != 1):
        raise _refuse(
            name, f"{split}_labels", f"has shape {labels.shape}: {split}_inputs wants ({len(inputs)},)"
        )
    if not np.isfinite(inputs).all():
        row = int(np.argwhere(~np.isfinite(inputs))[0][0])
        raise _refuse(name, f"{split}_inputs", f"holds NaN or infinity, first in sample {row}")
    largest = float(max(inputs.max(), -inputs.min()))
    if largest > MAX_INPUT:
        raise _refuse(name, f"{split}_inputs", f"holds values up to {largest:.3g}: scale it to about -1..1")
    return Split(
        inputs=np.ascontiguousarray(inputs, dtype=np.float32),
        labels=labels if loss is Loss.REGRESSION else labels.astype(np.int64, copy=False),
    )


def _array(answer: Any, field: str, name: str) -> NDArray[Any]:
    value = answer.get(field) if isinstance(answer, Mapping) else getattr(answer, field, None)
    if value is None:
        raise _refuse(
            name,
            field,
            "is missing: return a mapping or object with train_inputs, train_labels, "
            "validation_inputs, validation_labels, test_inputs and test_labels",
        )
    try:
        return np.asarray(value)
    except Exception as error:  # any object may come; whatever its conversion raises is its fault
        raise _refuse(name, field, f"cannot become an array: {error}") from error


def _num_classes(answer: Any, train: Split, name: str) -> int:
    given = answer.get("num_classes") if isinstance(answer, Mapping) else getattr(answer, "num_classes", None)
    number = int(train.labels.max()) + 1 if given is None else given
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 2 <= number <= MAX_CLASSES:
        where = "" if given is not None else " (the highest of train_labels and one more)"
        raise _refuse(
            name, "num_classes", f"is {number!r}{where}: it must be a whole number from 2 to {MAX_CLASSES}"
        )
    return int(number)


def _feature_names(answer: Any, num_features: int, name: str) -> tuple[str, ...]:
    given = (
        answer.get("feature_names") if isinstance(answer, Mapping) else getattr(answer, "feature_names", None)
    )
    if given is None or len(given) == 0:
        return ()
    names = tuple(map(str, given))
    if len(names) != num_features:
        raise _refuse(name, "feature_names", f"has {len(names)} names: the inputs have {num_features} values")
    for text in names:
        if not 1 <= len(text) <= MAX_NAME_CHARS or not text.isprintable():
            raise _refuse(
                name, "feature_names", f"has {text[:80]!r}: use 1 to {MAX_NAME_CHARS} printable characters"
            )
    return names


def _check_labels(labels: NDArray[np.int64], field: str, num_classes: int, name: str) -> None:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise _refuse(
            name,
            field,
            f"runs from {labels.min()} to {labels.max()}: with {num_classes} classes, "
            f"labels must lie from 0 to {num_classes - 1}",
        )
    missing = sorted(set(range(num_classes)) - set(np.unique(labels).tolist()))
    if missing:
        raise _refuse(name, field, f"has no sample of class {missing[0]}: each split needs every class")


def _check_targets(splits: dict[str, Split], name: str) -> dict[str, Split]:
    """Labels of a regression. Where they do not vary, there is nothing to explain and no R squared."""
    outputs = splits["train"].labels.shape[1]
    for split, arrays in splits.items():
        labels, field = arrays.labels, f"{split}_labels"
        if labels.shape[1] != outputs:
            raise _refuse(name, field, f"holds {labels.shape[1]} numbers a sample, train {outputs}")
        if not np.isfinite(labels).all():
            row = int(np.argwhere(~np.isfinite(labels))[0][0])
            raise _refuse(name, field, f"holds NaN or infinity, first in sample {row}")
        spread = labels.std(axis=0, dtype=np.float64)
        for output, one in enumerate(spread.tolist()):
            if not MIN_TARGET_SPREAD <= one <= MAX_TARGET_SPREAD:
                raise _refuse(
                    name,
                    field,
                    f"has a standard deviation of {one:.3g} in output {output}: scale it to about 1, "
                    f"from {MIN_TARGET_SPREAD:g} to {MAX_TARGET_SPREAD:g}",
                )
    return splits


def _refuse(name: str, field: str, problem: str) -> ConfigError:
    return ConfigError(f"dataset {name}: {field} {problem}", code="dataset-invalid")
