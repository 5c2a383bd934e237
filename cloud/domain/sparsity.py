"""How many single weights of a student become zero, which, and when: zeros cost little on the wire.

Rules: a value out of range raises ``ValueError`` that begins with the field's name. With a pattern N:M, N of
each M neighbouring weights stay, so that the ratio follows from the pattern.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final, Self

UNSTRUCTURED: Final = "unstructured"
MAX_RATIO: Final = 0.98
_GROUP = re.compile(r"([1-9][0-9]?):([1-9][0-9]?)")
_MAX_GROUP: Final = 32


class WeightImportance(StrEnum):
    """What decides which weights stay."""

    MAGNITUDE = "magnitude"  # their size
    TAYLOR = "taylor"  # what the loss would do without them, to first order: (weight x gradient) squared


class Scope(StrEnum):
    """Over what weights compete; of no effect with a pattern N:M, whose groups are smaller than a layer."""

    GLOBAL = "global"  # over the network: layers that can spare more give more
    LAYER = "layer"  # within each layer: all give the same share


@dataclass(frozen=True, kw_only=True, slots=True)
class SparsitySpec:
    """``ratio`` is the share of zeros in the weights of convolutions and linear layers, at the end.

    It is reached in ``num_steps`` cuts, spread over the training between its shares ``begin_ratio`` and
    ``end_ratio``; after cut k of n it is ratio x (1 - (1 - k/n)^3) (Zhu and Gupta, 2017). What follows trains
    the weights that are left.
    """

    ratio: float
    importance: WeightImportance = WeightImportance.MAGNITUDE
    scope: Scope = Scope.GLOBAL
    pattern: str = UNSTRUCTURED
    num_steps: int = 8
    begin_ratio: float = 0.0
    end_ratio: float = 0.5

    def __post_init__(self) -> None:
        for name, low, high in (
            ("ratio", 0.0, MAX_RATIO),
            ("num_steps", 1, 1000),
            ("begin_ratio", 0.0, 1.0),
            ("end_ratio", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}: it must be a number from {low} to {high}")
        if not isinstance(self.num_steps, int):
            raise ValueError(f"num_steps is {self.num_steps!r}: it must be a whole number")
        if self.end_ratio < self.begin_ratio:
            raise ValueError(
                f"end_ratio is {self.end_ratio:g}: it must not be under begin_ratio, {self.begin_ratio:g}"
            )
        group = self.group
        if group is not None and abs(self.ratio - _ratio_of(group)) > 1e-9:
            raise ValueError(
                f"ratio is {self.ratio:g}: with pattern {self.pattern} it must be {_ratio_of(group):g}"
            )

    @property
    def group(self) -> tuple[int, int] | None:
        """(N, M) of a pattern N:M, None when zeros may be anywhere."""
        return None if self.pattern == UNSTRUCTURED else _parse_group(self.pattern)

    def share_after(self, num_cuts: int) -> float:
        """How much of the final sparsity is there after so many of the cuts, 0 to 1."""
        left = 1.0 - min(num_cuts, self.num_steps) / self.num_steps
        return float(1.0 - left**3)

    def cuts_due(self, step: int, num_training_steps: int) -> int:
        """How many cuts are made once ``step`` of the training's steps are done."""
        first, last = self.begin_ratio * num_training_steps, self.end_ratio * num_training_steps
        gap = (last - first) / max(1, self.num_steps - 1)
        # Half a step early rather than one late: the last cut must not fall behind the last step.
        return sum(step + 0.5 >= first + gap * cut for cut in range(self.num_steps))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from parsed JSON or YAML. Raises ``ValueError`` naming an unknown key or a bad value."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"{unknown[0]} is an unknown key: known are {', '.join(sorted(known))}")
        checked = dict(values)
        for key, kind in (("importance", WeightImportance), ("scope", Scope)):
            if key in checked:
                try:
                    checked[key] = kind(checked[key])
                except ValueError:
                    raise ValueError(
                        f"{key} is {checked[key]!r}: it must be one of {', '.join(kind)}"
                    ) from None
        if "ratio" not in checked:
            pattern = checked.get("pattern", UNSTRUCTURED)
            if pattern == UNSTRUCTURED:
                raise ValueError(f"ratio is missing: give the share of zeros, 0 to {MAX_RATIO}")
            checked["ratio"] = _ratio_of(_parse_group(pattern))
        return cls(**checked)


def _parse_group(pattern: object) -> tuple[int, int]:
    found = _GROUP.fullmatch(pattern) if isinstance(pattern, str) else None
    kept, size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < kept < size <= _MAX_GROUP:
        raise ValueError(
            f"pattern is {pattern!r}: it must be {UNSTRUCTURED}, or N:M with N under M and M at most "
            f"{_MAX_GROUP}, such as 2:4"
        )
    return kept, size


def _ratio_of(group: tuple[int, int]) -> float:
    kept, size = group
    return 1.0 - kept / size
