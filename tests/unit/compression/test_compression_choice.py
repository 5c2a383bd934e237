"""Which of the built forms ships, and what goes along with it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from cloud.compression import evaluate
from cloud.compression.choose import choose_precision, reject_against_parent
from cloud.compression.evaluate import measure_peak_rss
from cloud.domain.specs import Precision
from edgeloop.errors import TransientError

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own to measure memory costs a second each time: only the tests about it pay for it."""
    monkeypatch.setattr(evaluate, "measure_peak_rss", lambda data: 60_000_000)


@pytest.mark.parametrize(
    ("fp32", "int8", "slowdown", "wanted"),
    [
        (0.95, 0.95, 0.6, Precision.INT8),
        (0.95, 0.95, 1.04, Precision.INT8),
        (0.95, 0.95, 1.2, Precision.FP32),
        (0.95, 0.93, 0.6, Precision.FP32),
        (0.95, 0.945, 0.6, Precision.INT8),
    ],
    ids=["faster", "within-noise-the-smaller", "slower", "accuracy-drops", "accuracy-within-tolerance"],
)
def test_the_precision_that_measures_better_is_chosen(
    fp32: float, int8: float, slowdown: float, wanted: Precision
) -> None:
    chosen = choose_precision(fp32_accuracy=fp32, int8_accuracy=int8, int8_slowdown_ratio=slowdown)
    assert chosen is wanted


def test_a_wider_student_may_be_slower() -> None:
    assert reject_against_parent(slowdown_ratio=1.4, num_weights=200, parent_num_weights=100) == ""
    assert "40.0% slower" in reject_against_parent(
        slowdown_ratio=1.4, num_weights=100, parent_num_weights=100
    )


def test_golden_samples_stay_within_their_bytes() -> None:
    class Wide:
        input_shape = (0, 3, 64, 64)

        def run(self, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return inputs.reshape(len(inputs), -1)[:, :5].copy()

    inputs = np.random.default_rng(0).normal(size=(9, 3, 64, 64)).astype(np.float32)
    golden = evaluate.golden_samples(Wide(), inputs, "fp32")  # type: ignore[arg-type]  # only run() is used
    assert len(golden.inputs) == 1
    assert golden.inputs.nbytes + golden.outputs.nbytes <= evaluate.MAX_GOLDEN_BYTES


def test_the_measuring_process_that_dies_is_said() -> None:
    with pytest.raises(TransientError, match="measures memory failed"):
        measure_peak_rss(b"no onnx")


def test_evaluation_imports_no_torch() -> None:
    code = "import sys, cloud.compression.evaluate; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ)).returncode == 0
