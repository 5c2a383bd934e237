"""The goals that compression is measured by, worked out from a seed's artifacts, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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


Row = Mapping[str, Any]


def rows(entries: Sequence[Row]) -> dict[str, float]:
    """The goals that one seed can speak of. Ratios are against the teacher's int8."""

    def of(kind: str, width: float, precision: str = "int8") -> Row:
        return next(
            e for e in entries if e["kind"] == kind and e["width"] == width and e["precision"] == precision
        )

    fp32, int8 = of("teacher", 1.0, "fp32"), of("teacher", 1.0)
    found: dict[str, float] = {
        "teacher_test": fp32["test"],
        "teacher_int8_test": int8["test"],
        "teacher_int8_speedup": fp32["latency_ms"] / int8["latency_ms"],
    }
    ours = [e for e in entries if e["kind"] in ("cut", "refined", "finished")]
    for points in (0.005, 0.010):
        fitting = [e for e in ours if e["validation"] >= fp32["validation"] - points]
        name = f"drop_{points * 100:g}"
        if fitting:
            chosen = min(fitting, key=lambda e: float(e["latency_ms"]))
            found[f"{name}_speedup"] = int8["latency_ms"] / chosen["latency_ms"]
            found[f"{name}_smaller"] = int8["bytes"] / chosen["bytes"]
            found[f"{name}_test_drop"] = fp32["test"] - chosen["test"]
    for e in entries:
        if e["kind"] == "nncf":
            found["nncf_test"] = e["test"]
            found["nncf_speedup"] = int8["latency_ms"] / e["latency_ms"]
        if e["kind"] == "finished" and e["precision"] == "int8":
            name = f"finished_{e['width']:g}"
            found[f"{name}_speedup"] = int8["latency_ms"] / e["latency_ms"]
            found[f"{name}_smaller"] = int8["bytes"] / e["bytes"]
            found[f"{name}_test_drop"] = fp32["test"] - e["test"]
    gaps: dict[str, list[float]] = {"against_scratch": [], "cut_gap": [], "refined_gap": []}
    for width in sorted({e["width"] for e in entries if e["kind"] == "scratch"}):
        alone = of("alone", width)["test"]
        gaps["against_scratch"].append(of("refined", width)["test"] - of("scratch", width)["test"])
        gaps["cut_gap"].append(of("cut", width)["test"] - alone)
        gaps["refined_gap"].append(of("refined", width)["test"] - alone)
        for name, values in gaps.items():
            found[f"{name}_{width:g}"] = values[-1]
    found.update({name: statistics.mean(values) for name, values in gaps.items()})
    for e in entries:
        if e["kind"] == "sparse" and e["precision"] == "int8":
            dense = of("finished", e["width"])
            found["wire"] = e["packed_bytes"] / dense["bytes"]
            found["wire_dense"] = dense["packed_bytes"] / dense["bytes"]
            found["wire_change"] = e["test"] - dense["test"]
    return found


def eight_profiles(seed: Row, *, refined: bool) -> float:
    """CPU of eight profiles over that of one, the teacher aside.

    Each measures every cut of the family; with ``refined`` each also has a refined student of a width of its
    own. What is trained for one serves all; each profile exports, quantises and measures for itself.
    """
    cuts_s = sum(seed["recompression_cpu_s"])
    own_s = cuts_s + (statistics.mean(seed["refinement_cpu_s"]) if refined else 0.0)
    family_s = float(seed["family_cpu_s"])
    return (family_s + 8 * own_s) / (family_s + own_s)


GOALS = (
    ("teacher, test", "teacher_test", 100, "%", "93.5 %"),
    ("teacher int8 (quantize_static), test", "teacher_int8_test", 100, "%", "-"),
    ("    faster than its fp32", "teacher_int8_speedup", 1, "x", "-"),
    ("teacher by NNCF PTQ, test", "nncf_test", 100, "%", "-"),
    ("    faster than quantize_static", "nncf_speedup", 1, "x", "-"),
    ("at most 0.5 points under it: faster than its int8", "drop_0.5_speedup", 1, "x", "2.5x"),
    ("    smaller than its int8", "drop_0.5_smaller", 1, "x", "4x"),
    ("    points under the teacher, test", "drop_0.5_test_drop", 100, "", "0.5"),
    ("at most 1.0 point under it: faster than its int8", "drop_1_speedup", 1, "x", "5x"),
    ("    smaller than its int8", "drop_1_smaller", 1, "x", "10x"),
    ("    points under the teacher, test", "drop_1_test_drop", 100, "", "1.0"),
    ("finished 5/16 wide, int8: faster than teacher's int8", "finished_0.3125_speedup", 1, "x", "-"),
    ("    smaller", "finished_0.3125_smaller", 1, "x", "-"),
    ("    points under the teacher, test", "finished_0.3125_test_drop", 100, "", "-"),
    ("finished 1/4 wide, int8: faster than teacher's int8", "finished_0.25_speedup", 1, "x", "-"),
    ("    smaller", "finished_0.25_smaller", 1, "x", "-"),
    ("    points under the teacher, test", "finished_0.25_test_drop", 100, "", "-"),
    ("refined over scratch + PTQ at equal width, points", "against_scratch", 100, "", "+0.5"),
    ("cut against a stand-alone distilled student, points", "cut_gap", 100, "", "-0.5"),
    ("    1/4 wide", "cut_gap_0.25", 100, "", "-0.5"),
    ("    1/8 wide", "cut_gap_0.125", 100, "", "-0.5"),
    ("refined against a stand-alone distilled student, points", "refined_gap", 100, "", "-0.2"),
    ("sparse, packed, over the int8 ONNX file", "wire", 1, "", "0.6"),
    ("    change of accuracy, points", "wire_change", 100, "", "-0.3"),
    ("    dense, packed", "wire_dense", 1, "", "-"),
)


def report(seeds: Sequence[Row]) -> None:
    """Mean over the seeds, with the range."""
    print(f"\n{'':58} {'measured':>24}   goal")
    for title, key, scale, unit, goal in GOALS:
        values = [seed["rows"][key] * scale for seed in seeds if key in seed["rows"]]
        print(f"{title:58} {spread(values, unit, of=len(seeds)):>24}   {goal}")
    for title, values, unit, goal in (
        ("request to verified artifacts, wall s", pooled(seeds, "recompression_wall_s"), "", "10"),
        ("    of it CPU s", pooled(seeds, "recompression_cpu_s"), "", "-"),
        ("refined, request to verified artifacts, wall s", pooled(seeds, "refinement_wall_s"), "", "60"),
        ("    of it CPU s", pooled(seeds, "refinement_cpu_s"), "", "-"),
        (f"predictions within 10 %, {seeds[0]['predictor']['num_probes']} probes",
         [100 * seed["predictor"]["within_10_percent"] for seed in seeds], "%", "90 %"),
        ("    worst error", [100 * seed["predictor"]["worst"] for seed in seeds], "%", "-"),
        ("eight profiles over one, CPU, cut from the family",
         [eight_profiles(seed, refined=False) for seed in seeds], "x", "2.5x"),
        ("    each with a refined student of its own",
         [eight_profiles(seed, refined=True) for seed in seeds], "x", "2.5x"),
        ("family, CPU s", [seed["family_cpu_s"] for seed in seeds], "", "-"),
    ):  # fmt: skip
        print(f"{title:58} {spread(values, unit):>24}   {goal}")
    print(f"\n{'student':18} {'form':5} {'validation':>10} {'test':>22} {'p50 ms':>8} {'bytes':>8} "
          f"{'wire':>8} {'CPU s':>7}")  # fmt: skip
    for i, entry in enumerate(seeds[0]["entries"]):
        same = [seed["entries"][i] for seed in seeds]
        tests = spread([100 * one["test"] for one in same], "")
        mean = {key: statistics.mean(one[key] for one in same) for key in
                ("validation", "latency_ms", "bytes", "packed_bytes", "cpu_s")}  # fmt: skip
        print(f"{entry['name']:18} {entry['precision']:5} {mean['validation']:10.2%} {tests:>22} "
              f"{mean['latency_ms']:8.4f} {mean['bytes']:8.0f} {mean['packed_bytes']:8.0f} "
              f"{mean['cpu_s']:7.1f}")  # fmt: skip


def pooled(seeds: Sequence[Row], key: str) -> list[float]:
    return [value for seed in seeds for value in seed[key]]


def spread(values: Sequence[float], unit: str, of: int = 0) -> str:
    if not values:
        return "none"
    mean = statistics.mean(values)
    if len(values) == 1:
        text = f"{mean:.2f}{unit}"
    else:
        text = f"{mean:.2f}{unit} ({min(values):.2f} to {max(values):.2f})"
    return text if not of or of == len(values) else f"{text}, {len(values)} of {of}"
