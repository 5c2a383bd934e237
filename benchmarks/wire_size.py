"""What an int8 student weighs on the wire, packed, against its ONNX file: by sparsity, and at 4 bits.

One teacher; for each row and seed the same student (full width, so that nothing but the values of its weights
changes), distilled for the same number of epochs, quantised to int8 and scored through the agent's runtime.
Each packed file is unpacked and compared. Beside it stands what general compressors make of the file as a
whole, each at its strongest. ``python -m benchmarks.wire_size [--seeds 3] [--methods]``
"""

from __future__ import annotations

import argparse
import lzma
import statistics
import time
import zlib

import numpy as np
import torch
from torch import nn

from cloud.compression import evaluate
from cloud.compression.build import calibration_samples, export_verified, finish_teacher
from cloud.compression.pack import executable_of, ship
from cloud.compression.quantise import quantise
from cloud.compression.roads import make_student
from cloud.compression.sparsify import prunable
from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.sparsity import Scope, SparsitySpec, WeightImportance
from cloud.domain.specs import CompressionSpec
from cloud.domain.tasks import StudentTask
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.registry import Registry
from cloud.training.datasets import load_dataset
from cloud.training.teacher import TeacherTrainer

GOAL_RATIO, GOAL_LOSS = 0.6, 0.003


@torch.no_grad()
def round_weights(model: nn.Module, bits: int) -> None:
    """To 2^bits - 1 levels a channel, the nearest, without training. Zero is one of them."""
    top = 2 ** (bits - 1) - 1
    for weight in prunable(model).values():
        scale = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / top
        scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
        weight.copy_((weight / scale).round() * scale)


Row = tuple[str, SparsitySpec | None, int | None]


def rows_by_method() -> list[Row]:
    """Each way to choose weights, at two sparsities."""
    found: list[Row] = [("dense", None, None)]
    for ratio in (0.75, 0.9):
        for importance in WeightImportance:
            for scope in Scope:
                spec = SparsitySpec(ratio=ratio, importance=importance, scope=scope)
                found.append((f"{importance}, {scope} {ratio:.0%}", spec, None))
    return found


def rows_by_size() -> list[Row]:
    """(name, sparsity, bits of the weights)."""
    return [
        ("dense", None, None),
        ("50 % zeros", SparsitySpec(ratio=0.5), None),
        ("75 % zeros", SparsitySpec(ratio=0.75), None),
        ("90 % zeros", SparsitySpec(ratio=0.9), None),
        ("2:4", SparsitySpec(ratio=0.5, pattern="2:4"), None),
        ("4 bits", None, 4),
        ("4 bits, 75 % zeros", SparsitySpec(ratio=0.75), 4),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="digits", help="digits or fashion-mnist")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--methods", action="store_true", help="compare what chooses the weights instead")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    workload = Workload(
        name="wire-size",
        dataset=options.dataset,
        training=TrainingBudget(num_epochs=options.teacher_epochs),
    )
    dataset = load_dataset(workload)
    trainer = TeacherTrainer(workload, dataset, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    blobs = Registry("memory://benchmark-wire_size")
    result = finish_teacher(workload, trainer, registry=blobs)
    teacher = trainer.model.eval()
    print(f"{options.dataset}, teacher {result.accuracy:.2%} validation, {result.test_accuracy:.2%} test")
    print(f"{options.epochs} epochs a student, {options.seeds} seed(s), int8 with 7-bit weights")
    heads = (
        "weights",
        "int8 ONNX",
        "packed",
        "ratio",
        "zlib",
        "xz",
        "validation",
        "test",
        "change",
        "unpack",
    )
    print("".join(f"{head:>{22 if n == 0 else 11}}" for n, head in enumerate(heads)))
    dense_accuracy = 0.0
    profile = DeviceProfile(name="any", workload=workload.name, match=MatchRule())
    for name, sparsity, bits in rows_by_method() if options.methods else rows_by_size():
        found = []
        for seed in range(options.seeds):
            spec = CompressionSpec(
                width_ratio=1.0,
                num_epochs=options.epochs,
                seed=seed,
                sparsity=sparsity or SparsitySpec(ratio=0.0),
            )
            task = StudentTask(task_id="", workload=workload, teacher=result, profile=profile, spec=spec)
            student = make_student(task, teacher, dataset, device=torch.device("cpu"), report=lambda *_: None)
            if bits is not None:
                round_weights(student, bits)
            samples = calibration_samples(dataset, 256, seed)
            int8 = quantise(export_verified(student, dataset), samples, reduced_range=True)
            packed = ship(int8).data
            start = time.perf_counter()
            assert executable_of(packed) == int8
            unpack_ms = (time.perf_counter() - start) * 1e3
            runtime = evaluate.load(packed)
            scores = [
                evaluate.accuracy(runtime, split.inputs, split.labels)
                for split in (dataset.validation, dataset.test)
            ]
            squeezed = [len(zlib.compress(int8, 9)), len(lzma.compress(int8, preset=9 | lzma.PRESET_EXTREME))]
            found.append([len(int8), len(packed), *squeezed, *scores, unpack_ms])
        size, packed_size, zlib_size, xz_size, validation, test, unpack_ms = np.mean(found, axis=0)
        both = (validation + test) / 2
        dense_accuracy = both if name == "dense" else dense_accuracy
        change = both - dense_accuracy
        ratio = packed_size / size
        met = "  met" if ratio <= GOAL_RATIO and change >= -GOAL_LOSS else ""
        print(
            f"{name:>22}{size:>11.0f}{packed_size:>11.0f}{ratio:>11.3f}{zlib_size / size:>11.3f}"
            f"{xz_size / size:>11.3f}{validation:>11.2%}{test:>11.2%}{change * 100:>+11.2f}"
            f"{unpack_ms:>8.1f} ms{met}",
            flush=True,
        )
        if options.seeds > 1:
            spread = statistics.stdev((row[4] + row[5]) / 2 for row in found)
            print(f"{'':>22}spread of the accuracy over seeds: {spread * 100:.2f} points")
    print(f"goal: ratio at most {GOAL_RATIO}, change at least {-GOAL_LOSS * 100:+.1f} points")
    print(f"took {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
