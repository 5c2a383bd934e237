"""Students of fewer layers on Fashion-MNIST, beside the narrower ones of ``benchmarks.compression``.

    python -m benchmarks.compression_depth [--seeds 3] [--report] [--students 0.34:0.5 1:0.375:plain]

Each student is the teacher of that benchmark without the branches that matter least (``depth_ratio``), then
with the most important of its channels (``width_ratio``), and is *finished* as that benchmark finishes
students: distilled for ``--finish-epochs`` epochs. A *plain* one has lost its shortcuts, too. With
``--qat-epochs`` the student is trained for int8 afterwards. Choices are made on the validation split, figures
come from the test split. Each student is timed interleaved with the teacher's int8: ONNX Runtime, one thread,
batch 1, medians; speeds are ratios to it, and so they may stand beside those that another session measured.

Options and cache are those of ``benchmarks.compression``. ``--latency`` trains nothing: it prints what
students of many depths and widths would take.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.compression import (
    Bench,
    arguments_of,
    forms,
    keep_answers,
    measure,
    prepared,
    seed_path,
    settings_of,
    taught,
)
from benchmarks.compression_table import Entry, Row, spread
from benchmarks.compression_teacher import CPU, named, ticker
from cloud.compression import evaluate
from cloud.compression.branches import find_branches
from cloud.compression.build import calibration_samples, export_verified
from cloud.compression.cost import measure_cost
from cloud.compression.depth import as_deep_as, without_shortcuts
from cloud.compression.fake_quantise import quantise_network
from cloud.compression.int8_scales import quantise_network_int8
from cloud.compression.narrow import narrow
from cloud.compression.qat import train_int8
from cloud.domain.quantisation import QuantisationSpec
from cloud.domain.specs import CompressionSpec, Road
from edgeloop.errors import EdgeloopError

#: DEPTH:WIDTH of the students that are trained unless others are named.
STUDENTS = ("0.67:0.4375", "0.34:0.5", "0.34:0.375")
#: Those that are timed untrained unless others are named.
TIMED = tuple(
    f"{depth}:{width}{plain}"
    for plain in ("", ":plain") for depth in (1.0, 0.67, 0.34) for width in (0.5, 0.3125, 0.125)
)  # fmt: skip
#: Peak learning rate of the training for int8: it starts from a finished student.
QAT_LEARNING_RATE = 5e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What is left of the teacher."""

    depth: float
    width: float
    plain: bool

    @classmethod
    def of(cls, text: str) -> Shape:
        """From ``DEPTH:WIDTH`` or ``DEPTH:WIDTH:plain``. Raises what argparse shows."""
        depth, _, rest = text.partition(":")
        width, _, plain = rest.partition(":")
        try:
            if plain not in ("", "plain"):
                raise ValueError
            return cls(depth=float(depth), width=float(width), plain=bool(plain))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r}: it must be DEPTH:WIDTH or DEPTH:WIDTH:plain, such as 1:0.4375:plain"
            ) from None

    def __str__(self) -> str:
        return f"{self.depth:g} deep, {self.width:g} wide" + (", plain" if self.plain else "")

    @property
    def identity(self) -> list[float | str]:
        """What figures are kept by."""
        return [self.depth, self.width, *(["plain"] if self.plain else [])]


def main() -> int:
    parser = arguments_of((__doc__ or "").splitlines()[0])
    parser.add_argument("--students", nargs="+", type=Shape.of, metavar="DEPTH:WIDTH[:plain]")
    parser.add_argument("--qat-epochs", type=int, default=0, help="of training for int8 afterwards")
    parser.add_argument("--latency", action="store_true", help="time untrained students, train nothing")
    arguments = parser.parse_args()
    usual = settings_of(arguments)
    settings = replace(usual, qat_epochs=arguments.qat_epochs)
    shapes = arguments.students or [Shape.of(text) for text in (TIMED if arguments.latency else STUDENTS)]
    torch.set_num_threads(1)
    try:
        bench = None if arguments.report else prepared(settings, arguments.cache)
        if bench is not None and arguments.latency:
            latencies(bench, shapes)
            return 0
        found = []
        for seed in range(arguments.seeds):
            for shape in shapes:
                name = named(settings.identity(), shape.identity, seed)
                path: Path = arguments.cache / f"shortened-{name}.json"
                if bench is not None and not path.exists():
                    path.write_text(json.dumps(run_student(bench, shape, seed), indent=2))
                if path.exists():
                    found.append(json.loads(path.read_text()))
        paths = [seed_path(arguments.cache, usual, seed) for seed in range(arguments.seeds)]
        narrower = [json.loads(path.read_text()) for path in paths if path.exists()]
    except EdgeloopError as error:
        print(f"benchmarks.compression_depth: {error.message}", file=sys.stderr)
        return 2
    print(f"\nconfiguration: {json.dumps(settings.identity())}")
    report(found, narrower)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
    return 0


def made(bench: Bench, shape: Shape, seed: int) -> tuple[nn.Module, CompressionSpec]:
    """The untrained student, and how it is to be trained."""
    settings, training, dataset = bench.settings, bench.lessons, bench.dataset
    spec = CompressionSpec(road=Road.PRUNED, depth_ratio=shape.depth, width_ratio=shape.width, seed=seed,
                           num_epochs=settings.finish_epochs, shortcuts=not shape.plain)  # fmt: skip
    network = as_deep_as(spec, copy.deepcopy(bench.teacher), dataset, training, CPU)
    network = without_shortcuts(spec, network, dataset.input_shape)
    student = narrow(
        network, dataset, spec=spec, batch_size=training.batch_size, device=CPU, tune=lambda _network: None
    )
    return student, spec


def run_student(bench: Bench, shape: Shape, seed: int) -> dict[str, Any]:
    """One student of one seed, beside the teacher."""
    network, spec = made(bench, shape, seed)
    left = [branch.name for branch in find_branches(network, bench.dataset.input_shape)]
    cost = measure_cost(network, bench.dataset.input_shape)
    num_asked = bench.answers.num_asked
    student, spent = taught(bench, "shortened", network, spec)
    if bench.answers.num_asked > num_asked:
        keep_answers(bench)
    entries = forms("teacher", "teacher", 1.0, bench.teacher, bench.dataset, bench.teacher_cpu_s)
    entries += forms(str(shape), "shortened", shape.width, student, bench.dataset, spent["cpu_s"])
    if bench.settings.qat_epochs:
        entries.append(trained_for_int8(bench, shape, student, spec, spent["cpu_s"]))
    measure(entries, bench.dataset)
    return {
        "seed": seed,
        "branches": left,
        "macs": cost.macs,
        "num_parameters": cost.num_parameters,
        "entries": [
            {key: value for key, value in asdict(entry).items() if key != "data"} | {"bytes": len(entry.data)}
            for entry in entries
        ],
    }


def trained_for_int8(
    bench: Bench, shape: Shape, student: nn.Module, spec: CompressionSpec, cpu_s: float
) -> Entry:
    """The student's int8 form after quantisation-aware training, whether or not that helped."""
    began_s, dataset = time.process_time(), bench.dataset
    how = QuantisationSpec(tuning_epochs=0, qat_epochs=bench.settings.qat_epochs,
                           tuning_learning_rate=QAT_LEARNING_RATE)  # fmt: skip
    spec = replace(spec, quantisation=how)
    quiet, tick = (lambda *_: None), ticker(f"{shape}, for int8")
    network = quantise_network(
        student, bench.teacher, dataset, spec=spec, bits=how.weight_bits(is_int8=True, is_reduced_range=True),
        training=bench.lessons, device=CPU, report=quiet,
    )  # fmt: skip
    samples = calibration_samples(dataset, 256, 0)
    int8 = quantise_network_int8(
        export_verified(network.model, dataset), samples, network, reduced_range=True
    )
    data = train_int8(
        network, int8, samples, bench.teacher, dataset, spec=spec, reduced_range=True,
        training=bench.lessons, device=CPU, report=tick, answers=bench.answers,
    ).data  # fmt: skip
    split = dataset.validation
    return Entry(
        name=f"{shape}, for int8", kind="shortened", width=shape.width, precision="int8", data=data,
        validation=evaluate.accuracy(evaluate.load(data), split.inputs, split.labels),
        cpu_s=cpu_s + time.process_time() - began_s,
    )  # fmt: skip


def latencies(bench: Bench, shapes: Sequence[Shape]) -> None:
    """How fast students of each depth and width are, whatever they have learnt."""
    entries: list[Entry] = forms("teacher", "teacher", 1.0, bench.teacher, bench.dataset, 0.0)
    macs = [measure_cost(bench.teacher, bench.dataset.input_shape).macs]
    for shape in shapes:
        network, _ = made(bench, shape, 0)
        macs.append(measure_cost(network, bench.dataset.input_shape).macs)
        entries += forms(str(shape), "untrained", shape.width, network, bench.dataset, 0.0)
    measure(entries, bench.dataset)
    base = entries[1]
    print(f"{'student':28} {'form':5} {'MMAC':>6} {'p50 us':>7} {'faster':>7} {'smaller':>8}")
    for i, entry in enumerate(entries):
        faster, smaller = base.latency_ms / entry.latency_ms, len(base.data) / len(entry.data)
        print(f"{entry.name:28} {entry.precision:5} {macs[i // 2] / 1e6:6.2f} {1000 * entry.latency_ms:7.1f} "
              f"{faster:6.2f}x {smaller:7.2f}x")  # fmt: skip


def figures(entries: Sequence[Row]) -> list[dict[str, Any]]:
    """Each student of one session against the teacher of the same."""
    fp32, int8 = (
        next(e for e in entries if e["kind"] == "teacher" and e["precision"] == precision)
        for precision in ("fp32", "int8")
    )
    return [
        {
            "name": f"{entry['name']}, {entry['precision']}",
            "validation_drop": fp32["validation"] - entry["validation"],
            "test_drop": fp32["test"] - entry["test"],
            "speedup": int8["latency_ms"] / entry["latency_ms"],
            "smaller": int8["bytes"] / entry["bytes"],
            "cpu_s": entry["cpu_s"],
        }
        for entry in entries
        if entry["kind"] in ("cut", "refined", "finished", "shortened")
    ]


def report(found: Sequence[Row], narrower: Sequence[Row]) -> None:
    """Each student over its seeds; then what the goals choose from them and from the narrower ones."""
    by_name: dict[str, list[Row]] = {}
    for one in found:
        for figure in figures(one["entries"]):
            by_name.setdefault(figure["name"], []).append(figure)
    print(f"\n{'student':28} {'seeds':>5} {'points under, validation':>26} {'points under, test':>22} "
          f"{'faster':>24} {'smaller':>8} {'CPU s':>6}")  # fmt: skip
    for name, same in by_name.items():
        columns = [spread([scale * one[key] for one in same], unit) for key, scale, unit in
                   (("validation_drop", 100, ""), ("test_drop", 100, ""), ("speedup", 1, "x"))]  # fmt: skip
        mean = {key: sum(one[key] for one in same) / len(same) for key in ("smaller", "cpu_s")}
        print(f"{name:28} {len(same):5} {columns[0]:>26} {columns[1]:>22} {columns[2]:>24} "
              f"{mean['smaller']:7.2f}x {mean['cpu_s']:6.0f}")  # fmt: skip
    for points, goal in ((0.5, "2.5x and 4x"), (1.0, "5x and 10x")):
        print(f"\nat most {points:g} points under the teacher on the validation split, fastest; goal {goal}")
        for seed in sorted({one["seed"] for one in (*found, *narrower)}):
            able = [
                figure
                for one in (*found, *narrower)
                if one["seed"] == seed
                for figure in figures(one["entries"])
                if 100 * figure["validation_drop"] <= points + 1e-9
            ]
            text = "no student"
            if able:
                best = max(able, key=lambda figure: float(figure["speedup"]))
                text = (f"{best['name']}: {best['speedup']:.2f}x faster, {best['smaller']:.2f}x smaller, "
                        f"{100 * best['test_drop']:.2f} points under on the test split")  # fmt: skip
            print(f"    seed {seed}: {text}")


if __name__ == "__main__":
    sys.exit(main())
