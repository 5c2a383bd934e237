"""The documents that people write, and how they become domain values.

What a document may hold is said here once: the models validate it on both sides of ControlService, and
their JSON Schema (``edgeloop schema KIND``) lets an editor check it while it is typed. Unknown keys are
errors, since a misspelt budget must not pass for an absent one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from cloud.domain.losses import Loss
from cloud.domain.methods import Method
from cloud.domain.networks import StudentNetwork
from cloud.domain.profiles import Constraints, DeviceProfile, GroupPlan, MatchRule, RolloutPlan
from cloud.domain.windows import MaintenanceWindow, check_window
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload

Name = Annotated[
    str,
    Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$", description="lower case letters, digits, . _ -"),
]
#: What may be written without a module. The training code has the same names: a test holds them together.
BUILT_IN_DATASETS = ("digits", "fashion-mnist")
BUILT_IN_TEACHERS = ("residual-cnn",)


def _one_of(known: Sequence[str]) -> AfterValidator:
    def check(name: str) -> str:
        if ":" not in name and name not in known:
            raise ValueError(f"{name!r} is not built in: write {' or '.join(known)}, or module:callable")
        return name

    return AfterValidator(check)


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they would turn into null on their way."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number that can be passed on: write a finite one")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite(inner)
    return value


Reference = Annotated[
    str,
    Field(
        pattern=r"^([a-z0-9][a-z0-9-]*|[A-Za-z_][\w.]*:[A-Za-z_][\w.]*)$",
        max_length=200,
        description="a built-in name, or module:callable",
    ),
]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
InstructionSet = Annotated[
    str, Field(pattern=r"^[a-z0-9_.]{1,32}$", description="as devices report it, such as avx2 or dotprod")
]
Options = Annotated[dict[str, Any], Field(max_length=32), AfterValidator(_finite)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TrainingSection(Section):
    """How the teacher is trained."""

    num_epochs: Annotated[int, Field(ge=1, le=10_000)] = 12
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    learning_rate: Annotated[
        float, Field(gt=0, le=10, description="peak, of teachers; students and families learn at twice it")
    ] = 2e-3
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 1e-2
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    augment_pixels: Annotated[int, Field(ge=0, le=64, description="largest random shift of an image")] = 0
    augment_flip: Annotated[bool, Field(description="mirror half of the images")] = False
    bfloat16: Annotated[
        bool,
        Field(description="halves the cost of training where the processor multiplies bfloat16, else slow"),
    ] = False
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    num_teachers: Annotated[
        int,
        Field(ge=1, le=8, description="from seeds that follow each other; students learn from all"),
    ] = 1

    @model_validator(mode="after")
    def _seeds_exist(self) -> TrainingSection:
        if self.seed + self.num_teachers > 2**31:
            raise ValueError(
                f"seed is {self.seed}, and num_teachers {self.num_teachers} take those that follow it: "
                "lower seed"
            )
        return self


class StudentSection(Section):
    """A network that competes with narrower ones of the teacher's own kind."""

    network: Annotated[Reference, _one_of(BUILT_IN_TEACHERS)]
    options: Options = {}


class SearchSection(Section):
    """What one compression may spend."""

    max_trials: Annotated[int, Field(ge=1, le=1000)] = 6
    num_epochs: Annotated[int, Field(ge=0, le=1000, description="of distillation, for each student")] = 4
    width_ratios: Annotated[
        list[Annotated[float, Field(gt=0, le=1)]],
        Field(min_length=1, max_length=64, description="shares of the teacher's channels to start from"),
    ] = [0.75, 0.5, 0.25]
    depth_ratios: Annotated[
        list[Annotated[float, Field(ge=0.01, le=1)]],
        Field(
            min_length=1, max_length=8, description="shares of its branches with which the family is trained"
        ),
    ] = [1.0]
    num_calibration_samples: Annotated[int, Field(ge=8, le=100_000)] = 256
    family_epochs: Annotated[
        int, Field(ge=0, le=1000, description="of the elastic family that all profiles share; 0: none")
    ] = 0
    methods: Annotated[
        list[Literal["quantisation", "sparsity", "qat", "rules", "depth", "shortcuts"]] | None,
        Field(max_length=6, description="what to try beside widths and roads; all that suit when left out"),
    ] = None
    tolerance: Annotated[float, Field(ge=0, le=1, description="accuracy that int8 may cost")] = 0.01
    students: Annotated[
        dict[Name, StudentSection],
        Field(max_length=16, description="networks of your own to try as students, by a name for each"),
    ] = {}

    def to_domain(self) -> SearchBudget:
        """The budget as the domain knows it."""
        methods = None if self.methods is None else tuple(map(Method, self.methods))
        students = tuple(
            StudentNetwork(name=name, network=student.network, options=student.options)
            for name, student in self.students.items()
        )
        return SearchBudget(
            **{
                **self.model_dump(),
                "width_ratios": tuple(self.width_ratios),
                "depth_ratios": tuple(self.depth_ratios),
                "methods": methods,
                "students": students,
            }
        )


class WorkloadDocument(Section):
    """What is to be learnt: data, teacher, student family, and the budgets for them."""

    kind: Literal["Workload"]
    name: Name
    dataset: Annotated[Reference, _one_of(BUILT_IN_DATASETS)]
    dataset_options: Options = {}
    teacher: Annotated[Reference, _one_of(BUILT_IN_TEACHERS)] = "residual-cnn"
    teacher_options: Options = {}
    student: Annotated[
        Literal["teacher"],
        Field(description="students are cut from the teacher's own network; search.students names others"),
    ] = "teacher"
    loss: Annotated[
        Literal["cross-entropy", "binary", "regression"],
        Field(description="one class of several, yes or no by one output, or numbers"),
    ] = "cross-entropy"
    training: TrainingSection = TrainingSection()
    search: SearchSection = SearchSection()
    source_dir: Annotated[
        str,
        Field(
            max_length=4096, description="import path of the callables; the file's own folder when left out"
        ),
    ] = ""

    @property
    def references(self) -> list[str]:
        """Whatever may name code of the workload's own."""
        return [self.dataset, self.teacher, *(student.network for student in self.search.students.values())]

    def to_domain(self) -> Workload:
        """The workload as the domain knows it."""
        return Workload(
            name=self.name,
            dataset=self.dataset,
            dataset_options=self.dataset_options,
            teacher=self.teacher,
            teacher_options=self.teacher_options,
            student=self.student,
            training=TrainingBudget(**self.training.model_dump()),
            search=self.search.to_domain(),
            source_dir=self.source_dir,
            loss=Loss(self.loss),
        )


class MatchSection(Section):
    """Which devices belong to the profile: every condition given must hold."""

    architecture: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")] | None = None
    instruction_sets: list[InstructionSet] = []
    min_cores: Annotated[int, Field(ge=1)] | None = None
    max_cores: Annotated[int, Field(ge=1)] | None = None
    min_memory_bytes: Annotated[int, Field(ge=1)] | None = None
    max_memory_bytes: Annotated[int, Field(ge=1)] | None = None
    labels: dict[str, str] = {}

    @model_validator(mode="after")
    def _bounds_in_order(self) -> MatchSection:
        for low, high, name in (
            (self.min_cores, self.max_cores, "cores"),
            (self.min_memory_bytes, self.max_memory_bytes, "memory_bytes"),
        ):
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{name} is {low}, over max_{name} {high}: no device can match")
        return self


class ConstraintsSection(Section):
    """What the profile must meet; a key that is left out leaves that side open."""

    latency_p95_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = None
    artifact_bytes: Annotated[int, Field(ge=1)] | None = None
    peak_rss_bytes: Annotated[int, Field(ge=1)] | None = None
    min_accuracy: Share | None = None


class RolloutGroupSection(Section):
    """One group; thresholds that are left out are those of the rollout."""

    name: Name
    target_percentage: Annotated[
        float, Field(gt=0, le=100, description="of the devices that no group before has")
    ] = 100.0
    success_threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    error_threshold: Annotated[float, Field(gt=0, le=1)] | None = None


class MaintenanceWindowSection(Section):
    """When devices may be disturbed, by the clock of each."""

    schedule: Annotated[str, Field(max_length=200, description="five fields as cron has them")]
    duration: Annotated[str, Field(max_length=16, description="HH:MM or HH:MM:SS")]
    timezone: Annotated[
        str, Field(max_length=64, description="of devices without a label 'timezone' or a zone of their own")
    ] = "UTC"

    @model_validator(mode="after")
    def _can_open(self) -> MaintenanceWindowSection:
        check_window(MaintenanceWindow(**self.model_dump()))
        return self


class RolloutSection(Section):
    """How a new artifact is exposed to the profile's devices."""

    canary_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    success_threshold: Annotated[float, Field(gt=0, le=1)] = 1.0
    error_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    timeout_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = 600.0
    groups: Annotated[
        list[RolloutGroupSection],
        Field(max_length=100, description="in the order in which they start; none: canary and rest"),
    ] = []
    max_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    maintenance_window: MaintenanceWindowSection | None = None

    @field_validator("groups")
    @classmethod
    def _names_differ(cls, groups: list[RolloutGroupSection]) -> list[RolloutGroupSection]:
        names = [group.name for group in groups]
        if len(set(names)) < len(names):
            raise ValueError("two groups have the same name: names must differ")
        return groups

    def to_domain(self) -> RolloutPlan:
        """The plan as the domain knows it."""
        values = self.model_dump(exclude={"groups", "maintenance_window"})
        window = self.maintenance_window
        return RolloutPlan(
            **values,
            groups=tuple(GroupPlan(**group.model_dump()) for group in self.groups),
            maintenance_window=None if window is None else MaintenanceWindow(**window.model_dump()),
        )


class ProfileSection(Section):
    """One hardware class with its budgets."""

    name: Name
    match: MatchSection
    constraints: ConstraintsSection = ConstraintsSection()
    instruction_sets: Annotated[
        list[InstructionSet],
        Field(description="what every device of the class has; decides how weights are quantised"),
    ] = []
    num_threads: Annotated[int, Field(ge=1, le=256)] = 1
    rollout: RolloutSection = RolloutSection()


class FleetDocument(Section):
    """The profiles of one workload. A profile that leaves the document leaves the fleet."""

    kind: Literal["Fleet"]
    workload: Name
    profiles: Annotated[list[ProfileSection], Field(min_length=1, max_length=1000)]

    @field_validator("profiles")
    @classmethod
    def _names_differ(cls, profiles: list[ProfileSection]) -> list[ProfileSection]:
        names = [profile.name for profile in profiles]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"profile {doubled[0]!r} stands here twice: names must differ")
        return profiles

    @property
    def name(self) -> str:
        return self.workload

    def to_domain(self) -> list[DeviceProfile]:
        """The profiles as the domain knows them."""
        return [
            DeviceProfile(
                name=profile.name,
                workload=self.workload,
                match=MatchRule(
                    **{
                        **profile.match.model_dump(),
                        "instruction_sets": frozenset(profile.match.instruction_sets),
                    }
                ),
                constraints=Constraints(**profile.constraints.model_dump()),
                instruction_sets=frozenset(profile.instruction_sets),
                num_threads=profile.num_threads,
                rollout=profile.rollout.to_domain(),
            )
            for profile in self.profiles
        ]


Document = WorkloadDocument | FleetDocument
KINDS: dict[str, type[WorkloadDocument] | type[FleetDocument]] = {
    "Workload": WorkloadDocument,
    "Fleet": FleetDocument,
}
