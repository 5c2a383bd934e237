"""What a teacher's rules are worth: accuracy, fidelity, bytes and latency, beside a small network.

    python -m benchmarks.rules [--splits 3] [--first-split 3] [--image-size 8] [--without-network]

scikit-learn's digits, one teacher for each split of the data, and from it: one depth-6 tree on the data's own
hard labels, the same on the teacher's, with mixup points that the teacher labels, and refined; trees of that
depth whose tests look at sums of 2, 3 and 4 inputs, on hard labels and taught; a rule list; boosted trees;
and the quarter-width student, distilled and quantised, as the search would build it.
Everything runs through the agent's runtime; latencies are at batch 1, one thread, interleaved; accuracy is on
the test split. Goal: the depth-6 tree gains at least 8 points over the same tree on hard labels; a tree of
sums is compared with the plain tree on hard labels, and with a tree of such sums that was fitted on them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

from cloud.compression import evaluate
from cloud.compression.build import build_student, finish_teacher
from cloud.compression.rules import fit_rules
from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.rules import RuleKind, RuleLabels, RuleSpec
from cloud.domain.specs import CompressionSpec, Precision
from cloud.domain.tasks import StudentTask
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.registry import Registry
from cloud.rules_text import describe_rules
from cloud.training.teacher import TeacherTrainer, predict
from edgeloop import rules

GOAL_POINTS = 8.0
HARD = "tree, hard labels"
PLAIN = RuleSpec(labels=RuleLabels.DATA, num_mixup_samples=0, num_starts=1, num_refine_rounds=0)
TAUGHT = replace(PLAIN, labels=RuleLabels.TEACHER)
SUMS = (2, 3, 4)
TAUGHT_SUMS = "tree, sums of {}"
HARD_SUMS = "tree, sums of {}, hard labels"
REFINED = "tree, refined, best of 4"
ROWS: dict[str, RuleSpec] = {
    HARD: PLAIN,
    "tree, teacher's labels": TAUGHT,
    "tree, 20k mixup points": replace(TAUGHT, num_mixup_samples=20_000),
    REFINED: RuleSpec(),
    "tree, refined, best of 8": RuleSpec(num_starts=8),
    **{
        HARD_SUMS.format(number): RuleSpec(labels=RuleLabels.DATA, num_mixup_samples=0, num_terms=number)
        for number in SUMS
    },
    **{TAUGHT_SUMS.format(number): RuleSpec(num_terms=number) for number in SUMS},
    "rule list, 64 rules": RuleSpec(kind=RuleKind.RULE_LIST),
    "boosted, 16 x 10 trees": RuleSpec(kind=RuleKind.BOOSTED, max_depth=3, max_leaves=8),
}
NETWORK = "network, quarter width, int8"
CPU = torch.device("cpu")


def quiet(fraction: float, message: str) -> None:
    """Progress is not what this prints."""


def measure(split: int, image_size: int, *, with_network: bool) -> dict[str, dict[str, float]]:
    """All rows for one split of the data, percentages, bytes and microseconds."""
    workload = Workload(
        name="digits",
        dataset="digits",
        dataset_options={"image_size": image_size, "split_seed": split},
        teacher_options={"base_width": 16},
        training=TrainingBudget(num_epochs=12, batch_size=32, learning_rate=3e-3, augment_pixels=1),
    )
    registry, trainer = Registry("memory://benchmark-rules"), TeacherTrainer(workload, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    dataset, teacher = trainer.dataset, finish_teacher(workload, trainer, registry=registry)
    print(f"split {split}: teacher {teacher.test_accuracy:.2%}, {teacher.artifact_bytes} bytes", flush=True)
    artifacts: dict[str, bytes] = {}
    fitting, leaves = dict.fromkeys([*ROWS, NETWORK], 0.0), dict.fromkeys([*ROWS, NETWORK], 0)
    for name, spec in ROWS.items():
        began = time.process_time()
        fitted = fit_rules(trainer.model, dataset, spec, seed=0, device=CPU, report=quiet)
        fitting[name], leaves[name] = time.process_time() - began, len(fitted.model.leaves)
        artifacts[name] = rules.encode(fitted.model)
        if name in ("rule list, 64 rules", TAUGHT_SUMS.format(3)) and not split:
            print("\n".join(describe_rules(fitted.model)[:4]), flush=True)
    if with_network:
        task = StudentTask(
            task_id="network",
            workload=workload,
            teacher=teacher,
            profile=DeviceProfile(name="bench", workload="digits", match=MatchRule()),
            spec=CompressionSpec(width_ratio=0.25, precision=Precision.INT8),
        )
        candidate = build_student(task, registry=registry, report=quiet, dataset=dataset, device="cpu")
        artifacts[NETWORK] = registry.get(candidate.digest)
    says = predict(trainer.model, dataset.test.inputs, CPU).argmax(dim=1).numpy()
    runtimes = [evaluate.load(data) for data in artifacts.values()]
    timing = evaluate.time_artifacts(runtimes, dataset.test.inputs[:1])
    rows = {
        name: {
            "accuracy": 100 * evaluate.accuracy(runtime, dataset.test.inputs, dataset.test.labels),
            "fidelity": 100 * evaluate.accuracy(runtime, dataset.test.inputs, says),
            "bytes": len(artifacts[name]),
            "p50_us": 1000 * timing.p50_ms(number),
            "leaves": leaves[name],
            "fit_cpu_s": fitting[name],
        }
        for number, (name, runtime) in enumerate(zip(artifacts, runtimes, strict=True))
    }
    for name, row in rows.items():
        print(f"  {name}: " + ", ".join(f"{key} {value:.1f}" for key, value in row.items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument(
        "--first-split", type=int, default=3, help="settings were compared on splits 0 to 2: not for figures"
    )
    parser.add_argument("--image-size", type=int, default=8)
    parser.add_argument("--without-network", action="store_true", help="rules alone, in less time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [
        measure(split, options.image_size, with_network=not options.without_network)
        for split in range(options.first_split, options.first_split + options.splits)
    ]
    print("| | accuracy % (each split) | fidelity % | bytes | leaves | p50 us | fit, CPU s |")
    print("|---|---|---|---|---|---|---|")
    for name in found[0]:
        rows = [split[name] for split in found]
        mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
        each = ", ".join(f"{row['accuracy']:.1f}" for row in rows)
        print(
            f"| {name} | {mean['accuracy']:.1f} ({each}) | {mean['fidelity']:.1f} | {mean['bytes']:.0f} "
            f"| {mean['leaves']:.0f} | {mean['p50_us']:.1f} | {mean['fit_cpu_s']:.1f} |"
        )
    taught = [TAUGHT_SUMS.format(number) for number in SUMS]
    for name in [*list(ROWS)[1:5], *taught]:
        compare(found, name, HARD)
    for number, name in zip(SUMS, taught, strict=True):
        compare(found, name, HARD_SUMS.format(number))
        compare(found, name, REFINED)


def compare(found: list[dict[str, dict[str, float]]], name: str, peer: str) -> None:
    """Says how many points ``name`` gains over ``peer``."""
    gains = [split[name]["accuracy"] - split[peer]["accuracy"] for split in found]
    met = "met" if statistics.mean(gains) >= GOAL_POINTS else "missed"
    print(
        f"{name}: {statistics.mean(gains):+.1f} points over {peer} "
        f"({', '.join(f'{gain:+.1f}' for gain in gains)}), goal {GOAL_POINTS:+g}: {met}"
    )


if __name__ == "__main__":
    main()
