"""A workload that trains in no time, and can be told to hold, to fail and to leave traces.

It is imported by workers, from ``source_dir``, as a user's own code would be.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

CLASSES = 4


def load(
    trace: str = "", hold_s: float = 0.0, num_holds: int = 0, fail: str = "", import_path: str = ""
) -> dict[str, Any]:
    """Write the process id to ``trace``; the first ``num_holds`` calls then sleep.

    From where modules are imported is written to ``import_path``.
    """
    num_calls = 0
    if import_path:
        Path(import_path).write_text("\n".join(sys.path))
    if trace:
        with Path(trace).open("a+") as stream:
            stream.write(f"{os.getpid()}\n")
            stream.flush()
            stream.seek(0)
            num_calls = len(stream.readlines())
    if num_calls <= num_holds:
        time.sleep(hold_s)
    if fail:
        raise ValueError(fail)
    rng = np.random.default_rng(0)
    answer: dict[str, Any] = {"num_classes": CLASSES}
    for split, count in (("train", 64), ("validation", 32), ("test", 32)):
        labels = np.arange(count) % CLASSES
        noise = rng.normal(size=(count, 1, 8, 8)) * 0.1
        answer[f"{split}_inputs"] = (noise + labels[:, None, None, None] - 1.5).astype(np.float32)
        answer[f"{split}_labels"] = labels
    return answer


class SlowNet(nn.Module):
    """Each training step takes ``step_s`` at least on any machine, and adds a line to ``trace``."""

    def __init__(self, step_s: float, trace: str) -> None:
        super().__init__()
        self.step_s = step_s
        self.trace = trace
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(self.step_s)
            if self.trace:
                with Path(self.trace).open("a") as stream:
                    stream.write("step\n")
        features: torch.Tensor = torch.relu(self.norm(self.stem(inputs)))
        answer: torch.Tensor = self.head(features.mean(dim=(2, 3)))
        return answer


def slow(step_s: float = 0.1, trace: str = "") -> nn.Module:
    return SlowNet(step_s, trace)
