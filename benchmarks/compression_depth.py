"""Students of fewer layers on Fashion-MNIST, beside the narrower ones of ``benchmarks.compression``.

    python -m benchmarks.compression_depth [--seeds 3] [--quick] [--report] [--pairs 0.34:0.5 0.34:0.375]

Each student is the teacher of that benchmark without the branches that matter least (``depth_ratio``), then
with the most important of its channels (``width_ratio``), and is *finished* as that benchmark finishes
students: distilled for ``--finish-epochs`` epochs. Choices are made on the validation split, figures come
from the test split. Each student is timed interleaved with the teacher's int8: ONNX Runtime, one thread,
batch 1, medians; speeds are ratios to it, and so they may stand beside those that another session measured.

Options and cache are those of ``benchmarks.compression``. ``--latency`` trains nothing: it prints what
students of many depths and widths would take.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.compression import (
    CPU,
    Bench,
    arguments_of,
    forms,
    measure,
    named,
    prepared,
    seed_path,
    settings_of,
    taught,
)
from benchmarks.compression_table import Entry, Row, spread
from cloud.compression.branches import find_branches
from cloud.compression.cost import measure_cost
from cloud.compression.depth import shorten
from cloud.compression.narrow import narrow
from cloud.domain.specs import CompressionSpec, Road
from edgeloop.errors import EdgeloopError

#: (depth_ratio, width_ratio) of the students that are trained unless others are named.
PAIRS = ("0.67:0.4375", "0.34:0.5", "0.34:0.375")
LATENCY_WIDTHS = (0.5, 0.3125, 0.125)
LATENCY_DEPTHS = (1.0, 0.67, 0.34)


def main() -> int:
    parser = arguments_of((__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="DEPTH:WIDTH of the students")
    parser.add_argument("--latency", action="store_true", help="time untrained students, train nothing")
    arguments = parser.parse_args()
    settings = settings_of(arguments)
    pairs = [(float(depth), float(width)) for depth, width in (one.split(":") for one in arguments.pairs)]
    torch.set_num_threads(1)
    try:
        bench = None if arguments.report else prepared(settings, arguments.cache)
        if bench is not None and arguments.latency:
            latencies(bench)
            return 0
        found = []
        for depth, width in pairs:
            for seed in range(arguments.seeds):
                name = named(asdict(settings), [depth, width], seed)
                path: Path = arguments.cache / f"shortened-{name}.json"
                if bench is not None and not path.exists():
                    path.write_text(json.dumps(run_student(bench, depth, width, seed), indent=2))
                if path.exists():
                    found.append(json.loads(path.read_text()))
        paths = [seed_path(arguments.cache, settings, seed) for seed in range(arguments.seeds)]
        narrower = [json.loads(path.read_text()) for path in paths if path.exists()]
    except EdgeloopError as error:
        print(f"benchmarks.compression_depth: {error.message}", file=sys.stderr)
        return 2
    print(f"\nconfiguration: {json.dumps(asdict(settings))}")
    report(found, narrower)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
    return 0


def made(
    bench: Bench, depth_ratio: float, width_ratio: float, seed: int
) -> tuple[nn.Module, CompressionSpec]:
    """The untrained student, and how it is to be trained."""
    training, dataset = bench.lessons, bench.dataset
    spec = CompressionSpec(road=Road.PRUNED, depth_ratio=depth_ratio, width_ratio=width_ratio, seed=seed,
                           num_epochs=bench.settings.finish_epochs)  # fmt: skip
    network = copy.deepcopy(bench.teacher)
    if spec.depth_ratio is not None:
        network = shorten(
            network, dataset, depth_ratio=spec.depth_ratio, batch_size=training.batch_size, device=CPU
        )
    student = narrow(
        network, dataset, spec=spec, batch_size=training.batch_size, device=CPU, tune=lambda _network: None
    )
    return student, spec


def run_student(bench: Bench, depth_ratio: float, width_ratio: float, seed: int) -> dict[str, Any]:
    """One student of one seed, beside the teacher."""
    network, spec = made(bench, depth_ratio, width_ratio, seed)
    left = [branch.name for branch in find_branches(network, bench.dataset.input_shape)]
    cost = measure_cost(network, bench.dataset.input_shape)
    student, spent = taught(bench, "shortened", network, spec)
    entries = forms("teacher", "teacher", 1.0, bench.teacher, bench.dataset, bench.teacher_cpu_s)
    name = f"{depth_ratio:g} deep, {width_ratio:g} wide"
    entries += forms(name, "shortened", width_ratio, student, bench.dataset, spent["cpu_s"])
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


def latencies(bench: Bench) -> None:
    """How fast students of each depth and width are, whatever they have learnt."""
    entries: list[Entry] = forms("teacher", "teacher", 1.0, bench.teacher, bench.dataset, 0.0)
    macs = [measure_cost(bench.teacher, bench.dataset.input_shape).macs]
    for depth in LATENCY_DEPTHS:
        for width in LATENCY_WIDTHS:
            network, _ = made(bench, depth, width, 0)
            macs.append(measure_cost(network, bench.dataset.input_shape).macs)
            entries += forms(
                f"{depth:g} deep, {width:g} wide", "untrained", width, network, bench.dataset, 0.0
            )
    measure(entries, bench.dataset)
    base = entries[1]
    print(f"{'student':24} {'form':5} {'MMAC':>6} {'p50 us':>7} {'faster':>7} {'smaller':>8}")
    for i, entry in enumerate(entries):
        faster, smaller = base.latency_ms / entry.latency_ms, len(base.data) / len(entry.data)
        print(f"{entry.name:24} {entry.precision:5} {macs[i // 2] / 1e6:6.2f} {1000 * entry.latency_ms:7.1f} "
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
