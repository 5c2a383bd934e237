"""Compression on real Fashion-MNIST against what a user would do instead.

    python -m benchmarks.compression [--seeds 3] [--epochs 12] [--quick]

For each seed: a teacher; its fp32 and int8 form (onnxruntime's quantize_static with reduced range) as peers;
its elastic family; students cut from that, some refined by distillation; small networks from scratch + PTQ of
the same widths and at least the same training budget as a refined student. Choices are made on the validation
split; figures come from the test split, which is looked at once, for what was chosen. All artifacts of a seed
are timed interleaved in one process: ONNX Runtime, one thread, batch 1, medians. Teachers and families are
cached between runs (``--cache``). Rows that need other parts of the engine (wire size, rules) are measured by
their own benchmarks. Figures depend on ``--epochs``, ``--num-train`` and the rest of the configuration, which
is printed.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from cloud.compression import evaluate
from cloud.compression.build import calibration_samples, export_verified
from cloud.compression.dependency import trace_channels
from cloud.compression.distil import distil
from cloud.compression.elastic import ElasticNetwork
from cloud.compression.family import FamilyTrainer
from cloud.compression.layers import layer_shapes
from cloud.compression.prune import reinitialise
from cloud.compression.quantise import quantise
from cloud.domain.families import FamilySettings
from cloud.domain.latency import Probe, fit_latency
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.training import checkpoints
from cloud.training.datasets import Dataset, load_dataset
from cloud.training.networks import build_teacher
from cloud.training.teacher import TeacherTrainer, choose_device, measure_accuracy
from edgeloop.errors import EdgeloopError

CPU = torch.device("cpu")
MAX_PROBES = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All that figures depend on."""

    num_epochs: int
    family_epochs: int
    refine_epochs: int
    num_train: int
    base_width: int
    widths: tuple[float, ...]
    refined_widths: tuple[float, ...]


@dataclass(kw_only=True, slots=True)
class Entry:
    """One network in one form. ``cpu_s`` is what making it cost, exports aside."""

    name: str
    kind: str
    width: float
    precision: str
    data: bytes
    validation: float
    test: float = 0.0
    cpu_s: float = 0.0
    latency_ms: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="of the teacher")
    parser.add_argument("--family-epochs", type=int, default=6)
    parser.add_argument("--refine-epochs", type=int, default=2)
    parser.add_argument("--num-train", type=int, default=0, help="training images; 0: all 50,000")
    parser.add_argument("--base-width", type=int, default=48)
    parser.add_argument("--quick", action="store_true", help="one seed, a sixth of the data, few epochs")
    parser.add_argument("--cache", type=Path, default=Path("out/bench-compression"))
    parser.add_argument("--json", type=Path, help="write all figures there")
    arguments = parser.parse_args()
    settings = Settings(
        num_epochs=arguments.epochs,
        family_epochs=arguments.family_epochs,
        refine_epochs=arguments.refine_epochs,
        num_train=arguments.num_train,
        base_width=arguments.base_width,
        widths=(0.75, 0.5, 0.375, 0.25, 0.1875, 0.125),
        refined_widths=(0.5, 0.25, 0.125),
    )
    num_seeds = arguments.seeds
    if arguments.quick:
        num_seeds = 1
        settings = replace(settings, num_epochs=4, family_epochs=6, refine_epochs=1, num_train=8000,
                           base_width=32, widths=(0.5, 0.25), refined_widths=(0.25,))  # fmt: skip
    torch.set_num_threads(1)
    seeds = []
    try:
        for seed in range(num_seeds):
            seeds.append(run_seed(settings, seed, arguments.cache))
            report(seeds[-1:])
    except EdgeloopError as error:
        print(f"benchmarks.compression: {error.message}", file=sys.stderr)
        return 2
    print(f"\nconfiguration: {json.dumps(asdict(settings))}, {num_seeds} seeds, {device_name()}")
    if num_seeds > 1:
        report(seeds)
    if arguments.json:
        arguments.json.write_text(json.dumps(seeds, indent=2, default=str))
    return 0


def run_seed(settings: Settings, seed: int, cache: Path) -> dict[str, Any]:
    """All figures of one seed."""
    workload = Workload(
        name="fashion-mnist",
        dataset="fashion-mnist",
        dataset_options={"num_train": settings.num_train},
        teacher_options={"base_width": settings.base_width, "stem_stride": 2},
        training=TrainingBudget(num_epochs=settings.num_epochs, batch_size=128, learning_rate=4e-3,
                                augment_pixels=1, augment_flip=True, seed=seed),
    )  # fmt: skip
    dataset = load_dataset(workload)
    teacher, teacher_s = trained_teacher(workload, dataset, cache)
    family, family_s = trained_family(workload, dataset, teacher, settings, seed, cache)
    say(f"seed {seed}: teacher {teacher_s:.0f} CPU-s, family {family_s:.0f} CPU-s")
    entries = forms("teacher", "teacher", 1.0, teacher, dataset, teacher_s)
    entries += nncf_peer(entries[0], dataset)
    answer: dict[str, Any] = {"seed": seed, "teacher_cpu_s": teacher_s, "family_cpu_s": family_s}
    for width in settings.widths:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        student = family.cut(width)
        entries += forms(f"cut {width:g}", "cut", width, student, dataset, time.process_time() - began_cpu_s)
        answer.setdefault("recompression_wall_s", []).append(time.perf_counter() - began_s)
        answer.setdefault("recompression_cpu_s", []).append(time.process_time() - began_cpu_s)
    for width in settings.refined_widths:
        spec = CompressionSpec(
            road=Road.ELASTIC, width_ratio=width, num_epochs=settings.refine_epochs, seed=seed
        )
        student, cost_s = taught(family.cut(width), teacher, dataset, spec, workload)
        entries += forms(f"refined {width:g}", "refined", width, student, dataset, cost_s)
        # The same width from random weights, with as many epochs as the family and the refinement had.
        alone = replace(spec, num_epochs=settings.refine_epochs + settings.family_epochs)
        for kind, alpha in (("scratch", 0.0), ("alone", spec.alpha)):
            network = family.cut(width)
            reinitialise(network, seed)
            student, cost_s = taught(network, teacher, dataset, replace(alone, alpha=alpha), workload)
            entries += forms(f"{kind} {width:g}", kind, width, student, dataset, cost_s)
    runtimes = [evaluate.load(entry.data) for entry in entries]
    timing = evaluate.time_artifacts(runtimes, dataset.validation.inputs[:1])
    for i, entry in enumerate(entries):
        entry.latency_ms = timing.p50_ms(i)
    for entry, runtime in zip(entries, runtimes, strict=True):
        entry.test = evaluate.accuracy(runtime, dataset.test.inputs, dataset.test.labels)
    answer["entries"] = [
        {key: value for key, value in asdict(entry).items() if key != "data"} | {"bytes": len(entry.data)}
        for entry in entries
    ]
    answer["rows"] = rows(entries)
    answer["predictor"] = predictor_errors(teacher, dataset)
    cut_s = statistics.median(answer["recompression_cpu_s"])
    one = family_s + len(settings.widths) * cut_s
    answer["eight_profiles_ratio"] = (one + 7 * len(settings.widths) * cut_s) / one
    return answer


def rows(entries: Sequence[Entry]) -> dict[str, float]:
    """The goals that one seed can speak of. Ratios are against the teacher's int8."""
    fp32, int8 = (
        next(e for e in entries if e.kind == "teacher" and e.precision == p) for p in ("fp32", "int8")
    )
    ours = [entry for entry in entries if entry.kind in ("cut", "refined")]
    found: dict[str, float] = {"teacher_test": fp32.test, "teacher_int8_test": int8.test}
    for points in (0.005, 0.010):
        fitting = [entry for entry in ours if entry.validation >= fp32.validation - points]
        name = f"drop_{points * 100:g}"
        if fitting:
            chosen = min(fitting, key=lambda entry: entry.latency_ms)
            found[f"{name}_speedup"] = int8.latency_ms / chosen.latency_ms
            found[f"{name}_smaller"] = len(int8.data) / len(chosen.data)
            found[f"{name}_test_drop"] = fp32.test - chosen.test
    for peer in entries:
        if peer.kind == "nncf":
            found["nncf_test"] = peer.test
            found["nncf_speedup"] = int8.latency_ms / peer.latency_ms
    gains, cut_gaps, refined_gaps = [], [], []
    for width in sorted({entry.width for entry in entries if entry.kind == "scratch"}):
        best = {kind: max((e for e in entries if e.kind == kind and e.width == width),
                          key=lambda e: e.validation, default=None)
                for kind in ("cut", "refined", "scratch", "alone")}  # fmt: skip
        scratch = next(
            e for e in entries if e.kind == "scratch" and e.width == width and e.precision == "int8"
        )
        if best["refined"] is not None:
            gains.append(best["refined"].test - scratch.test)
            if best["alone"] is not None:
                refined_gaps.append(best["refined"].test - best["alone"].test)
        if best["cut"] is not None and best["alone"] is not None:
            cut_gaps.append(best["cut"].test - best["alone"].test)
    for name, values in (("against_scratch", gains), ("cut_gap", cut_gaps), ("refined_gap", refined_gaps)):
        if values:
            found[name] = statistics.mean(values)
    return found


def predictor_errors(teacher: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """Nine widths are probes of this machine as a profile; the others are predicted. Any weights will do."""
    graph = trace_channels(teacher, dataset.input_shape)
    scores = {unit: 0.0 for group in graph.groups for unit in group.units}
    elastic = ElasticNetwork(copy.deepcopy(teacher), graph, scores, dataset.input_shape)
    widths = elastic.widths(0.0625)
    samples = calibration_samples(dataset, 32, 0)
    networks = [elastic.cut(width).eval() for width in widths]
    shapes = [layer_shapes(network, dataset.input_shape) for network in networks]
    fp32 = [export_verified(network, dataset) for network in networks]
    forms_of = {"fp32": fp32, "int8": [quantise(data, samples, reduced_range=True) for data in fp32]}
    runtimes = [evaluate.load(data) for datas in forms_of.values() for data in datas]
    timing = evaluate.time_artifacts(runtimes, dataset.validation.inputs[:1])
    count = min(MAX_PROBES, len(widths) - 1)
    chosen = {round(i * (len(widths) - 1) / (count - 1)) for i in range(count)}
    errors = []
    for offset, _ in enumerate(forms_of):
        probes = [
            Probe(layers=layers, latency_ms=timing.p50_ms(offset * len(widths) + i))
            for i, layers in enumerate(shapes)
        ]
        model = fit_latency([probe for i, probe in enumerate(probes) if i in chosen])
        errors += [
            abs(model.predict(probe.layers) / probe.latency_ms - 1)
            for i, probe in enumerate(probes)
            if i not in chosen
        ]
    within = sum(error <= 0.10 for error in errors) / len(errors)
    return {"num_probes": len(chosen), "num_predicted": len(errors), "within_10_percent": within,
            "worst": max(errors)}  # fmt: skip


def forms(
    name: str, kind: str, width: float, network: nn.Module, dataset: Dataset, cpu_s: float
) -> list[Entry]:
    """fp32 and int8, scored on the validation split through the agent's runtime."""
    fp32 = export_verified(copy.deepcopy(network).cpu().eval(), dataset)
    int8 = quantise(fp32, calibration_samples(dataset, 256, 0), reduced_range=True)
    split = dataset.validation
    return [
        Entry(
            name=name, kind=kind, width=width, precision=precision, data=data, cpu_s=cpu_s,
            validation=evaluate.accuracy(evaluate.load(data), split.inputs, split.labels),
        )
        for precision, data in (("fp32", fp32), ("int8", int8))
    ]  # fmt: skip


def nncf_peer(teacher: Entry, dataset: Dataset) -> list[Entry]:
    """The teacher by NNCF's post-training quantisation, where that is installed."""
    try:
        import nncf
    except ImportError:
        say("peer NNCF is left out: it is not installed (pip install nncf)")
        return []
    nncf.set_log_level(logging.ERROR)
    model = onnx.load_from_string(teacher.data)
    name = model.graph.input[0].name
    samples = calibration_samples(dataset, 256, 0)
    calibration = nncf.Dataset([samples[i : i + 1] for i in range(len(samples))], lambda x: {name: x})
    data = nncf.quantize(model, calibration, subset_size=len(samples)).SerializeToString()
    split = dataset.validation
    score = evaluate.accuracy(evaluate.load(data), split.inputs, split.labels)
    return [Entry(name="teacher NNCF", kind="nncf", width=1.0, precision="int8", data=data, validation=score)]


def taught(
    student: nn.Module, teacher: nn.Module, dataset: Dataset, spec: CompressionSpec, workload: Workload
) -> tuple[nn.Module, float]:
    began_s = time.process_time()
    distil(student, teacher, dataset, spec=spec, training=workload.training, device=choose_device(),
           report=ticker(f"width {spec.width_ratio:g}"))  # fmt: skip
    return student.cpu().eval(), time.process_time() - began_s


def trained_teacher(workload: Workload, dataset: Dataset, cache: Path) -> tuple[nn.Module, float]:
    path = cache / f"teacher-{workload.teacher_key}.pt"
    if path.exists():
        state = checkpoints.from_bytes(path.read_bytes())
        teacher = build_teacher(workload, dataset)
        teacher.load_state_dict(state["model"])
        return teacher.eval(), float(state["cpu_s"])
    began_s = time.process_time()
    trainer = TeacherTrainer(workload, dataset)
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch(ticker("teacher"))
    cpu_s = time.process_time() - began_s
    keep(path, {"model": trainer.model.cpu().state_dict(), "cpu_s": cpu_s})
    accuracy = measure_accuracy(trainer.model, dataset.validation, CPU)
    say(f"teacher: {accuracy:.2%} on the validation split after {cpu_s:.0f} CPU-s")
    return trainer.model.eval(), cpu_s


def trained_family(
    workload: Workload, dataset: Dataset, teacher: nn.Module, settings: Settings, seed: int, cache: Path
) -> tuple[FamilyTrainer, float]:
    how = FamilySettings(num_epochs=settings.family_epochs, seed=seed)
    key = hashlib.sha256(f"{workload.teacher_key} {how}".encode()).hexdigest()[:16]
    trainer = FamilyTrainer(workload, copy.deepcopy(teacher), dataset, how, key=key)
    path = cache / f"family-{key}.pt"
    cpu_s = 0.0
    if path.exists():
        state = checkpoints.from_bytes(path.read_bytes())
        trainer.load_state_dict(state["trainer"])
        cpu_s = float(state["cpu_s"])
    while trainer.epoch < trainer.num_epochs:
        began_s = time.process_time()
        trainer.run_epoch(ticker("family"))
        cpu_s += time.process_time() - began_s
        keep(path, {"trainer": trainer.state_dict(), "cpu_s": cpu_s})
    return trainer, cpu_s


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


GOALS = (
    ("teacher, test", "teacher_test", 100, "%", "93.5 %"),
    ("teacher int8 (quantize_static), test", "teacher_int8_test", 100, "%", "-"),
    ("teacher by NNCF PTQ, test", "nncf_test", 100, "%", "-"),
    ("    faster than quantize_static", "nncf_speedup", 1, "x", "-"),
    ("at most 0.5 points under it: faster than its int8", "drop_0.5_speedup", 1, "x", "2.5x"),
    ("    smaller than its int8", "drop_0.5_smaller", 1, "x", "4x"),
    ("    points under the teacher, test", "drop_0.5_test_drop", 100, "", "0.5"),
    ("at most 1.0 point under it: faster than its int8", "drop_1_speedup", 1, "x", "5x"),
    ("    smaller than its int8", "drop_1_smaller", 1, "x", "10x"),
    ("    points under the teacher, test", "drop_1_test_drop", 100, "", "1.0"),
    ("refined over scratch + PTQ at equal width, points", "against_scratch", 100, "", "+0.5"),
    ("cut against a stand-alone distilled student, points", "cut_gap", 100, "", "-0.5"),
    ("refined against a stand-alone distilled student, points", "refined_gap", 100, "", "-0.2"),
)


def report(seeds: Sequence[dict[str, Any]]) -> None:
    """Mean over the seeds, with the range."""
    print(f"\n{'':58} {'measured':>22}   goal")
    for title, key, scale, unit, goal in GOALS:
        values = [seed["rows"][key] * scale for seed in seeds if key in seed["rows"]]
        print(f"{title:58} {spread(values, unit):>22}   {goal}")
    for title, values, unit, goal in (
        ("request to verified artifacts, wall s", [s for seed in seeds for s in seed["recompression_wall_s"]],
         "", "10"),
        ("    of it CPU s", [s for seed in seeds for s in seed["recompression_cpu_s"]], "", "-"),
        (f"predictions within 10 %, {seeds[0]['predictor']['num_probes']} probes",
         [100 * seed["predictor"]["within_10_percent"] for seed in seeds], "%", "90 %"),
        ("    worst error", [100 * seed["predictor"]["worst"] for seed in seeds], "%", "-"),
        ("eight profiles over one, CPU, cut from the family",
         [seed["eight_profiles_ratio"] for seed in seeds], "x", "2.5x"),
    ):  # fmt: skip
        print(f"{title:58} {spread(values, unit):>22}   {goal}")
    print(
        f"\n{'student':18} {'form':5} {'validation':>10} {'test':>8} {'p50 ms':>8} {'bytes':>9} {'CPU s':>7}"
    )
    for entry in seeds[-1]["entries"]:
        print(
            f"{entry['name']:18} {entry['precision']:5} {entry['validation']:10.2%} {entry['test']:8.2%} "
            f"{entry['latency_ms']:8.4f} {entry['bytes']:9d} {entry['cpu_s']:7.1f}"
        )


def spread(values: Sequence[float], unit: str) -> str:
    if not values:
        return "none"
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.2f}{unit}"
    return f"{mean:.2f}{unit} ({min(values):.2f} to {max(values):.2f})"


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, one thread"


if __name__ == "__main__":
    sys.exit(main())
