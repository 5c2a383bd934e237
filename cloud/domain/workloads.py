"""What is to be learnt: data, teacher, student family, and the budgets for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cloud.domain.losses import Loss
from cloud.domain.methods import Method
from cloud.domain.networks import StudentNetwork
from cloud.domain.specs import LEARNING_RATES

#: Of the teacher's learning rate. Students are narrower and train for fewer epochs, and bear more: ADR 94.
STUDENT_RATE_RATIO = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingBudget:
    """How long and how the teacher is trained. ``augment_pixels`` is the largest random shift of an image.

    ``bfloat16`` holds for students and families too: see ``cloud.training.arithmetic``. ``num_teachers`` are
    trained alike from ``seed`` and the seeds that follow it; students learn from the mean of what they give.
    """

    num_epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.05
    augment_pixels: int = 0
    augment_flip: bool = False
    bfloat16: bool = False
    seed: int = 0
    num_teachers: int = 1

    @property
    def student_learning_rate(self) -> float:
        """The peak for students and families that are not given one."""
        least, most = LEARNING_RATES
        return min(max(STUDENT_RATE_RATIO * self.learning_rate, least), most)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchBudget:
    """What one compression may spend. ``width_ratios`` is where the search starts, widest first.

    ``family_epochs`` is how long the workload's elastic family is trained, once for all profiles; with 0 the
    search cuts no students from one. ``methods`` is what the search may try beyond widths and roads (None:
    all that suit). ``tolerance`` is the accuracy that int8 may cost. ``depth_ratios`` are the depths at which
    the family is trained and cut; its full one, 1, always is one of them. ``students`` are networks beside
    the teacher's own kind.
    """

    max_trials: int = 6
    num_epochs: int = 4
    width_ratios: tuple[float, ...] = (0.75, 0.5, 0.25)
    num_calibration_samples: int = 256
    family_epochs: int = 0
    methods: tuple[Method, ...] | None = None
    tolerance: float = 0.01
    depth_ratios: tuple[float, ...] = (1.0,)
    students: tuple[StudentNetwork, ...] = ()

    @property
    def shorter_depths(self) -> tuple[float, ...]:
        """Those under 1, deepest first."""
        return tuple(sorted({depth for depth in self.depth_ratios if depth < 1.0}, reverse=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Dataset, teacher and student family, each a built-in name or ``module:callable``.

    ``source_dir`` is put on the import path for those callables; it is where the workload's file lies.
    ``student`` is ``"teacher"`` for narrower networks cut from the teacher's own architecture.
    """

    name: str
    dataset: str
    dataset_options: Mapping[str, Any] = field(default_factory=dict)
    teacher: str = "residual-cnn"
    teacher_options: Mapping[str, Any] = field(default_factory=dict)
    student: str = "teacher"
    training: TrainingBudget = TrainingBudget()
    search: SearchBudget = SearchBudget()
    source_dir: str = ""
    loss: Loss = Loss.CROSS_ENTROPY

    def to_json(self) -> str:
        """Canonical JSON: the same workload gives the same bytes."""
        return json.dumps(self._values(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Workload:
        """The inverse of ``to_json``."""
        values = json.loads(text)
        values["training"] = TrainingBudget(**values["training"])
        search = values["search"]
        if search.get("methods") is not None:
            search["methods"] = tuple(map(Method, search["methods"]))
        for name in ("width_ratios", "depth_ratios"):
            search[name] = tuple(search.get(name, getattr(SearchBudget(), name)))
        search["students"] = tuple(StudentNetwork(**one) for one in search.get("students", ()))
        values["search"] = SearchBudget(**search)
        values["loss"] = Loss(values.get("loss", Loss.CROSS_ENTROPY))
        return cls(**values)

    def _values(self) -> dict[str, Any]:
        """All fields; what came later is left out at its default, so that identities given before stay."""
        values = asdict(self)
        if self.loss is Loss.CROSS_ENTROPY:
            del values["loss"]
        for name in ("methods", "tolerance", "depth_ratios", "students"):
            if getattr(self.search, name) == getattr(SearchBudget(), name):
                del values["search"][name]
        if not self.training.bfloat16:
            del values["training"]["bfloat16"]
        if self.training.num_teachers == 1:
            del values["training"]["num_teachers"]
        return values

    @property
    def has_code(self) -> bool:
        """Whether its data or its teacher come from code of its own."""
        return ":" in self.dataset or ":" in self.teacher

    @property
    def members(self) -> tuple[Workload, ...]:
        """The workload with each of its teachers alone; itself, where there is one."""
        training = self.training
        if training.num_teachers == 1:
            return (self,)
        seeds = range(training.seed, training.seed + training.num_teachers)
        return tuple(replace(self, training=replace(training, num_teachers=1, seed=seed)) for seed in seeds)

    @property
    def teacher_key(self) -> str:
        """Identity of the teacher that this workload trains: what the search may spend does not change it."""
        values = self._values()
        del values["search"], values["student"]
        if self.search.students and not self.has_code:
            values["source_dir"] = ""  # where the students' code lies is nothing to the teacher
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
