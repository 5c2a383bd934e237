"""A control plane around a running cluster: store, jobs and ControlService, driven by the control script."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
from control_desk import run, served

from cloud.cli.jobs import parse_spec
from cloud.compression.build import finish_teacher
from cloud.domain.networks import StudentNetwork
from cloud.domain.profiles import Constraints, DeviceProfile, MatchRule
from cloud.domain.settings import PolicySettings
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload
from cloud.jobrunner import JobRunner
from cloud.jobs.remote import RemoteCompute
from cloud.registry import Registry
from cloud.services.control import ControlServicer
from cloud.store import Store
from cloud.training.teacher import TeacherTrainer
from edgeloop.v1 import control_service_pb2 as pb

PROFILE = DeviceProfile(name="tiny-flash", workload="digits", match=MatchRule())
SMALL = StudentNetwork(name="small", network="residual-cnn", options={"base_width": 8, "num_stages": 1})
WORKLOAD = Workload(
    name="digits",
    dataset="digits",
    dataset_options={"image_size": 8},
    teacher_options={"base_width": 16, "num_stages": 2},
    training=TrainingBudget(num_epochs=2, batch_size=32, learning_rate=5e-3),
    search=SearchBudget(max_trials=3, num_epochs=1, width_ratios=(0.5,), students=(SMALL,)),
)


class Desk:
    """A digits workload with its teacher, one profile, and jobs that run on ``compute`` while it is open."""

    def __init__(
        self,
        compute: RemoteCompute,
        registry: Registry,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self._store = Store(f"sqlite:///{folder}/edgeloop.db")
        self._store.migrate()
        trainer = TeacherTrainer(WORKLOAD, device="cpu")
        while trainer.epoch < trainer.num_epochs:
            trainer.run_epoch()
        self._store.apply_workload(WORKLOAD, time.time())
        self._store.apply_profile(PROFILE, time.time())
        self.teacher = finish_teacher(WORKLOAD, trainer, registry=registry)
        self._store.save_teacher(self.teacher, time.time())
        self._runner = JobRunner(
            self._store, now_s=time.time, has_blob=registry.exists, get_blob=registry.get
        )
        self._runner.attach(compute)
        self._servicer = ControlServicer(
            self._store, settings=PolicySettings(), info=pb.GetServerInfoResponse, read_blob=registry.get
        )
        self._closing = threading.Event()
        self._stack = ExitStack()
        self._address = ""

    def __enter__(self) -> Self:
        stepping = threading.Thread(target=self._step, name="jobs")
        stepping.start()
        self._stack.callback(self._store.close)
        self._stack.callback(stepping.join)
        self._stack.callback(self._closing.set)
        self._address = self._stack.enter_context(served(self._store, self._servicer))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _step(self) -> None:
        while not self._closing.wait(0.1):
            self._runner.step()

    def says(self, *words: str) -> str:
        """What the control script prints, once what it waits for has ended well."""
        status = run(self._monkeypatch, self._address, *words)
        told = self._capsys.readouterr()
        assert status == 0, told.err
        return told.out

    def built(self, spec: str) -> dict[str, Any]:
        """The candidate that came of what was asked for in these words."""
        wanted = parse_spec(spec)
        found: list[dict[str, Any]] = json.loads(self.says("get", "candidates", "-o", "json"))
        (one,) = (item for item in found if item["spec"] == json.loads(wanted.to_json()))
        return one

    def constrain(self, **constraints: Any) -> None:
        """Another set of constraints for the profile."""
        self._store.apply_profile(replace(PROFILE, constraints=Constraints(**constraints)), time.time())
