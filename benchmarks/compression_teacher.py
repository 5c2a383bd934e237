"""The teacher of the compression benchmarks: its data, how it is trained, and that it is trained once.

What is kept lies in a cache, by what it depends on; a training that was killed goes on after its last epoch.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cloud.domain.workloads import STUDENT_RATE_RATIO, TrainingBudget, Workload
from cloud.training import checkpoints
from cloud.training.datasets import Dataset
from cloud.training.networks import build_teacher
from cloud.training.teacher import TeacherTrainer, measure_accuracy

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All that figures depend on."""

    num_epochs: int
    family_epochs: int
    family_widest: float
    refine_epochs: int
    finish_epochs: int
    sparse_epochs: int
    sparse_ratio: float
    num_train: int
    base_width: int
    bfloat16: bool
    widths: tuple[float, ...]
    refined_widths: tuple[float, ...]
    finished_widths: tuple[float, ...]
    num_blocks: int = 1
    teacher_bfloat16: bool = False
    qat_epochs: int = 0
    learning_rate: float | None = None

    def identity(self) -> dict[str, Any]:
        """What figures are kept by: what came later counts only where it is not at its default."""
        values = asdict(self)
        later = {"num_blocks": 1, "teacher_bfloat16": False, "qat_epochs": 0}
        how = {"student_rate_ratio": STUDENT_RATE_RATIO, "timed": "in pairs"}
        return how | {name: value for name, value in values.items() if value != later.get(name)}


def workload_of(settings: Settings) -> Workload:
    """The data and the teacher."""
    options = {"base_width": settings.base_width, "stem_stride": 2}
    if settings.num_blocks != 1:
        options["num_blocks"] = settings.num_blocks
    return Workload(
        name="fashion-mnist",
        dataset="fashion-mnist",
        dataset_options={"num_train": settings.num_train},
        teacher_options=options,
        training=TrainingBudget(num_epochs=settings.num_epochs, batch_size=128, learning_rate=4e-3,
                                augment_pixels=2, augment_flip=True, bfloat16=settings.teacher_bfloat16,
                                seed=0),
    )  # fmt: skip


def trained_teacher(workload: Workload, dataset: Dataset, cache: Path) -> tuple[nn.Module, float]:
    path = cache / f"teacher-{workload.teacher_key}.pt"
    if path.exists():
        state = checkpoints.from_bytes(path.read_bytes())
        teacher = build_teacher(workload, dataset)
        teacher.load_state_dict(state["model"])
        return teacher.eval(), float(state["cpu_s"])
    cpu_s, halfway = 0.0, path.with_suffix(".unfinished")
    trainer = TeacherTrainer(workload, dataset)
    if halfway.exists():
        state = checkpoints.from_bytes(halfway.read_bytes())
        trainer.load_state_dict(state["trainer"])
        cpu_s = float(state["cpu_s"])
    while trainer.epoch < trainer.num_epochs:
        began_s = time.process_time()
        trainer.run_epoch(ticker("teacher"))
        cpu_s += time.process_time() - began_s
        keep(halfway, {"trainer": trainer.state_dict(), "cpu_s": cpu_s})
    halfway.unlink(missing_ok=True)
    keep(path, {"model": trainer.model.cpu().state_dict(), "cpu_s": cpu_s})
    accuracy = measure_accuracy(trainer.model, dataset.validation, CPU)
    say(f"teacher: {accuracy:.2%} on the validation split after {cpu_s:.0f} CPU-s")
    return trainer.model.eval(), cpu_s


def named(*what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def keep(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_bytes(checkpoints.to_bytes(state))
    temporary.replace(path)


def ticker(what: str) -> Callable[[float, str], None]:
    """Says each finished epoch."""

    def tick(_fraction: float, text: str) -> None:
        if "accuracy" in text or "narrowest" in text:
            say(f"{what}: {text}")

    return tick


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
