"""An elastic family: one network from which students of any width are cut without training.

Rules: a family is named by the teacher that it grew from and by how it was trained, by nothing else, so that
every profile of a workload shares one. What a width is said to reach comes from the family's own measurement.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from cloud.domain.latency import LayerShape
from cloud.domain.specs import LEARNING_RATES


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilySettings:
    """How a family is trained. ``narrowest`` and ``widest`` are the width ratios that it holds.

    A family for small devices costs a fraction when it leaves out the widths near the teacher's own.
    ``depth_ratios`` are the depths under 1 at which it can be cut, deepest first.

    Raises ``ValueError``, naming the field, when a value is out of range.
    """

    num_epochs: int = 4
    narrowest: float = 0.125
    num_random_widths: int = 2
    learning_rate: float = 2e-3
    temperature: float = 4.0
    alpha: float = 0.7
    seed: int = 0
    version: int = 1
    widest: float = 1.0
    depth_ratios: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_epochs", 1, 1000),
            ("narrowest", 0.01, 1.0),
            ("widest", 0.01, 1.0),
            ("num_random_widths", 0, 16),
            ("learning_rate", *LEARNING_RATES),
            ("temperature", 0.1, 100.0),
            ("alpha", 0.0, 1.0),
            ("seed", 0, 2**31 - 1),
            ("version", 1, 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}: it must be a number from {low} to {high}")
        for depth in self.depth_ratios:
            if isinstance(depth, bool) or not isinstance(depth, int | float) or not 0.01 <= depth < 1:
                raise ValueError(f"depth_ratios holds {depth!r}: give numbers from 0.01 to under 1")
        if list(self.depth_ratios) != sorted(set(self.depth_ratios), reverse=True):
            raise ValueError(f"depth_ratios are {list(self.depth_ratios)}: give each once, deepest first")
        if self.widest < self.narrowest:
            raise ValueError(f"widest is {self.widest:g}: it must be at least narrowest, {self.narrowest:g}")

    def identity(self) -> dict[str, Any]:
        """All values; what came later is left out at its default, so that identities given before stay."""
        values = asdict(self)
        if self.widest == 1.0:
            del values["widest"]
        if not self.depth_ratios:
            del values["depth_ratios"]
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyWidth:
    """One width as it comes out of the family; ``accuracy`` is of its fp32 network on validation samples."""

    width_ratio: float
    accuracy: float
    macs: int
    num_parameters: int
    layers: tuple[LayerShape, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyResult:
    """A trained family. ``checkpoint_digest`` is its weights and the order in which channels leave.

    ``depth_ratios`` are the depths under 1 at which it can be cut; ``widths`` are of its full depth.
    """

    workload: str
    teacher_key: str
    family_key: str
    checkpoint_digest: str
    num_epochs: int
    train_s: float
    narrowest: float
    widths: tuple[FamilyWidth, ...]
    depth_ratios: tuple[float, ...] = ()

    def of_width(self, width_ratio: float) -> FamilyWidth | None:
        """The network that this width gives; None where the family does not go. ``widths`` rise to 1.

        Each entry stands for all ratios down to the entry before it, since counts of channels are aligned.
        """
        if width_ratio < self.narrowest - 1e-9:
            return None
        return next((found for found in self.widths if found.width_ratio >= width_ratio - 1e-9), None)


def family_key(teacher_identity: str, settings: FamilySettings) -> str:
    """Identity of a family."""
    identity = {"teacher": teacher_identity, "settings": settings.identity()}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
