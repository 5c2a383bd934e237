"""The world around the control plane, in memory: a cluster that obeys, devices that report, a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fresh_database import fresh_store

from cloud.controller import Controller
from cloud.domain.candidates import Candidate, CandidateMetrics
from cloud.domain.devices import DeploymentState, DeploymentStatus, Device
from cloud.domain.families import FamilyResult, FamilyWidth
from cloud.domain.profiles import Constraints, DeviceProfile, Hardware, MatchRule
from cloud.domain.settings import PolicySettings
from cloud.domain.specs import CompressionSpec, Precision
from cloud.domain.tasks import (
    FamilyTask,
    Task,
    TaskEvent,
    TaskFailed,
    TaskProgress,
    TaskResult,
    TaskSucceeded,
    TeacherResult,
    TeacherTask,
)
from cloud.domain.workloads import SearchBudget, Workload
from cloud.family_plans import family_key_of
from cloud.jobrunner import JobRunner
from cloud.shipment import Shipment
from cloud.store import ReportRow, Store
from edgeloop.artifact import sha256_hex
from edgeloop.sketch import LatencySketch
from edgeloop.trust import DirectorKey, key_ring, open_deployment
from edgeloop.v1 import deployment_pb2

WORKLOAD = Workload(name="digits", dataset="digits", search=SearchBudget(max_trials=3))
PROFILE = DeviceProfile(
    name="gateway",
    workload="digits",
    match=MatchRule(labels={"class": "gateway"}),
    constraints=Constraints(latency_p95_ms=10.0),
)
SETTINGS = PolicySettings(
    min_samples=50,
    min_windows=2,
    num_miss_windows=2,
    num_slack_windows=3,
    cool_down_s=2.0,
    max_age_s=60.0,
    num_resamples=40,
)
HARDWARE = Hardware(architecture="x86_64", num_cores=2, memory_bytes=4 << 30)


def digest_of(text: str) -> str:
    return sha256_hex(text.encode())


def teacher_of(workload: Workload, *, version: str = "1") -> TeacherResult:
    return TeacherResult(
        workload=workload.name,
        teacher_key=workload.teacher_key,
        checkpoint_digest=digest_of(f"checkpoint-{workload.teacher_key}-{version}"),
        artifact_digest=digest_of(f"teacher-{workload.teacher_key}-{version}"),
        artifact_bytes=400_000,
        accuracy=0.99,
        test_accuracy=0.985,
        macs=9_000_000,
        num_parameters=117_000,
        latency_p50_ms=0.4,
        reference_p50_ms=0.1,
        num_epochs=3,
        train_s=12.5,
    )


def family_of(task: FamilyTask) -> FamilyResult:
    key = family_key_of(task.workload, task.teacher)
    return FamilyResult(
        workload=task.workload.name,
        teacher_key=task.teacher.teacher_key,
        family_key=key,
        checkpoint_digest=digest_of(f"family-{key}"),
        num_epochs=task.settings.num_epochs,
        train_s=30.0,
        narrowest=task.settings.narrowest,
        widths=tuple(
            FamilyWidth(
                width_ratio=w, accuracy=0.9 + 0.08 * w, macs=int(9e6 * w), num_parameters=int(1e5 * w)
            )
            for w in (0.125, 0.25, 0.5, 0.75, 1.0)
        ),
    )


def candidate_of(profile: DeviceProfile, spec: CompressionSpec, *, parent_digest: str = "") -> Candidate:
    """A wider student is slower and more accurate, by the same rule for all."""
    text = f"{profile.name}-{spec.digest}"
    latency_ms = 0.4 * spec.width_ratio
    return Candidate(
        digest=digest_of(text),
        manifest_digest=digest_of(f"manifest-{text}"),
        workload=profile.workload,
        profile=profile.name,
        parent_digest=parent_digest,
        spec=spec,
        precision=Precision.INT8,
        metrics=CandidateMetrics(
            accuracy=0.9 + 0.08 * spec.width_ratio,
            test_accuracy=0.89 + 0.08 * spec.width_ratio,
            latency_p50_ms=latency_ms,
            latency_p95_ms=1.1 * latency_ms,
            reference_p50_ms=0.1,
            artifact_bytes=int(100_000 * spec.width_ratio),
            peak_rss_bytes=60_000_000,
            macs=int(9e6 * spec.width_ratio),
            num_parameters=int(1e5 * spec.width_ratio),
        ),
    )


@dataclass
class FakeCompute:
    """Finishes what it was given when it is told to, and remembers all that it was ever asked to run."""

    tasks: dict[str, Task] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    events: list[TaskEvent] = field(default_factory=list)
    broken: Exception | None = None

    def submit(self, task: Task) -> None:
        if task.task_id not in self.tasks:
            self.tasks[task.task_id] = task
            self.ran.append(task.task_id)

    def poll(self) -> list[TaskEvent]:
        if self.broken is not None:
            raise self.broken
        events, self.events = self.events, []
        return events

    def cancel(self, task_id: str) -> None:
        self.cancelled.append(task_id)
        if self.tasks.pop(task_id, None) is not None:
            self.events.append(TaskFailed(task_id=task_id, code="cancelled", message="cancelled"))

    def report(self, fraction: float) -> None:
        self.events += [
            TaskProgress(task_id=task_id, fraction=fraction, message="at it") for task_id in self.tasks
        ]

    def finish(self) -> None:
        """All that runs succeeds."""
        for task_id, task in self.tasks.items():
            result: TaskResult
            if isinstance(task, TeacherTask):
                result = teacher_of(task.workload)
            elif isinstance(task, FamilyTask):
                result = family_of(task)
            else:
                result = candidate_of(task.profile, task.spec)
            self.events.append(TaskSucceeded(task_id=task_id, result=result))
        self.tasks.clear()

    def fail(self, task_id: str, *, code: str = "failed", message: str = "out of memory") -> None:
        del self.tasks[task_id]
        self.events.append(TaskFailed(task_id=task_id, code=code, message=message))


class World:
    """A store on disk with everything around it simulated; ``restart`` is a kill -9 of the control plane."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/edgeloop.db"
        self.now_s = 1_000_000.0
        self.director = DirectorKey.generate()
        self.compute = FakeCompute()
        self.deleted_blobs: set[str] = set()
        self.shipped: dict[str, Shipment] = {}
        self.generations: dict[str, list[int]] = {}
        self._sequence = 0
        self.get_blob: Callable[[str], bytes] = lambda _digest: b""
        self.store = fresh_store(folder / "edgeloop.db")
        self._start()

    def _start(self) -> None:
        self.runner = JobRunner(
            self.store,
            now_s=lambda: self.now_s,
            has_blob=lambda digest: digest not in self.deleted_blobs,
            get_blob=lambda digest: self.get_blob(digest),
        )
        self.runner.attach(self.compute)
        self.controller = Controller(
            self.store, director=lambda: self.director, ship=self.ship, settings=SETTINGS
        )

    def restart(self, *, lose_cluster: bool = False) -> None:
        """Everything but the database is gone."""
        self.store.close()
        self.store = Store(self.url)
        if lose_cluster:
            self.compute = FakeCompute(ran=self.compute.ran)
        self._start()

    def ship(self, shipments: Mapping[str, Shipment]) -> None:
        """The publisher and the broker: also keeps every generation that a device ever heard of."""
        self.shipped = dict(shipments)
        for device_id, shipment in shipments.items():
            heard = self.generations.setdefault(device_id, [])
            generation = self.opened(shipment.payload, device_id).generation
            if not heard or heard[-1] != generation:
                heard.append(generation)

    def opened(self, payload: bytes, device_id: str) -> deployment_pb2.Deployment:
        ring = key_ring(self.director.public_bytes)
        return open_deployment(payload, ring, device_id=device_id, now_s=self.now_s)

    def step(self, seconds: float = 1.0) -> None:
        """A moment passes: jobs, then the controller."""
        self.now_s += seconds
        self.runner.step()
        self.controller.step(self.now_s)

    def register(self, device_id: str, profile: DeviceProfile | None = PROFILE) -> None:
        device = Device(device_id=device_id, hardware=HARDWARE, labels={"class": "gateway"}, boot_id="boot")
        self.store.register_device(device, profile.name if profile else None, "", self.now_s)

    def obey(self, device_ids: Iterable[str], state: DeploymentState = DeploymentState.ACTIVE) -> None:
        """The devices take in what was published for them."""
        for device_id in device_ids:
            shipment = self.shipped.get(device_id)
            if shipment is None:
                continue
            deployment = self.opened(shipment.payload, device_id)
            self.store.record_status(
                DeploymentStatus(
                    device_id=device_id,
                    generation=deployment.generation,
                    digest=deployment.digest,
                    state=state,
                    code="" if state is DeploymentState.ACTIVE else "self-test-output",
                    event_time_s=self.now_s,
                ),
                self.now_s,
            )

    def measure(self, device_ids: Iterable[str], p95_ms: float, *, num_windows: int = 1) -> None:
        """The devices report windows of what they serve."""
        for _ in range(num_windows):
            self.now_s += 0.25
            for device_id in device_ids:
                device = self.store.device(device_id)
                if device is None or not device.serving_digest:
                    continue
                self._sequence += 1
                latency = LatencySketch.of([0.8 * p95_ms] * 50 + [p95_ms] * 50)
                self.store.insert_reports(
                    [
                        ReportRow(
                            device_id=device_id,
                            boot_id="boot",
                            sequence=self._sequence,
                            digest=device.serving_digest,
                            generation=device.serving_generation,
                            workload=WORKLOAD.name,
                            start_s=self.now_s - 0.25,
                            end_s=self.now_s,
                            num_samples=latency.count,
                            latency=latency.to_proto().SerializeToString(),
                            reference=LatencySketch.of([0.2] * 20).to_proto().SerializeToString(),
                            rss_bytes=60_000_000,
                        )
                    ],
                    self.now_s,
                )


def build(store: Store, profile: DeviceProfile, *widths: float, now_s: float = 1.0) -> list[Candidate]:
    """Candidates of these widths, as if they had been built."""
    found = []
    for width in widths:
        candidate = candidate_of(profile, CompressionSpec(width_ratio=width))
        store.save_candidate(replace(candidate, create_time_s=now_s), now_s)
        found.append(candidate)
    return found


def prepared(world: World, *, profile: DeviceProfile = PROFILE) -> None:
    """A workload with a trained teacher, and one profile."""
    world.store.apply_workload(WORKLOAD, world.now_s)
    world.store.apply_profile(profile, world.now_s)
    world.store.save_teacher(teacher_of(WORKLOAD), world.now_s)
