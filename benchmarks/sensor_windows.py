"""What compression is worth on sensor windows: a 1-D CNN and an MLP, beside the teacher's own int8 form.

    python -m benchmarks.sensor_windows [--seeds 3] [--windows 3000]

The data are SYNTHETIC: the simulated vibration of ``examples/sensor_windows`` (a rotating machine, three
axes, 256 samples, four classes; the MLP gets their spectra); nothing was recorded, nothing is downloaded. A
seed draws other windows and other weights. For each teacher the students that a search builds (widths by
pruning and by distilling, in fp32 and int8, whichever measures better) compete; validation decides which is
the fastest of those within half a point, and within one point, of the teacher's fp32; test is reported. The
peer is the teacher by onnxruntime's ``quantize_static`` (per channel, reduced range). Everything runs
through the agent's runtime, one thread, batch 1, interleaved with the peer in the same run; sizes are of
the files as they go over the wire, the peer's unpacked, as onnxruntime leaves it. Minutes on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from cloud.compression import evaluate
from cloud.compression.build import build_student, calibration_samples, finish_teacher
from cloud.compression.quantise import quantise
from cloud.domain.candidates import Candidate
from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.tasks import StudentTask
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.registry import Registry
from cloud.training.teacher import TeacherTrainer

EXAMPLE = Path(__file__).parents[1] / "examples" / "sensor_windows"
#: Both are built by the example's own module.
TEACHERS = {"1-D CNN": "sensor_windows:build", "MLP": "sensor_windows:build_mlp"}
WIDTHS = (0.5, 0.25, 0.125)
ROADS = (Road.PRUNED, Road.DISTILLED)
#: Points under the teacher's fp32, and the goals there: times faster, times smaller than its int8.
GOALS = {0.5: (2.5, 4.0), 1.0: (5.0, 10.0)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One student against its teacher's int8; ``points`` are lost on the test split, negative where won."""

    points: float
    speedup: float
    smaller: float
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One teacher and seed. Accuracies are percentages on the test split, times microseconds."""

    teacher: float
    int8: float
    teacher_us: float
    int8_us: float
    teacher_bytes: int
    int8_bytes: int
    best: dict[float, Found | None]


def main() -> None:
    parser = argparse.ArgumentParser(description="compression on simulated sensor windows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=3000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| | goal | " + " | ".join(TEACHERS) + " |\n|---|---|" + "---|" * len(TEACHERS))
    found = {
        name: [measure(path, seed, arguments.windows) for seed in range(arguments.seeds)]
        for name, path in TEACHERS.items()
    }
    for title, goal, cells in _rows(found):
        print(f"| {title} | {goal} | " + " | ".join(cells) + " |")


def measure(teacher_path: str, seed: int, num_windows: int) -> Measured:
    """Train, build, and time all of it together."""
    workload = Workload(
        name="sensor-windows",
        dataset="sensor_windows:load",
        dataset_options={"num_windows": num_windows, "seed": seed, "spectrum": teacher_path.endswith("mlp")},
        teacher=teacher_path,
        source_dir=str(EXAMPLE),
        training=TrainingBudget(num_epochs=10, batch_size=64, learning_rate=4e-3, seed=seed),
    )
    with tempfile.TemporaryDirectory(prefix="el-bench-") as folder:
        registry = Registry(folder)
        trainer = TeacherTrainer(workload, device="cpu")
        while trainer.epoch < trainer.num_epochs:
            trainer.run_epoch()
        teacher = finish_teacher(workload, trainer, registry=registry)
        dataset = trainer.dataset
        fp32 = registry.get(teacher.artifact_digest)
        int8 = quantise(fp32, calibration_samples(dataset, 256, seed), reduced_range=True)
        profile = DeviceProfile(name="gateway", workload=workload.name, match=MatchRule())
        students: list[Candidate] = []
        for width in WIDTHS:
            for road in ROADS:
                spec = CompressionSpec(road=road, width_ratio=width, num_epochs=6, seed=seed)
                task = StudentTask(
                    task_id="student", workload=workload, teacher=teacher, profile=profile, spec=spec
                )
                students.append(
                    build_student(
                        task, registry=registry, report=lambda *_: None, dataset=dataset, device="cpu"
                    )
                )
        artifacts = [fp32, int8, *(registry.get(student.digest) for student in students)]
    runtimes = [evaluate.load(data) for data in artifacts]
    timing = evaluate.time_artifacts(runtimes, dataset.validation.inputs[:1])
    peer = evaluate.accuracy(runtimes[1], dataset.test.inputs, dataset.test.labels)

    def best(points: float) -> Found | None:
        able = [
            index
            for index, student in enumerate(students)
            if student.metrics.accuracy >= teacher.accuracy - points / 100
        ]
        if not able:
            return None
        chosen = min(able, key=lambda index: timing.p50_ms(index + 2))
        student = students[chosen]
        return Found(
            points=100 * (teacher.test_accuracy - student.metrics.test_accuracy),
            speedup=timing.p50_ms(1) / timing.p50_ms(chosen + 2),
            smaller=len(int8) / student.metrics.artifact_bytes,
            what=f"{student.spec.road} {student.spec.width_ratio:g} {student.precision}",
        )

    return Measured(
        teacher=100 * teacher.test_accuracy,
        int8=100 * peer,
        teacher_us=1000 * timing.p50_ms(0),
        int8_us=1000 * timing.p50_ms(1),
        teacher_bytes=len(fp32),
        int8_bytes=len(int8),
        best={points: best(points) for points in GOALS},
    )


def _rows(found: dict[str, list[Measured]]) -> list[tuple[str, str, list[str]]]:
    """(what, goal, one cell a teacher)."""
    every = list(found.values())
    rows = [
        ("teacher fp32, test", "-", [_spread([m.teacher for m in runs], "%") for runs in every]),
        (
            "teacher int8 (quantize_static), test",
            "-",
            [_spread([m.int8 for m in runs], "%") for runs in every],
        ),
        ("teacher fp32 / int8, p50 us", "-", [_both(runs, "teacher_us", "int8_us") for runs in every]),
        ("teacher fp32 / int8, bytes", "-", [_both(runs, "teacher_bytes", "int8_bytes") for runs in every]),
    ]
    for points, (speed, size) in GOALS.items():
        per_teacher = [[m.best[points] for m in runs] for runs in every]
        rows.append(
            (f"at most {points:g} points under it (validation)", "-", [_what(p) for p in per_teacher])
        )
        for title, goal, field, unit in (
            ("    points lost, test", "-", "points", ""),
            ("    faster than quantize_static", f"{speed:g}x", "speedup", "x"),
            ("    smaller than quantize_static", f"{size:g}x", "smaller", "x"),
        ):
            cells = [_spread([getattr(f, field) for f in p if f is not None], unit) for p in per_teacher]
            rows.append((title, goal, cells))
    return rows


def _spread(values: list[float], unit: str) -> str:
    """Median, and the least and most over seeds."""
    if not values:
        return "none"
    return f"{statistics.median(values):.2f}{unit} ({min(values):.2f} to {max(values):.2f})"


def _both(runs: list[Measured], first: str, second: str) -> str:
    return " / ".join(f"{statistics.median(getattr(m, name) for m in runs):.0f}" for name in (first, second))


def _what(students: list[Found | None]) -> str:
    return ", ".join("none" if student is None else student.what for student in students)


if __name__ == "__main__":
    main()
