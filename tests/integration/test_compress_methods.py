"""``edgeloop compress`` from end to end: what binds makes the search reach for other methods, and say so.

A control plane as a user starts it, with a Ray of its own, and the commands that a user types. The teacher is
there from before, so that nothing waits for a training.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cloud.compression.build import build_student, finish_teacher
from cloud.domain.candidates import Candidate
from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.specs import CompressionSpec, Precision
from cloud.domain.tasks import StudentTask
from cloud.domain.workloads import Workload
from cloud.registry import Registry
from cloud.resources import WorkloadDocument
from cloud.store import Store
from cloud.training.teacher import TeacherTrainer

#: Ray starts in some 10 s on two idle cores, and its workers load torch; neighbours make it longer.
pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

WAIT_S = 300.0
WORKLOAD = {
    "kind": "Workload",
    "name": "digits",
    "dataset": "digits",
    "dataset_options": {"image_size": 12},
    "teacher_options": {"base_width": 16, "num_stages": 2},
    "training": {"num_epochs": 5, "batch_size": 32, "learning_rate": 0.005},
    "search": {"max_trials": 4, "num_epochs": 2, "width_ratios": [0.5]},
}
PLAIN = CompressionSpec(width_ratio=0.5, num_epochs=2, precision=Precision.INT8)


class Plane:
    """A control plane on a folder, and the control script on the same."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log_file = folder, folder.with_suffix(".log")
        command = [sys.executable, "-m", "cloud.cli", "serve", "--state-dir", str(folder), "--num-cpus", "2"]
        command += ["--fleet-port", "0", "--control-port", "0", "--broker-port", "0"]
        command += ["--step-interval-s", "0.2"]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until_s = time.monotonic() + 60
        while not (folder / "server.json").exists():
            assert self.process.poll() is None, self.log_file.read_text()
            assert time.monotonic() < until_s, self.log_file.read_text()
            time.sleep(0.05)

    def read(self, *words: str) -> Any:
        """What the command says with -o json."""
        return json.loads(self.run(*words, "-o", "json"))

    def run(self, *words: str) -> str:
        command = [sys.executable, "-m", "cloud.cli", *words, "--state-dir", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
        assert done.returncode == 0, done.stderr + self.log_file.read_text()[-3000:]
        return done.stdout

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            self.process.kill()


@pytest.fixture
def plain(tmp_path: Path) -> Candidate:
    """The teacher, kept where a control plane will find it, and what plain int8 makes of it."""
    torch.set_num_threads(1)  # as workers do: more would fight over the cores
    folder = tmp_path / "state"
    folder.mkdir()
    registry = Registry(str(folder / "registry"))
    workload: Workload = WorkloadDocument.model_validate(WORKLOAD).to_domain()
    trainer = TeacherTrainer(workload, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    teacher = finish_teacher(workload, trainer, registry=registry)
    store = Store(f"sqlite:///{folder / 'edgeloop.db'}")
    store.migrate()
    store.save_teacher(teacher, time.time())
    store.close()
    profile = DeviceProfile(name="elsewhere", workload="digits", match=MatchRule())
    task = StudentTask(task_id="plain", workload=workload, teacher=teacher, profile=profile, spec=PLAIN)
    return build_student(
        task, registry=registry, report=lambda *_: None, dataset=trainer.dataset, device="cpu"
    )


@pytest.fixture
def plane(plain: Candidate, tmp_path: Path) -> Iterator[Plane]:
    plane = Plane(tmp_path / "state")
    yield plane
    plane.end()


def test_where_bytes_bind_the_search_finds_a_student_that_plain_int8_is_not_and_says_why(
    plain: Candidate, plane: Plane, tmp_path: Path
) -> None:
    limit = int(plain.metrics.artifact_bytes * 0.8)
    fleet = {
        "kind": "Fleet",
        "workload": "digits",
        "profiles": [
            {
                "name": "tiny-flash",
                "match": {"labels": {"class": "tiny"}},
                "constraints": {"artifact_bytes": limit, "min_accuracy": 0.5},
            }
        ],
    }
    (tmp_path / "documents.yaml").write_text(yaml.safe_dump_all([WORKLOAD, fleet]))
    plane.run("pause")  # the controller builds for a new profile by itself: here a person asks
    plane.run("apply", "-f", str(tmp_path / "documents.yaml"))
    (job,) = plane.read("compress", "-p", "tiny-flash")
    assert "failed" not in job["message"]

    built = {c["digest"]: c | {"spec": json.loads(c["spec_json"])} for c in plane.read("get", "candidates")}
    assert len(built) == WORKLOAD["search"]["max_trials"]  # type: ignore[index]
    (first,) = (c for c in built.values() if "first of the search" in c["proposed_reason"])
    assert int(first["artifact_bytes"]) > limit
    packed = [c for c in built.values() if c["spec"].get("quantisation") or c["spec"].get("sparsity")]
    rules = [c for c in built.values() if c["spec"]["road"] == "rules"]
    assert packed
    assert rules
    for candidate in packed:
        assert candidate["proposed_reason"].startswith("artifact bytes bind: ")
        assert f"of at most {limit}" in candidate["proposed_reason"]
        assert int(candidate["executable_bytes"]) > int(candidate["artifact_bytes"])
    assert any(int(c["artifact_bytes"]) <= limit and c["accuracy"] >= 0.5 for c in packed)
    assert all("few enough for rules" in c["proposed_reason"] for c in rules)

    answer = plane.read("pareto", "tiny-flash")
    (chosen,) = (point for point in answer["points"] if point.get("chosen"))
    assert int(chosen["artifact_bytes"]) <= limit
    assert chosen["proposed_reason"] == built[chosen["digest"]]["proposed_reason"] != ""
