"""The demonstration judges by measurement: each way in which the loop has not closed must show."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cloud.demo.calibration import calibrate
from cloud.demo.outcome import busy_spans, judge, rounds_of
from cloud.demo.plan import DemoPlan, Outcome, load_example
from cloud.demo.report import Demonstration, write_report
from cloud.demo.state import hold, open_state
from edgeloop.errors import ConfigError
from edgeloop.sketch import LatencySketch
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1 import deployment_pb2

LARGE, SMALL = "a" * 64, "b" * 64
EXAMPLES = Path(__file__).parents[3] / "examples"


def measurement(generation: int, digest: str, latencies_ms: list[float], *, start_s: int) -> pb.Measurement:
    sketch = LatencySketch.of(latencies_ms)
    found = pb.Measurement(
        device_id="gw-1",
        generation=generation,
        digest=digest,
        num_samples=sketch.count,
        p95_ms=sketch.quantile(0.95),
        latency=sketch.to_proto(),
    )
    found.start_time.FromSeconds(start_s)
    found.end_time.FromSeconds(start_s + 2)
    return found


def candidate(digest: str, *, accuracy: float, macs: int) -> pb.CandidateInfo:
    spec = json.dumps({"road": "pruned", "width_ratio": 0.5})
    return pb.CandidateInfo(
        digest=digest,
        accuracy=accuracy,
        test_accuracy=accuracy - 0.01,
        macs=macs,
        spec_json=spec,
        latency_p50_ms=1.0,
    )


CANDIDATES = [
    candidate(LARGE, accuracy=0.99, macs=8_000_000),
    candidate(SMALL, accuracy=0.97, macs=1_000_000),
]
BEFORE = [measurement(1, LARGE, [10.0] * 100, start_s=s) for s in (10, 12)]
AFTER = [measurement(2, SMALL, [4.0] * 100, start_s=s) for s in (20, 22)]
DECISIONS = [pb.DecisionInfo(decision_id="d-1", action="roll-out", reason="p95 10 ms over 5 ms")]
ROLLOUTS = [pb.RolloutInfo(rollout_id="r-2", digest=SMALL, decision_id="d-1")]


def windows_of(device_id: str, *latencies_ms: float) -> list[pb.Measurement]:
    found = [measurement(1, LARGE, [ms] * 50, start_s=10 + 2 * at) for at, ms in enumerate(latencies_ms)]
    for window in found:
        window.device_id = device_id
    return found


def test_an_objective_waits_until_what_is_measured_has_settled() -> None:
    other = windows_of("gw-2", *[8.0] * 6)
    assert calibrate(windows_of("gw-1", 8.0, 8.0), 2, 3) == (None, False)
    assert calibrate(other, 2, 3) == (None, False)
    assert calibrate(windows_of("gw-1", 8.0, 8.0, 8.0) + other[:3], 2, 3)[1] is False
    restarting = calibrate(windows_of("gw-1", 20.0, 20.0, 20.0, 8.0, 8.0, 8.0) + other, 2, 3)
    assert restarting == (pytest.approx(8.0, rel=0.02), False)
    p95_ms, settled = calibrate(windows_of("gw-1", 20.0, 20.0, 8.0, 8.5, 8.0, 8.0, 8.5, 8.0) + other, 2, 3)
    assert settled
    assert p95_ms == pytest.approx(8.5, rel=0.02)


def test_windows_beside_a_build_count_for_no_objective() -> None:
    windows = windows_of("gw-1", *[8.0] * 6)
    job = pb.JobInfo(job_id="j-1")
    job.create_time.FromSeconds(18)
    assert calibrate(windows, 1, 3, busy_spans([], 30.0)) == (pytest.approx(8.0, rel=0.02), True)
    assert calibrate(windows, 1, 3, busy_spans([job], 30.0))[1] is False
    job.create_time.FromSeconds(14)
    assert calibrate(windows, 1, 3, busy_spans([job], 30.0)) == (None, False)


def outcome_of(measurements: list[pb.Measurement], outcome: Outcome, objective_ms: float) -> Any:
    rounds = rounds_of(measurements, CANDIDATES, DECISIONS, ROLLOUTS)
    devices = [device("gw-1", rounds[-1].digest)] if rounds else []
    return judge("small", outcome, objective_ms, rounds, devices)


def device(name: str, digest: str, state: Any = deployment_pb2.DEPLOYMENT_STATE_ACTIVE) -> pb.DeviceInfo:
    found = pb.DeviceInfo(profile="small", serving_digest=digest, desired_digest=digest)
    found.registration.device_id = name
    found.deployment.state = state
    return found


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(device("gw-2", LARGE), id="serves-the-old-one"),
        pytest.param(device("gw-2", SMALL, deployment_pb2.DEPLOYMENT_STATE_TRIAL), id="on-trial"),
        pytest.param(device("gw-2", ""), id="serves-nothing"),
    ],
)
def test_a_loop_is_not_closed_before_every_device_serves_what_was_decided(late: pb.DeviceInfo) -> None:
    rounds = rounds_of(BEFORE + AFTER, CANDIDATES, DECISIONS, ROLLOUTS)
    closed = judge("small", Outcome.COMPRESSED, 5.0, rounds, [device("gw-1", SMALL)])
    assert closed.problems == []
    (problem,) = judge("small", Outcome.COMPRESSED, 5.0, rounds, [device("gw-1", SMALL), late]).problems
    assert problem.startswith("gw-2 does not serve")


def test_rounds_merge_windows_and_carry_their_decision() -> None:
    first, last = rounds_of(AFTER + BEFORE, CANDIDATES, DECISIONS, ROLLOUTS)
    assert (first.generation, first.num_samples, first.decision) == (1, 200, "started")
    assert first.p95_ms == pytest.approx(10.0, rel=0.011)
    assert (last.generation, last.decision, last.reason) == (2, "roll-out", "p95 10 ms over 5 ms")
    assert last.accuracy == pytest.approx(0.96)
    assert last.validation_accuracy == pytest.approx(0.97)


def test_a_digest_that_comes_back_is_a_round_of_its_own_with_its_own_reason() -> None:
    decisions = [*DECISIONS, pb.DecisionInfo(decision_id="d-2", action="roll-back", reason="measured worse")]
    back = pb.RolloutInfo(rollout_id="r-3", digest=SMALL, decision_id="d-2")
    back.create_time.FromSeconds(30)
    again = [measurement(4, SMALL, [4.0] * 100, start_s=32)]
    rounds = rounds_of(BEFORE + AFTER + again, CANDIDATES, decisions, [*ROLLOUTS, back])
    assert [r.decision for r in rounds] == ["started", "roll-out", "roll-back"]


def test_windows_in_which_this_machine_built_students_do_not_count() -> None:
    slow = measurement(1, LARGE, [90.0] * 100, start_s=14)
    (found,) = rounds_of([*BEFORE, slow], CANDIDATES, DECISIONS, ROLLOUTS, busy=[(15.0, 30.0)])
    assert found.num_samples == 200
    assert found.p95_ms == pytest.approx(10.0, rel=0.011)


@pytest.mark.parametrize(
    ("measurements", "outcome", "objective_ms", "problem"),
    [
        pytest.param(BEFORE + AFTER, Outcome.COMPRESSED, 5.0, None, id="compressed"),
        pytest.param(BEFORE, Outcome.COMPRESSED, 5.0, "still serves its first student", id="not-compressed"),
        pytest.param(BEFORE + AFTER, Outcome.COMPRESSED, 3.0, "over the objective", id="still-misses"),
        pytest.param(
            BEFORE + AFTER, Outcome.COMPRESSED, 20.0, "met the objective already", id="never-missed"
        ),
        pytest.param(BEFORE + AFTER[:0], Outcome.KEPT, 20.0, None, id="kept"),
        pytest.param(BEFORE + AFTER, Outcome.KEPT, 20.0, "was changed all the same", id="not-kept"),
        pytest.param(BEFORE + AFTER, Outcome.RELAXED, 20.0, "not more accurate", id="not-relaxed"),
        pytest.param([], Outcome.KEPT, 20.0, "nothing was measured", id="nothing"),
        pytest.param(
            [*BEFORE, measurement(2, SMALL, [4.0] * 10, start_s=20)],
            Outcome.COMPRESSED,
            5.0,
            "only 10 of 100 samples",
            id="too-few",
        ),
    ],
)
def test_each_profile_is_judged_by_what_was_measured(
    measurements: list[pb.Measurement], outcome: Outcome, objective_ms: float, problem: str | None
) -> None:
    problems = outcome_of(measurements, outcome, objective_ms).problems
    if problem is None:
        assert problems == []
    else:
        assert any(problem in text for text in problems)


def demonstration(measurements: list[pb.Measurement]) -> Demonstration:
    device = pb.DeviceInfo(profile="small", generation=2, serving_digest=SMALL, rss_bytes=70_000_000)
    device.registration.device_id = "gw-1"
    return Demonstration(
        workload="digits",
        wall_s=100.0,
        stages={"teacher": 30.0},
        teacher=pb.TeacherInfo(accuracy=0.99, test_accuracy=0.98, macs=8_000_000, artifact_bytes=400_000),
        outcomes=[outcome_of(measurements, Outcome.COMPRESSED, 5.0)],
        devices=[device],
        measurements={"small": measurements},
        candidates={"small": CANDIDATES},
        busy=[(13.0, 14.0)],
        slowdowns={"small": 8},
        verdicts={"small": "p95 4 ms meets 5 ms"},
        objective_time_s=15.0,
    )


def test_the_report_tells_whether_the_loop_closed_and_shows_both_plots(tmp_path: Path) -> None:
    write_report(demonstration(BEFORE + AFTER), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["closed"] is True
    assert report["profiles"]["small"]["met"] is True
    assert [r["digest"] for r in report["profiles"]["small"]["rounds"]] == [LARGE, SMALL]
    assert report["devices"][0]["serving_digest"] == SMALL
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "the loop closed" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    write_report(demonstration(BEFORE), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["closed"] is False
    assert "the loop did not close" in (tmp_path / "report.html").read_text()


def test_a_report_escapes_what_came_over_the_wire(tmp_path: Path) -> None:
    demo = demonstration(BEFORE + AFTER)
    demo.devices[0].registration.device_id = "<script>alert(1)</script>"
    write_report(demo, tmp_path)
    assert "<script>" not in (tmp_path / "report.html").read_text()


def test_state_is_resumed_only_for_its_own_example_and_foreign_folders_are_never_cleared(
    tmp_path: Path,
) -> None:
    folder, example = tmp_path / "out", tmp_path / "example"
    first = open_state(folder, example, resume=False, now_s=1.0)
    first.objectives["small"] = 5.0
    first.save(folder)
    assert open_state(folder, example, resume=True, now_s=2.0) == first
    with pytest.raises(ConfigError, match="holds a demonstration of"):
        open_state(folder, tmp_path / "other", resume=True, now_s=2.0)
    assert open_state(folder, example, resume=False, now_s=3.0).objectives == {}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is no demonstration"):
        open_state(foreign, example, resume=False, now_s=3.0)
    assert (foreign / "thesis.txt").exists()
    with pytest.raises(ConfigError, match="nothing to resume"):
        open_state(foreign, example, resume=True, now_s=3.0)


def test_a_second_demonstration_in_a_folder_is_refused_and_clears_nothing(tmp_path: Path) -> None:
    folder, example = tmp_path / "out", tmp_path / "example"
    held = hold(folder)
    open_state(folder, example, resume=False, now_s=1.0)
    with pytest.raises(ConfigError, match="another demonstration runs in"):
        hold(folder)
    # Also after the first has cleared the folder.
    (folder / "cloud").mkdir()
    open_state(folder, example, resume=False, now_s=2.0)
    assert [entry.name for entry in folder.iterdir()] == ["demo.json"]
    with pytest.raises(ConfigError, match="another demonstration runs in"):
        hold(folder)
    os.close(held)
    os.close(hold(folder))


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_the_examples_can_be_read(name: str) -> None:
    _, fleet, plan = load_example(EXAMPLES / name)
    assert {item.outcome for item in plan.profiles} == set(Outcome)
    assert len(fleet.to_domain()) == 3


def test_an_example_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    values = {"profile": "small", "slowdown": 2, "width_ratios": [1.0], "objective_ratio": 1.5}
    with pytest.raises(ValueError, match="must be under 1 for 'compressed'"):
        DemoPlan.model_validate({"kind": "Demo", "profiles": [{**values, "outcome": "compressed"}]})
    with pytest.raises(ConfigError, match="is no folder"):
        load_example(tmp_path / "absent")
