"""Compression on real Fashion-MNIST against what a user would do instead.

    python -m benchmarks.compression [--seeds 3] [--epochs 20] [--quick] [--report]

One teacher serves all seeds; its fp32 and int8 form (onnxruntime's quantize_static with reduced range) and
NNCF's are the peers. For each seed: an elastic family; students cut from it; some of them *refined* (a
minute of distillation at most) or *finished* (what a search would give them); and, of the same widths,
networks from random weights with as many epochs as family and refinement together: *alone* (distilled) and
*scratch* (on the labels) + PTQ. Choices are made on the validation split; figures come from the test
split, which is looked at once, for what was built. Each student is timed in turns with the teacher's int8:
ONNX Runtime, one thread, batch 1, medians of several sessions.

Everything that was trained is kept (``--cache``) by what it depends on, so that a run that was killed goes
on, and ``--report`` prints the table of the seeds that are complete. Rows on rules are measured elsewhere.
Figures depend on the configuration, which is printed.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from benchmarks.compression_predictor import predictor_errors
from benchmarks.compression_table import Entry, report, rows
from benchmarks.compression_teacher import (
    CPU,
    Settings,
    keep,
    named,
    say,
    ticker,
    trained_teacher,
    workload_of,
)
from cloud.compression import evaluate
from cloud.compression.answers import TeacherAnswers
from cloud.compression.build import calibration_samples, export_verified
from cloud.compression.distil import distil
from cloud.compression.family import FamilyTrainer
from cloud.compression.pack import executable_of, ship
from cloud.compression.prune import reinitialise
from cloud.compression.quantise import quantise
from cloud.compression.sparsify import Sparsifier
from cloud.domain.families import FamilySettings
from cloud.domain.sparsity import SparsitySpec
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.training import checkpoints
from cloud.training.datasets import Dataset, load_dataset
from edgeloop.errors import EdgeloopError

#: Timing sessions of a student; each is eight interleaved chunks.
NUM_SESSIONS = 7


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bench:
    """What all seeds share."""

    settings: Settings
    workload: Workload
    dataset: Dataset
    teacher: nn.Module
    teacher_cpu_s: float
    answers: TeacherAnswers
    cache: Path

    @property
    def learning_rate(self) -> float:
        """The peak for students and families."""
        return self.settings.learning_rate or self.lessons.student_learning_rate

    @property
    def lessons(self) -> TrainingBudget:
        """How students and families are trained, beyond what their specs say."""
        return replace(self.workload.training, bfloat16=self.settings.bfloat16)


def arguments_of(text: str) -> argparse.ArgumentParser:
    """What every benchmark on this teacher can be told."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="of the teacher")
    parser.add_argument("--family-epochs", type=int, default=4)
    parser.add_argument("--refine-epochs", type=int, default=2)
    parser.add_argument("--finish-epochs", type=int, default=8)
    parser.add_argument("--sparse-ratio", type=float, default=0.4, help="of the row of zeros, on the wire")
    parser.add_argument("--sparse-epochs", type=int, help="of that row; as many as refine when left out")
    parser.add_argument("--learning-rate", type=float, help="of students; twice the teacher's when left out")
    parser.add_argument("--num-train", type=int, default=0, help="training images; 0: all 50,000")
    parser.add_argument("--base-width", type=int, default=48)
    parser.add_argument("--num-blocks", type=int, default=1, help="of each of the teacher's three stages")
    parser.add_argument("--teacher-bfloat16", action="store_true", help="train the teacher so, too")
    parser.add_argument("--bfloat16", action="store_true", help="train students so: see docs/search.md")
    parser.add_argument("--quick", action="store_true", help="one seed, a sixth of the data, few epochs")
    parser.add_argument("--report", action="store_true", help="print what is in the cache, train nothing")
    parser.add_argument("--cache", type=Path, default=Path("out/bench-compression"))
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The figures' configuration."""
    settings = Settings(
        num_epochs=arguments.epochs,
        family_epochs=arguments.family_epochs,
        family_widest=0.5,
        refine_epochs=arguments.refine_epochs,
        finish_epochs=arguments.finish_epochs,
        sparse_epochs=arguments.sparse_epochs or arguments.refine_epochs,
        sparse_ratio=arguments.sparse_ratio,
        num_train=arguments.num_train,
        base_width=arguments.base_width,
        bfloat16=arguments.bfloat16,
        widths=(0.5, 0.375, 0.3125, 0.25, 0.1875, 0.125),
        refined_widths=(0.25,),
        finished_widths=(0.3125, 0.25),
        num_blocks=arguments.num_blocks,
        teacher_bfloat16=arguments.teacher_bfloat16,
        learning_rate=arguments.learning_rate,
    )
    if arguments.quick:
        arguments.seeds = 1
        settings = replace(settings, num_epochs=4, family_epochs=6, refine_epochs=1, finish_epochs=2,
                           sparse_epochs=1, num_train=8000, base_width=32, widths=(0.5, 0.25),
                           refined_widths=(0.25,), finished_widths=(0.25,))  # fmt: skip
    return settings


def main() -> int:
    arguments = arguments_of((__doc__ or "").splitlines()[0]).parse_args()
    settings = settings_of(arguments)
    torch.set_num_threads(1)
    seeds: list[dict[str, Any]] = []
    try:
        bench = None if arguments.report else prepared(settings, arguments.cache)
        for seed in range(arguments.seeds):
            path = seed_path(arguments.cache, settings, seed)
            if bench is not None and not path.exists():
                path.write_text(json.dumps(run_seed(bench, seed), indent=2))
            if path.exists():
                seeds.append(json.loads(path.read_text()))
                if bench is not None:
                    report(seeds[-1:])
    except EdgeloopError as error:
        print(f"benchmarks.compression: {error.message}", file=sys.stderr)
        return 2
    print(f"\nconfiguration: {json.dumps(settings.identity())}, {len(seeds)} seeds")
    if seeds:
        report(seeds)
    if arguments.json:
        arguments.json.write_text(json.dumps(seeds, indent=2))
    return 0


def seed_path(cache: Path, settings: Settings, seed: int) -> Path:
    """Where a complete seed's figures lie."""
    return cache / f"seed-{named(settings.identity(), seed)}.json"


def prepared(settings: Settings, cache: Path) -> Bench:
    """Data, the teacher and its kept answers."""
    workload = workload_of(settings)
    dataset = load_dataset(workload)
    teacher, cpu_s = trained_teacher(workload, dataset, cache)
    lessons = replace(workload.training, bfloat16=settings.bfloat16)
    answers = TeacherAnswers(teacher, dataset, lessons, CPU)
    path = answers_path(cache, workload)
    if path.exists():
        answers.load_state_dict(checkpoints.from_bytes(path.read_bytes()))
    return Bench(settings=settings, workload=workload, dataset=dataset, teacher=teacher,
                 teacher_cpu_s=cpu_s, answers=answers, cache=cache)  # fmt: skip


def run_seed(bench: Bench, seed: int) -> dict[str, Any]:
    """All figures of one seed."""
    settings, dataset = bench.settings, bench.dataset
    family, family_s = trained_family(bench, seed)
    say(f"seed {seed}: teacher {bench.teacher_cpu_s:.0f} CPU-s, family {family_s:.0f} CPU-s")
    entries = forms("teacher", "teacher", 1.0, bench.teacher, dataset, bench.teacher_cpu_s)
    entries += nncf_peer(entries[0], dataset)
    answer: dict[str, Any] = {"seed": seed, "teacher_cpu_s": bench.teacher_cpu_s, "family_cpu_s": family_s}
    for kind in ("recompression", "refinement"):
        answer[f"{kind}_wall_s"], answer[f"{kind}_cpu_s"] = [], []
    for width in settings.widths:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        student = family.cut(width)
        entries += forms(f"cut {width:g}", "cut", width, student, dataset, time.process_time() - cpu_s)
        answer["recompression_wall_s"].append(time.perf_counter() - wall_s)
        answer["recompression_cpu_s"].append(time.process_time() - cpu_s)

    def add(kind: str, width: float, network: nn.Module, num_epochs: int, alpha: float) -> nn.Module:
        spec = CompressionSpec(road=Road.ELASTIC, width_ratio=width, num_epochs=num_epochs, seed=seed,
                               alpha=alpha)  # fmt: skip
        student, spent = taught(bench, kind, network, spec)
        made = time.process_time(), time.perf_counter()
        entries.extend(forms(f"{kind} {width:g}", kind, width, student, dataset, spent["cpu_s"]))
        if kind == "refined":
            answer["refinement_cpu_s"].append(spent["cpu_s"] + time.process_time() - made[0])
            answer["refinement_wall_s"].append(spent["wall_s"] + time.perf_counter() - made[1])
        return student

    usual = CompressionSpec().alpha
    for width in settings.refined_widths:
        add("refined", width, family.cut(width), settings.refine_epochs, usual)
    for width in settings.finished_widths:
        student = add("finished", width, family.cut(width), settings.finish_epochs, usual)
    for width in settings.refined_widths:
        # From random weights, with as many epochs as the family and the refinement had.
        for kind, alpha in (("scratch", 0.0), ("alone", usual)):
            network = family.cut(width)
            reinitialise(network, seed)
            add(kind, width, network, settings.refine_epochs + settings.family_epochs, alpha)
    # Last, for it changes the network: the narrowest finished student with zeros, for the wire.
    add("sparse", settings.finished_widths[-1], student, settings.sparse_epochs, usual)
    measure(entries, dataset)
    answer["entries"] = [
        {key: value for key, value in asdict(entry).items() if key != "data"}
        | {"bytes": len(entry.data), "packed_bytes": packed_bytes(entry.data)}
        for entry in entries
    ]
    answer["rows"] = rows(answer["entries"])
    answer["predictor"] = predictor_errors(bench.teacher, dataset)
    return answer


def measure(entries: Sequence[Entry], dataset: Dataset) -> None:
    """Latencies, and the test split."""
    base_ms, faster = speeds(entries, dataset)
    for entry, ratio in zip(entries, faster, strict=True):
        entry.latency_ms = base_ms / ratio
        runtime = evaluate.load(entry.data)
        entry.test = evaluate.accuracy(runtime, dataset.test.inputs, dataset.test.labels)


def speeds(entries: Sequence[Entry], dataset: Dataset) -> tuple[float, list[float]]:
    """p50 in ms of the teacher's int8, the second of ``entries``; how many times as fast as it each is.

    Two at a time are timed beside it, which mostly are both forms of one student: with thirty models in turns
    none finds anything left in the caches, and the same graph takes twice as long.
    """
    base, sample = entries[1], dataset.validation.inputs[:1]
    base_ms, found = [], []
    for at in range(0, len(entries), 2):
        pair = entries[at : at + 2]
        ratios: list[list[float]] = [[] for _ in pair]
        for _ in range(NUM_SESSIONS):
            runtimes = [evaluate.load(entry.data) for entry in (base, *pair)]
            timing = evaluate.time_artifacts(runtimes, sample)
            base_ms.append(timing.p50_ms(0))
            for place, same in enumerate(ratios):
                same.append(timing.p50_ms(0) / timing.p50_ms(place + 1))
        found += [statistics.median(same) for same in ratios]
    return statistics.median(base_ms), found


def packed_bytes(data: bytes) -> int:
    """What travels to a device; it is seen to be the same graph there."""
    shipped = ship(data).data
    assert executable_of(shipped) == data
    return len(shipped)


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
    bench: Bench, kind: str, student: nn.Module, spec: CompressionSpec
) -> tuple[nn.Module, dict[str, float]]:
    """``student`` after the training of ``spec``, and its cost; from the cache where that was done before."""
    spec = replace(spec, learning_rate=bench.learning_rate)
    zeros = SparsitySpec(ratio=bench.settings.sparse_ratio) if kind == "sparse" else None
    what = [family_name(bench, spec.seed), bench.settings.finish_epochs, kind, spec.to_json()]
    what += [zeros.ratio] if zeros is not None else []
    path = bench.cache / f"{kind}-{named(*what)}.pt"
    if not path.exists():
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        rule = None if zeros is None else Sparsifier.of(zeros, bench.dataset, bench.lessons.batch_size)
        distil(student, bench.teacher, bench.dataset, spec=spec, training=bench.lessons, device=CPU,
               report=ticker(f"{kind} {spec.width_ratio:g}"), rule=rule, answers=bench.answers)  # fmt: skip
        spent = {"cpu_s": time.process_time() - cpu_s, "wall_s": time.perf_counter() - wall_s}
        keep(path, {"model": student.state_dict(), **spent})
    state = checkpoints.from_bytes(path.read_bytes())
    student.load_state_dict(state["model"])
    return student.cpu().eval(), {name: float(state[name]) for name in ("cpu_s", "wall_s")}


def family_settings(bench: Bench, seed: int) -> FamilySettings:
    settings = bench.settings
    return FamilySettings(num_epochs=settings.family_epochs, widest=settings.family_widest, seed=seed,
                          learning_rate=bench.learning_rate)  # fmt: skip


def family_name(bench: Bench, seed: int) -> str:
    how = family_settings(bench, seed).identity()
    return named(bench.workload.teacher_key, asdict(bench.lessons), how)


def trained_family(bench: Bench, seed: int) -> tuple[FamilyTrainer, float]:
    return trained_as(bench, family_settings(bench, seed), family_name(bench, seed))


def trained_as(bench: Bench, how: FamilySettings, key: str) -> tuple[FamilyTrainer, float]:
    """The family and what it cost in CPU-seconds; goes on after the last epoch that the cache has."""
    workload = replace(bench.workload, training=bench.lessons)
    trainer = FamilyTrainer(workload, copy.deepcopy(bench.teacher), bench.dataset, how, key=key, device="cpu",
                            answers=bench.answers)  # fmt: skip
    path = bench.cache / f"family-{key}.pt"
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
        keep_answers(bench)
    return trainer, cpu_s


def keep_answers(bench: Bench) -> None:
    """What the teacher has said so far."""
    keep(answers_path(bench.cache, bench.workload), bench.answers.state_dict())


def answers_path(cache: Path, workload: Workload) -> Path:
    return cache / f"answers-{workload.teacher_key}.pt"


if __name__ == "__main__":
    sys.exit(main())
