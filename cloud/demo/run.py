"""The demonstration, stage by stage.

Every stage asks the control plane what is there already and does only what is missing, so that a resumed run
repeats nothing, and a restart of any process in the middle of a stage does no harm.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live

from cloud.cli.output import job_progress, percent, size
from cloud.demo import screen
from cloud.demo.calibration import calibrate
from cloud.demo.control import POLL_S, DemoControl
from cloud.demo.outcome import ProfileOutcome, behind, judge, rounds_of
from cloud.demo.plan import DemoProfile, load_example
from cloud.demo.processes import Child, Processes
from cloud.demo.report import Demonstration, write_report
from cloud.demo.state import hold, open_state
from cloud.domain.specs import CompressionSpec
from cloud.resources import FleetDocument
from cloud.training.datasets import load_dataset
from edgeloop.errors import RejectedError
from edgeloop.v1 import control_service_pb2 as pb

#: Recorded inputs that the agents replay: enough to differ, small enough to keep six agents light.
NUM_REPLAY_SAMPLES = 128


class Demo:
    """One demonstration in one folder."""

    def __init__(self, example: Path, folder: Path, *, resume: bool, console: Console) -> None:
        self._workload, self._fleet, self._plan = load_example(example)
        self._example = example
        self._folder = folder.resolve()
        self._held = hold(self._folder)
        self._state = open_state(self._folder, example, resume=resume, now_s=time.time())
        self._console = console
        self._processes = Processes(lambda text: console.print(f"  {text}", style="yellow"))
        self._control = DemoControl(
            self._state.control_port,
            self._processes,
            workload=self._workload.name,
            source=self._state.example,
            logs=self._folder / "logs",
        )

    def run(self) -> bool:
        """Run all stages and write the report. Returns whether the loop closed, by measurement."""
        began = time.monotonic()
        try:
            with self._stage(
                "control plane", "starting the control plane: Ray, broker, SQLite, folder registry"
            ):
                self._start_control_plane()
            with self._stage("teacher", f"training the teacher of {self._workload.name}"):
                self._train()
            with self._stage("students", f"building students for {len(self._plan.profiles)} profiles"):
                self._build()
            with self._stage(
                "agents", f"starting {self._num_devices} agents, and rolling the first students out"
            ):
                self._start_agents()
                self._roll_out()
            with self._stage("calibration", "measuring what each profile needs, to set objectives"):
                self._calibrate()
            with self._stage("loop", "the controller compares, re-compresses and rolls out"):
                outcomes = self._close_the_loop()
            demonstration = self._collect(outcomes, time.monotonic() - began)
            write_report(demonstration, self._folder)
            screen.show_end(self._console, demonstration, self._folder)
            return demonstration.closed
        except KeyboardInterrupt:
            self._console.print(
                f"stopped: 'edgeloop demo --resume --workload {self._example} --out {self._folder}' goes on",
                style="yellow",
                soft_wrap=True,
            )
            raise
        finally:
            self._control.close()
            self._processes.stop()

    @property
    def _num_devices(self) -> int:
        return sum(item.num_devices for item in self._plan.profiles)

    @contextmanager
    def _stage(self, name: str, text: str) -> Iterator[None]:
        self._console.print(f"[bold]{name}[/bold]: {text}")
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self._state.stages[name] = self._state.stages.get(name, 0.0) + seconds
        self._state.save(self._folder)
        self._console.print(f"  done in {seconds:.1f} s", style="dim")

    # -- control plane, teacher, students

    def _start_control_plane(self) -> None:
        interval = self._plan.report_interval_s
        command = [
            *(sys.executable, "-P", "-m", "cloud.cli", "serve"),
            *("--state-dir", str(self._folder / "cloud")),
            *("--control-port", str(self._state.control_port)),
            *("--fleet-port", str(self._state.fleet_port)),
            *("--broker-port", str(self._state.broker_port)),
            *("--num-cpus", "2"),
            *("--report-interval-s", str(interval)),
            *("--step-interval-s", "1"),
            *(part for key, value in self._plan.policy.items() for part in ("--policy", f"{key}={value:g}")),
        ]
        self._processes.add(
            Child(name="control plane", command=command, log=self._folder / "logs" / "cloud.log")
        )
        server = self._control.call("GetServerInfo", pb.GetServerInfoRequest(), pb.GetServerInfoResponse)
        self._director_key = server.director_public_key.hex()
        self._tuf_root = self._folder / "root.json"
        self._tuf_root.write_bytes(server.tuf_root)
        self._console.print(
            f"  {server.compute}; broker at {server.broker_host}:{server.broker_port}", style="dim"
        )
        # The stages set the scene by hand, as an operator would; the controller acts from the last one on.
        self._control.pause(not self._state.objectives)
        self._control.apply(self._workload.kind, self._workload.model_dump_json())
        # Objectives come later, from what the devices measure; until then the fleet has none.
        fleet = self._with_objectives(self._state.objectives)
        self._control.apply(fleet.kind, fleet.model_dump_json())

    def _with_objectives(self, objectives: dict[str, float]) -> FleetDocument:
        profiles = [
            profile.model_copy(
                update={
                    "constraints": profile.constraints.model_copy(
                        update={"latency_p95_ms": objectives.get(profile.name)}
                    )
                }
            )
            for profile in self._fleet.profiles
        ]
        return self._fleet.model_copy(update={"profiles": profiles})

    def _train(self) -> None:
        request = pb.TrainTeacherRequest(workload=self._workload.name)
        job = self._control.call("TrainTeacher", request, pb.TrainTeacherResponse).job
        self._watch([job.job_id])
        teacher = self._control.teacher()
        self._console.print(
            f"  {percent(teacher.accuracy)} on the validation split, {teacher.macs / 1e6:.2f} MMAC, "
            f"{size(teacher.artifact_bytes)}"
        )

    def _first_specs(self, item: DemoProfile) -> list[CompressionSpec]:
        epochs = self._workload.search.num_epochs
        return [CompressionSpec(width_ratio=ratio, num_epochs=epochs) for ratio in item.width_ratios]

    def _build(self) -> None:
        jobs = []
        for item in self._plan.profiles:
            specs = [spec.to_json() for spec in self._first_specs(item)]
            request = pb.CompressStudentsRequest(
                workload=self._workload.name, profile=item.profile, spec_json=specs
            )
            jobs.append(
                self._control.call("CompressStudents", request, pb.CompressStudentsResponse).job.job_id
            )
        self._watch(jobs)
        candidates = [c for item in self._plan.profiles for c in self._control.candidates(item.profile)]
        self._console.print(screen.student_table(candidates))

    def _watch(self, job_ids: list[str]) -> None:
        """Show the progress of jobs until all have ended. Raises ``RejectedError`` when one failed."""
        bar = job_progress(self._console)
        with bar:
            tasks = {job_id: bar.add_task("waiting", total=1.0, name="") for job_id in job_ids}
            open_states = (pb.JOB_STATE_PENDING, pb.JOB_STATE_RUNNING)
            while True:
                listed = self._control.call("ListJobs", pb.ListJobsRequest(), pb.ListJobsResponse).jobs
                jobs = [job for job in listed if job.job_id in tasks]
                for job in jobs:
                    name = f"{job.kind} {job.profile or job.workload}"
                    bar.update(tasks[job.job_id], completed=job.progress, description=job.message, name=name)
                if jobs and all(job.state not in open_states for job in jobs):
                    break
                self._processes.tend()
                time.sleep(POLL_S)
        for job in jobs:
            if job.state != pb.JOB_STATE_SUCCEEDED:
                raise RejectedError(
                    f"{job.kind} {job.profile or job.workload}: {job.message}", code="demo-job"
                )

    # -- agents and their first students

    def _start_agents(self) -> None:
        inputs = self._folder / "inputs.npz"
        if not inputs.exists():
            dataset = load_dataset(self._workload.to_domain())
            np.savez(inputs, inputs=dataset.validation.inputs[:NUM_REPLAY_SAMPLES])
        for item in self._plan.profiles:
            for number in range(1, item.num_devices + 1):
                name = f"{item.profile}-{number}"
                command = [
                    *(sys.executable, "-P", "-m", "edge_agent.cli", "run"),
                    *("--device-id", name),
                    *("--state-dir", str(self._folder / "agents" / name)),
                    *("--server", f"127.0.0.1:{self._state.fleet_port}"),
                    *("--broker", f"127.0.0.1:{self._state.broker_port}"),
                    *("--director-key", self._director_key, "--tuf-root", str(self._tuf_root)),
                    *("--label", f"class={item.profile}"),
                    *("--replay", str(inputs), "--rate-hz", str(self._plan.rate_hz)),
                    *("--emulate-slowdown", str(item.slowdown)),
                    # Six on one machine: the local API belongs to one agent a gateway.
                    *("--serve-grpc", "off", "--serve-rest", "off"),
                ]
                self._processes.add(
                    Child(name=name, command=command, log=self._folder / "logs" / f"{name}.log")
                )
        self._control.wait(
            "registering", lambda: len(self._control.devices()) >= self._num_devices, timeout_s=90
        )
        names = sorted(device.registration.device_id for device in self._control.devices())
        self._console.print(f"  registered: {', '.join(names)}", style="dim")

    def _roll_out(self) -> None:
        profiles = self._control.profiles()
        for item in self._plan.profiles:
            if profiles[item.profile].current_digest or self._control.rollouts(item.profile):
                continue
            first = self._first_specs(item)[0].to_json()
            digest = next(
                (
                    c.digest
                    for c in self._control.candidates(item.profile)
                    if json.loads(c.spec_json) == json.loads(first)
                ),
                "",
            )
            request = pb.StartRolloutRequest(
                profile=item.profile, digest=digest, canary_share=1.0, request_id=f"first-{item.profile}"
            )
            self._control.call("StartRollout", request, pb.StartRolloutResponse)

        def all_active() -> bool:
            devices = self._control.devices()
            return len(devices) >= self._num_devices and not any(
                behind([device], device.desired_digest) for device in devices
            )

        self._control.wait("the first rollout", all_active, timeout_s=120)

    # -- objectives and the loop

    def _rounds(self, profile: str) -> ProfileOutcome:
        item = next(item for item in self._plan.profiles if item.profile == profile)
        decisions = self._control.call(
            "ListDecisions",
            pb.ListDecisionsRequest(profile=profile, limit=10_000, changes_only=True),
            pb.ListDecisionsResponse,
        ).decisions
        rounds = rounds_of(
            self._control.measurements(profile),
            self._control.candidates(profile),
            decisions,
            self._control.rollouts(profile),
            self._control.busy(),
        )
        objective_p95_ms = self._state.objectives.get(profile, float("inf"))
        devices = [device for device in self._control.devices() if device.profile == profile]
        return judge(profile, item.outcome, objective_p95_ms, rounds, devices)

    def _settled(self) -> dict[str, float]:
        """The p95 in ms by profile, once all have settled; after a while the newest there are."""
        needed = self._plan.num_calibration_windows
        deadline = time.monotonic() + 60 + 12 * needed * self._plan.report_interval_s
        found: dict[str, tuple[float | None, bool]] = {}

        def settled() -> bool:
            busy = self._control.busy()
            for item in self._plan.profiles:
                windows = self._control.measurements(item.profile)
                found[item.profile] = calibrate(windows, item.num_devices, needed, busy)
            enough = all(p95_ms is not None for p95_ms, _ in found.values())
            return enough and (time.monotonic() > deadline or all(done for _, done in found.values()))

        self._control.wait("calibration", settled, timeout_s=120 + 12 * needed * self._plan.report_interval_s)
        if restless := sorted(profile for profile, (_, done) in found.items() if not done):
            self._console.print(
                f"  what {', '.join(restless)} measures did not settle: the newest figures are taken",
                style="yellow",
            )
        return {profile: p95_ms for profile, (p95_ms, _) in found.items() if p95_ms is not None}

    def _calibrate(self) -> None:
        if not self._state.objectives:
            for profile, p95_ms in self._settled().items():
                ratio = next(item.objective_ratio for item in self._plan.profiles if item.profile == profile)
                self._state.objectives[profile] = round(p95_ms * ratio, 3)
            self._state.objective_time_s = time.time()
            self._state.save(self._folder)
        fleet = self._with_objectives(self._state.objectives)
        self._control.apply(fleet.kind, fleet.model_dump_json())
        self._control.pause(False)
        outcomes = {item.profile: self._rounds(item.profile) for item in self._plan.profiles}
        self._console.print(screen.objective_table(self._plan, outcomes))

    def _close_the_loop(self) -> list[ProfileOutcome]:
        """Watch until every profile ended as expected and stayed so for a while, or time is up."""
        deadline = time.monotonic() + self._plan.timeout_s
        settle_s = self._plan.num_settled_windows * self._plan.report_interval_s
        settled_since: float | None = None
        digests: dict[str, str] = {}
        with Live(console=self._console, refresh_per_second=4, transient=True) as live:
            while True:
                self._processes.tend()
                outcomes = [self._rounds(item.profile) for item in self._plan.profiles]
                profiles = self._control.profiles()
                live.update(screen.progress_table(outcomes, profiles))
                now = {outcome.name: profiles[outcome.name].current_digest for outcome in outcomes}
                if any(outcome.problems for outcome in outcomes) or now != digests:
                    settled_since = None
                elif settled_since is None:
                    settled_since = time.monotonic()
                digests = now
                done = settled_since is not None and time.monotonic() - settled_since >= settle_s
                if done or time.monotonic() > deadline:
                    return outcomes
                time.sleep(1.0)

    # -- what came of it

    def _collect(self, outcomes: list[ProfileOutcome], wall_s: float) -> Demonstration:
        names = [item.profile for item in self._plan.profiles]
        return Demonstration(
            workload=self._workload.name,
            wall_s=wall_s,
            stages=dict(self._state.stages),
            teacher=self._control.teacher(),
            outcomes=outcomes,
            devices=self._control.devices(),
            measurements={name: self._control.measurements(name) for name in names},
            candidates={name: self._control.candidates(name) for name in names},
            busy=self._control.busy(),
            slowdowns={item.profile: item.slowdown for item in self._plan.profiles},
            verdicts={name: profile.message for name, profile in self._control.profiles().items()},
            objective_time_s=self._state.objective_time_s,
        )
