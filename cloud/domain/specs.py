"""A point in compression space, and its identity."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Self

from cloud.domain.networks import check_reference, network_name
from cloud.domain.quantisation import QuantisationSpec
from cloud.domain.rules import RuleSpec
from cloud.domain.sparsity import SparsitySpec

LEARNING_RATES = (1e-7, 10.0)
#: How a network is narrowed and taught: rules have none of it.
_OF_NETWORKS = (
    "width_ratio", "num_epochs", "learning_rate", "temperature", "alpha", "importance", "pruning_steps",
    "hint_weight", "depth_ratio", "network", "shortcuts",
)  # fmt: skip
#: Fields that may be None, which is said of each below.
_OPTIONAL = frozenset({"importance", "pruning_steps", "hint_weight", "depth_ratio", "learning_rate"})
#: How the teacher is narrowed: a network of the workload's own has not learnt what matters in it.
_OF_TEACHERS = ("depth_ratio", "importance", "pruning_steps")


class Road(StrEnum):
    """How the student comes to be; none wins everywhere, so the search tries all."""

    PRUNED = "pruned"  # the teacher's most important channels, then distilled
    DISTILLED = "distilled"  # the family's smaller network from random weights, taught by the teacher
    SCRATCH = "scratch"  # the same network on the labels alone
    ELASTIC = "elastic"  # cut from the teacher's elastic family; then distilled, when there are epochs
    RULES = "rules"  # decision rules instead of a network: a tree, boosted trees or a rule list


class Precision(StrEnum):
    AUTO = "auto"  # int8 and fp32 are both measured, and the better one ships
    INT8 = "int8"
    FP32 = "fp32"


class Importance(StrEnum):
    """What decides which channels stay."""

    TAYLOR = "taylor"  # what the loss would do without the channel, to first order
    MAGNITUDE = "magnitude"  # L2 norm of the weights that make it
    NORM_SCALE = "norm_scale"  # its BatchNorm factor, magnitude where it has none


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressionSpec:
    """What is done to a teacher to get one student.

    ``width_ratio`` is the share of channels kept in each dependency group, before floors and alignment to 8.
    ``learning_rate`` is the peak (None: ``TrainingBudget.student_learning_rate`` of the workload).
    ``alpha`` is the share of the soft-label loss; the rest is the loss with the labels.
    ``importance`` decides which channels stay (None: taylor). ``pruning_steps`` reaches the width in so many
    steps of equal ratio, with training between them (None: at once). ``hint_weight`` adds the difference of
    inner features to the loss (None: it plays no part). ``rules`` belongs to the road of that name; left
    out there, it stands for ``RuleSpec()``. ``sparsity`` makes single weights zero while the student learns.
    ``depth_ratio`` is the share of the branches beside shortcuts that stays, at least one of them (None, as
    which 1 counts: all); channels are chosen in what is left. ``network`` is one of the workload's own
    (``search.students``) in the place of the teacher's, on the roads distilled and scratch. ``shortcuts``
    false leaves the shortcuts themselves out, with the layers in them (None, as which true counts: they
    stay).

    Raises ``ValueError``, naming the field, when a value is out of range.
    """

    road: Road = Road.PRUNED
    width_ratio: float = 0.5
    precision: Precision = Precision.AUTO
    num_epochs: int = 4
    learning_rate: float | None = None
    temperature: float = 4.0
    alpha: float = 0.7
    seed: int = 0
    version: int = 1
    quantisation: QuantisationSpec | None = None
    importance: Importance | None = None
    pruning_steps: int | None = None
    hint_weight: float | None = None
    rules: RuleSpec | None = None
    sparsity: SparsitySpec | None = None
    depth_ratio: float | None = None
    network: str | None = None
    shortcuts: bool | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("width_ratio", 0.01, 1.0),
            ("num_epochs", 0, 1000),
            ("learning_rate", *LEARNING_RATES),
            ("temperature", 0.1, 100.0),
            ("alpha", 0.0, 1.0),
            ("seed", 0, 2**31 - 1),
            ("version", 1, 1),
            ("pruning_steps", 1, 16),
            ("hint_weight", 0.0, 1000.0),
            ("depth_ratio", 0.01, 1.0),
        ):
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}: it must be a number from {low} to {high}")
        if self.depth_ratio == 1.0:  # one identity for what is the same
            object.__setattr__(self, "depth_ratio", None)
        if self.shortcuts is not None and not isinstance(self.shortcuts, bool):
            raise ValueError(f"shortcuts is {self.shortcuts!r}: it must be true or false")
        if self.shortcuts:
            object.__setattr__(self, "shortcuts", None)
        if self.quantisation is not None and not isinstance(self.quantisation, QuantisationSpec):
            raise ValueError(f"quantisation is {self.quantisation!r}: it must be a mapping such as bits: 4")
        if self.sparsity is not None and not isinstance(self.sparsity, SparsitySpec):
            raise ValueError(f"sparsity is {self.sparsity!r}: it must be a mapping such as ratio: 0.75")
        self._check_rules()
        if self.network is not None:
            self._check_network()

    def _check_network(self) -> None:
        check_reference(self.network)
        if self.road not in (Road.DISTILLED, Road.SCRATCH):
            raise ValueError(
                f"network is given, but road is {self.road}: a network of your own begins with fresh "
                "weights; set road to distilled or scratch, or leave network out"
            )
        for name in _OF_TEACHERS:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is given with network {network_name(self.network or '')}: before it has learnt "
                    f"nothing in it matters more than the rest; leave {name} out"
                )

    def _check_rules(self) -> None:
        if self.road is not Road.RULES:
            if self.rules is not None:
                raise ValueError(
                    f"rules is given, but road is {self.road}: set road to rules, or leave it out"
                )
            return
        if self.rules is None:
            object.__setattr__(self, "rules", RuleSpec())
        elif not isinstance(self.rules, RuleSpec):
            raise ValueError(f"rules is {self.rules!r}: it must be a mapping such as kind: tree")
        if self.precision is Precision.INT8:
            raise ValueError("precision is int8: rules hold float32 numbers; leave it at auto")
        if self.quantisation is not None:
            raise ValueError("quantisation is given, but road is rules: rules have no weights to quantise")
        if self.sparsity is not None:
            raise ValueError("sparsity is given, but road is rules: rules have no weights to leave out")

    def to_json(self) -> str:
        """Canonical JSON: the same spec gives the same bytes.

        Fields that are None are left out, so that a field that comes later changes no identity given before.
        """
        values = {name: value for name, value in asdict(self).items() if value is not None}
        if self.rules is not None:
            values["rules"] = self.rules.to_mapping()
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from parsed JSON or YAML. Raises ``ValueError`` naming an unknown key or a bad value."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}: known are {', '.join(sorted(known))}")
        checked = dict(values)
        if (
            checked.get("network") is not None and checked.get("road") != Road.RULES
        ):  # as it was written, unless something else is asked for
            checked = {"road": Road.DISTILLED, "width_ratio": 1.0} | checked
        for key, kind in (("road", Road), ("precision", Precision), ("importance", Importance)):
            if checked.get(key) is not None:
                try:
                    checked[key] = kind(checked[key])
                except ValueError:
                    raise ValueError(
                        f"{key} is {checked[key]!r}: it must be one of {', '.join(kind)}"
                    ) from None
        if checked.get("road") is Road.RULES:
            _check_ignored(cls, checked)
        if isinstance(checked.get("quantisation"), Mapping):
            try:
                checked["quantisation"] = QuantisationSpec.from_mapping(checked["quantisation"])
            except ValueError as error:
                raise ValueError(f"quantisation.{error}") from None
        if isinstance(checked.get("rules"), Mapping):
            checked["rules"] = RuleSpec.from_mapping(checked["rules"])
        if isinstance(checked.get("sparsity"), Mapping):
            try:
                checked["sparsity"] = SparsitySpec.from_mapping(checked["sparsity"])
            except ValueError as error:
                raise ValueError(f"sparsity.{error}") from None
        return cls(**checked)

    @property
    def label(self) -> str:
        """Road, the workload's own network, width and, where they are less than all, depth and shortcuts."""
        deep = "" if self.depth_ratio is None else f" deep {self.depth_ratio:g}"
        own = "" if self.network is None else f"{network_name(self.network)} "
        plain = "" if self.shortcuts is None else " plain"
        return f"{self.road} {own}{self.width_ratio:g}{deep}{plain}"

    @property
    def is_whole(self) -> bool:
        """Whether the student has all of the teacher's layers, however narrow."""
        return self.depth_ratio is None and self.shortcuts is None and self.network is None

    @property
    def digest(self) -> str:
        """First 12 hex digits of the sha256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]


def count_branches_kept(num_branches: int, depth_ratio: float) -> int:
    """How many branches beside shortcuts stay: the nearest number, and at least one."""
    return min(num_branches, max(1, math.floor(num_branches * depth_ratio + 0.5)))


def _check_ignored(kind: type[CompressionSpec], values: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` for what was asked of rules and would not be done."""
    defaults = {field.name: field.default for field in fields(kind)}
    for name in _OF_NETWORKS:
        if name in values and values[name] != defaults[name]:
            raise ValueError(
                f"{name} is {values[name]!r}, but road is rules: rules are no network that is narrowed or "
                f"trained in epochs; leave {name} out, and say how they are made by rules.max_depth, "
                "rules.num_trees and the like"
            )
