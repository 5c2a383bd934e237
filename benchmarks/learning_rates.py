"""At which learning rate students learn most in a few epochs, against their teacher's own.

    python -m benchmarks learning_rates [--teachers digits windows ...] [--ratios 0.5 1 2 4] [--seeds 2]

Each teacher is trained at a rate that suits it. For each ratio to that rate: a family of 4 epochs, and what a
cut of it at half and at an eighth of the width reaches; a network of a quarter of the width, pruned from the
teacher and from random weights, distilled for 3 epochs. Validation accuracy in %, mean over seeds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path

import torch
from torch import nn

from cloud.compression.distil import distil
from cloud.compression.family import FamilyTrainer
from cloud.compression.narrow import narrow
from cloud.compression.prune import reinitialise
from cloud.domain.families import FamilySettings
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.training.datasets import Dataset
from cloud.training.teacher import TeacherTrainer, measure_accuracy

ROOT = Path(__file__).parent.parent
#: Small networks of other kinds than the built-in one.
NETWORKS = str(ROOT / "tests/unit/compression")
CPU = torch.device("cpu")
FAMILY_EPOCHS, STUDENT_EPOCHS = 4, 3
CUTS, STUDENT = (0.5, 0.125), 0.25


def on_digits(teacher: str, options: dict[str, int], num_epochs: int, rate: float) -> Workload:
    return Workload(
        name="digits", dataset="digits", dataset_options={"image_size": 16}, source_dir=NETWORKS,
        teacher=f"compression_own_networks:{teacher}", teacher_options={"num_classes": 10, **options},
        training=TrainingBudget(num_epochs=num_epochs, batch_size=32, learning_rate=rate),
    )  # fmt: skip


TEACHERS = {
    "digits": Workload(
        name="digits", dataset="digits", dataset_options={"image_size": 32},
        teacher_options={"base_width": 48, "stem_stride": 2},
        training=TrainingBudget(num_epochs=7, batch_size=32, learning_rate=3e-3, augment_pixels=2),
    ),
    "windows": Workload(
        name="sensor-windows", dataset="sensor_windows:load", dataset_options={"num_windows": 3000},
        teacher="sensor_windows:build", teacher_options={"width": 32},
        source_dir=str(ROOT / "examples/sensor_windows"),
        training=TrainingBudget(num_epochs=8, batch_size=64, learning_rate=4e-3),
    ),
    "mobilenet": on_digits("MobileNet", {}, 12, 4e-3),
    "transformer": on_digits("VisionTransformer", {"width": 64, "size": 16}, 20, 1e-3),
    "transformer-fast": on_digits("VisionTransformer", {"width": 64, "size": 16}, 20, 4e-3),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS), metavar="NAME",
                        help=", ".join(TEACHERS))  # fmt: skip
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    titles = [f"cut {width:g}" for width in CUTS] + [
        f"{road} {STUDENT:g}" for road in ("pruned", "distilled")
    ]
    print("| teacher, its rate and accuracy | ratio | " + " | ".join(titles) + " |")
    print("|---|---|" + "---|" * len(titles), flush=True)
    for name in arguments.teachers:
        workload = TEACHERS[name]
        trainer = TeacherTrainer(workload, device="cpu")
        while trainer.epoch < trainer.num_epochs:
            trainer.run_epoch()
        teacher, dataset = trainer.model.eval(), trainer.dataset
        said = f"{name}, {workload.training.learning_rate:g}, {accuracy(teacher, dataset):.1f}"
        for ratio in arguments.ratios:
            seeds = [reached(workload, teacher, dataset, ratio, seed) for seed in range(arguments.seeds)]
            cells = [f"{statistics.mean(same):.1f}" for same in zip(*seeds, strict=True)]
            print(f"| {said} | {ratio:g} | " + " | ".join(cells) + " |", flush=True)
            said = ""


def reached(workload: Workload, teacher: nn.Module, dataset: Dataset, ratio: float, seed: int) -> list[float]:
    """Accuracy of the cuts, then of the pruned student and of the one from random weights."""
    training, rate = workload.training, ratio * workload.training.learning_rate
    settings = FamilySettings(num_epochs=FAMILY_EPOCHS, learning_rate=rate, seed=seed)
    family = FamilyTrainer(workload, copy.deepcopy(teacher), dataset, settings, key="bench", device="cpu")
    while family.epoch < family.num_epochs:
        family.run_epoch()
    found = [accuracy(family.cut(width), dataset) for width in CUTS]
    for road in (Road.PRUNED, Road.DISTILLED):
        spec = CompressionSpec(road=road, width_ratio=STUDENT, num_epochs=STUDENT_EPOCHS, learning_rate=rate,
                               seed=seed)  # fmt: skip
        student = narrow(copy.deepcopy(teacher), dataset, spec=spec, batch_size=training.batch_size,
                         device=CPU, tune=lambda _network: None)  # fmt: skip
        if road is Road.DISTILLED:
            reinitialise(student, seed)
        distil(student, teacher, dataset, spec=spec, training=training, device=CPU,
               report=lambda *_: None)  # fmt: skip
        found.append(accuracy(student, dataset))
    return found


def accuracy(network: nn.Module, dataset: Dataset) -> float:
    """On the validation split, in %."""
    return 100 * measure_accuracy(network.eval(), dataset.validation, CPU, dataset.loss)


if __name__ == "__main__":
    main()
