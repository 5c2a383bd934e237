"""Students that are not simply narrower, beside narrower ones, on a small Fashion-MNIST teacher.

    python -m benchmarks students [--part depth|own|chains] [--seeds 3] [--epochs 8] [--num-train 8000]

Three questions, each with a small teacher on a sixth of the data, so that answers take minutes:

- ``depth``: how far behind a student of its own a cut of a family of several depths is, and whether the
  second depth costs the cuts of full depth anything. The peer has as many epochs as the family had.
- ``own``: what small networks of one's own reach beside the teacher made narrower, at what latency.
- ``chains``: a student without shortcuts beside a narrower one with them, with few epochs and with more.

Each student is timed in turns with the teacher's int8 (ONNX Runtime, one thread, batch 1, medians of several
sessions), and its speed is the ratio to it. Figures come from the test split. Everything
trained is kept in ``--cache``.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.compression import Bench, forms, keep_answers, prepared, speeds, taught, trained_as
from benchmarks.compression_table import Entry, spread
from benchmarks.compression_teacher import CPU, Settings, named, say
from cloud.compression import evaluate
from cloud.compression.depth import as_deep_as, without_shortcuts
from cloud.compression.family import FamilyTrainer
from cloud.compression.narrow import narrow
from cloud.domain.families import FamilySettings
from cloud.domain.specs import CompressionSpec, Road
from edgeloop.errors import EdgeloopError

DEPTH = 0.5
WIDTHS = (0.5, 0.25)
#: Widths of the teacher's own students beside which others stand.
NARROWER = (0.5, 0.375, 0.3125, 0.25, 0.125)
#: A chain and the narrower student that it stands against.
CHAINS = ((0.4375, 0.3125), (0.375, 0.25))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="all three when left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8, help="of the teacher, and of students")
    parser.add_argument("--family-epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, help="of students; twice the teacher's when left out")
    parser.add_argument("--num-train", type=int, default=8_000, help="training images; 0: all 50,000")
    parser.add_argument("--bfloat16", action="store_true", help="train so: see docs/search.md")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT", help="of part own: names that hold it"
    )
    parser.add_argument("--cache", type=Path, default=Path("out/bench-students"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        for part in arguments.part or PARTS:
            bench = prepared(settings_of(arguments, part), arguments.cache)
            seeds = [kept_figures(bench, part, seed, arguments.only) for seed in range(arguments.seeds)]
            print(f"\n{part}: {json.dumps(bench.settings.identity())}, {len(seeds)} seeds")
            report(seeds)
    except EdgeloopError as error:
        print(f"benchmarks.students: {error.message}", file=sys.stderr)
        return 2
    return 0


def settings_of(arguments: argparse.Namespace, part: str) -> Settings:
    """For depths a teacher of six branches, for the rest a wider one of three."""
    return Settings(
        num_epochs=arguments.epochs, family_epochs=arguments.family_epochs, family_widest=1.0,
        refine_epochs=2, finish_epochs=arguments.epochs, sparse_epochs=0, sparse_ratio=0.0,
        num_train=arguments.num_train,
        base_width=16 if part == "depth" else 32, bfloat16=arguments.bfloat16, widths=NARROWER,
        refined_widths=(), finished_widths=(), num_blocks=2 if part == "depth" else 1,
        teacher_bfloat16=arguments.bfloat16, learning_rate=arguments.learning_rate,
    )  # fmt: skip


def kept_figures(bench: Bench, part: str, seed: int, only: Sequence[str]) -> list[dict[str, Any]]:
    """What a seed of a part gave, measured now unless it was before."""
    path = bench.cache / f"{part}-{named(bench.settings.identity(), only, seed)}.json"
    if not path.exists():
        say(f"{part}, seed {seed}")
        entries = forms("teacher", "teacher", 1.0, bench.teacher, bench.dataset, 0.0)
        entries += PARTS[part](bench, seed, only)
        test = bench.dataset.test
        found = [
            {
                "name": f"{entry.name}, {entry.precision}",
                "test": 100 * evaluate.accuracy(evaluate.load(entry.data), test.inputs, test.labels),
                "faster": faster,
                "smaller": len(entries[1].data) / len(entry.data),
                "cpu_s": entry.cpu_s,
            }
            for entry, faster in zip(entries, speeds(entries, bench.dataset)[1], strict=True)
        ]
        path.write_text(json.dumps(found, indent=2))
        keep_answers(bench)
    figures: list[dict[str, Any]] = json.loads(path.read_text())
    return figures


def report(seeds: Sequence[list[dict[str, Any]]]) -> None:
    """Each student over the seeds."""
    print(f"{'student':42} {'test %':>24} {'faster':>24} {'smaller':>8} {'CPU s':>6}")
    for same in zip(*seeds, strict=True):
        mean = {key: statistics.mean(one[key] for one in same) for key in ("smaller", "cpu_s")}
        print(f"{same[0]['name']:42} {spread([one['test'] for one in same], ''):>24} "
              f"{spread([one['faster'] for one in same], 'x'):>24} {mean['smaller']:7.2f}x "
              f"{mean['cpu_s']:6.1f}")  # fmt: skip


def student_of(bench: Bench, name: str, spec: CompressionSpec) -> list[Entry]:
    """One of the teacher's own students, made and taught as ``spec`` says."""
    dataset, training = bench.dataset, bench.lessons
    network = as_deep_as(spec, copy.deepcopy(bench.teacher), dataset, training, CPU)
    network = without_shortcuts(spec, network, dataset.input_shape)
    network = narrow(
        network, dataset, spec=spec, batch_size=training.batch_size, device=CPU, tune=lambda _network: None
    )
    student, spent = taught(bench, "student", network, spec)
    return forms(name, "student", spec.width_ratio, student, dataset, spent["cpu_s"])


def pruned(bench: Bench, seed: int, width: float, **changes: Any) -> CompressionSpec:
    spec = CompressionSpec(
        road=Road.PRUNED, width_ratio=width, num_epochs=bench.settings.num_epochs, seed=seed
    )
    return replace(spec, **changes)


# -- depth -------------------------------------------------------------------------------------------------


def depths(bench: Bench, seed: int, _only: Sequence[str]) -> list[Entry]:
    """Cuts of a family of two depths and of one, as they are and refined, beside students of their own."""
    entries: list[Entry] = []
    settings = bench.settings
    for several in (True, False):
        family, cpu_s = trained_family(bench, seed, (DEPTH,) if several else ())
        for depth in (None, DEPTH) if several else (None,):
            for width in WIDTHS:
                what = f"{depth or 1:g} deep {width:g} wide"
                of = "family of 1 and 0.5" if several else "family of 1"
                student = family.cut(width, depth)
                entries += forms(f"{what}, cut, {of}", "cut", width, student, bench.dataset, cpu_s)
                if several:
                    spec = CompressionSpec(road=Road.ELASTIC, width_ratio=width, depth_ratio=depth, seed=seed,
                                           num_epochs=settings.refine_epochs)  # fmt: skip
                    refined, spent = taught(bench, "refined", family.cut(width, depth), spec)
                    entries += forms(f"{what}, cut, refined", "cut", width, refined, bench.dataset,
                                     spent["cpu_s"])  # fmt: skip
    for depth in (None, DEPTH):
        for width in WIDTHS:
            spec = pruned(bench, seed, width, depth_ratio=depth, num_epochs=settings.family_epochs)
            entries += student_of(bench, f"{depth or 1:g} deep {width:g} wide, its own", spec)
    return entries


def trained_family(bench: Bench, seed: int, depth_ratios: tuple[float, ...]) -> tuple[FamilyTrainer, float]:
    how = FamilySettings(num_epochs=bench.settings.family_epochs, seed=seed, depth_ratios=depth_ratios,
                         learning_rate=bench.learning_rate)  # fmt: skip
    key = named(bench.workload.teacher_key, bench.settings.bfloat16, how.identity())
    return trained_as(bench, how, key)


# -- networks of one's own ---------------------------------------------------------------------------------


def strided(width: int) -> nn.Module:
    """Three convolutions that each halve the image, and a linear layer: five calls."""
    layers: list[nn.Module] = []
    channels = 1
    for number, kernel in enumerate((5, 3, 3)):
        layers += [*convolution(channels, width * 2**number, kernel, 2)]
        channels = width * 2**number
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 16, 10))


def separable(width: int) -> nn.Module:
    """A strided convolution, then two depthwise ones of stride 2, each with a pointwise one: seven calls."""
    layers = [*convolution(1, width, 5, 2)]
    for channels in (width, 2 * width):
        layers += [*convolution(channels, channels, 3, 2, groups=channels)]
        layers += [*convolution(channels, 2 * channels, 1, 1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 16, 10))


def convolution(
    in_channels: int, channels: int, kernel: int, stride: int, groups: int = 1
) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


OWN: tuple[tuple[str, Callable[[int], nn.Module], int], ...] = (
    ("strided 16", strided, 16),
    ("strided 24", strided, 24),
    ("strided 32", strided, 32),
    ("strided 48", strided, 48),
    ("separable 32", separable, 32),
    ("separable 64", separable, 64),
)


def own(bench: Bench, seed: int, only: Sequence[str]) -> list[Entry]:
    """Small networks taught by the teacher, beside the teacher made narrower and taught for as long."""

    def is_wanted(name: str) -> bool:
        return not only or any(text in name for text in only)

    entries: list[Entry] = []
    for width in NARROWER:
        if is_wanted(f"teacher {width:g} wide"):
            entries += student_of(bench, f"teacher {width:g} wide", pruned(bench, seed, width))
    for name, make, width in OWN:
        if not is_wanted(name):
            continue
        torch.manual_seed(seed)
        spec = CompressionSpec(road=Road.DISTILLED, width_ratio=1.0, num_epochs=bench.settings.num_epochs,
                               seed=seed)  # fmt: skip
        student, spent = taught(bench, name.replace(" ", "-"), make(width), spec)
        entries += forms(name, "own", 1.0, student, bench.dataset, spent["cpu_s"])
    return entries


# -- without shortcuts -------------------------------------------------------------------------------------


def chains(bench: Bench, seed: int, _only: Sequence[str]) -> list[Entry]:
    """Wider students without shortcuts beside narrower ones with them, for half the epochs and for all."""
    entries: list[Entry] = []
    for num_epochs in (
        bench.settings.num_epochs // 2,
        bench.settings.num_epochs,
        2 * bench.settings.num_epochs,
    ):
        for plain, whole in CHAINS:
            for width, shortcuts in ((plain, False), (whole, None)):
                spec = pruned(bench, seed, width, num_epochs=num_epochs, shortcuts=shortcuts)
                what = "chain" if shortcuts is False else "with shortcuts"
                entries += student_of(bench, f"{what} {width:g} wide, {num_epochs} epochs", spec)
    return entries


PARTS: dict[str, Callable[[Bench, int, Sequence[str]], list[Entry]]] = {
    "depth": depths,
    "own": own,
    "chains": chains,
}


if __name__ == "__main__":
    sys.exit(main())
