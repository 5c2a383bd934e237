"""What kind of rules a teacher is turned into, how large they may be, and on what they are fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Self


class RuleKind(StrEnum):
    TREE = "tree"  # one decision tree
    BOOSTED = "boosted"  # gradient-boosted trees
    RULE_LIST = "rule-list"  # rules in order: the first that fits decides


class RuleLabels(StrEnum):
    TEACHER = "teacher"  # the class that the teacher gives
    SOFT = "soft"  # the teacher's probabilities
    DATA = "data"  # the dataset's own labels; nobody but a teacher labels mixup points


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleSpec:
    """How rules are made of a teacher.

    ``max_depth`` is the most conditions of one rule. ``max_leaves`` is the most leaves of a tree (of each
    tree, where there are many), or the most rules of a list. ``num_trees`` counts boosted trees for each
    class, or the trees that a list's rules are taken from. ``num_mixup_samples`` is how many points between
    training samples the teacher labels beside them, at shares drawn from Beta(``mixup_alpha``,
    ``mixup_alpha``). ``num_starts`` trees compete, each improved by at most ``num_refine_rounds`` rounds;
    both concern the kind tree alone. ``learning_rate`` is that of boosting. ``num_terms`` is the most inputs
    whose weighted sum one test of a tree may look at; 1 is a test of a single input.

    Raises ``ValueError``, naming the field, when a value is out of range.
    """

    kind: RuleKind = RuleKind.TREE
    max_depth: int = 6
    max_leaves: int = 64
    num_trees: int = 16
    num_mixup_samples: int = 20_000
    mixup_alpha: float = 0.4
    labels: RuleLabels = RuleLabels.TEACHER
    num_starts: int = 4
    num_refine_rounds: int = 20
    learning_rate: float = 0.3
    num_terms: int = 1

    def __post_init__(self) -> None:
        for name, kind in (("kind", RuleKind), ("labels", RuleLabels)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"rules.{name} is {getattr(self, name)!r}: it must be one of {', '.join(kind)}"
                )
        for name, low, high in (
            ("max_depth", 1, 16),
            ("max_leaves", 2, 4096),
            ("num_trees", 1, 500),
            ("num_mixup_samples", 0, 1_000_000),
            ("num_starts", 1, 100),
            ("num_refine_rounds", 0, 1000),
            ("num_terms", 1, 8),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"rules.{name} is {value!r}: it must be a whole number from {low} to {high}")
        for name, low_rate, high_rate in (("mixup_alpha", 0.01, 100.0), ("learning_rate", 0.001, 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"rules.{name} is {value!r}: it must be a number")
            if not low_rate <= value <= high_rate:
                raise ValueError(
                    f"rules.{name} is {value!r}: it must be a number from {low_rate} to {high_rate}"
                )
        if self.labels is RuleLabels.DATA and self.num_mixup_samples:
            raise ValueError(
                f"rules.num_mixup_samples is {self.num_mixup_samples}: with labels {self.labels} it must be "
                "0, since nobody but a teacher labels what is not in the dataset"
            )

        if self.num_terms > 1 and self.kind is not RuleKind.TREE:
            raise ValueError(
                f"rules.num_terms is {self.num_terms}: with kind {self.kind} it must be 1, since only "
                f"tests of kind {RuleKind.TREE} look at sums"
            )
        if self.num_terms > 1 and not self.num_refine_rounds:
            raise ValueError(
                f"rules.num_refine_rounds is 0: with num_terms {self.num_terms} it must be at least 1, since "
                "sums come by refining"
            )

    def to_mapping(self) -> dict[str, Any]:
        """As ``from_mapping`` takes it; ``num_terms`` of 1 is left out, as before it was there."""
        values = asdict(self)
        if self.num_terms == 1:
            del values["num_terms"]
        return values

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from parsed JSON or YAML. Raises ``ValueError`` naming an unknown key or a bad value."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown key rules.{unknown[0]!s}: known are {', '.join(sorted(known))}")
        checked = dict(values)
        for name, kind in (("kind", RuleKind), ("labels", RuleLabels)):
            if name in checked:
                try:
                    checked[name] = kind(checked[name])
                except ValueError:
                    raise ValueError(
                        f"rules.{name} is {checked[name]!r}: it must be one of {', '.join(kind)}"
                    ) from None
        return cls(**checked)
