"""How weights and activations are rounded: a point's coordinates in the space of quantisers.

Rules: every combination that validates can be built; what int8 kernels cannot take is refused here, with the
field's name, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Self


class Scheme(StrEnum):
    """Where the levels lie that a weight may take."""

    UNIFORM = "uniform"  # evenly spaced: scale * (q - zero_point)
    POWER_OF_TWO = "power-of-two"  # evenly spaced, scale = 2^-b: dequantising is a shift
    CODEBOOK = "codebook"  # wherever k-means puts them
    LOGARITHMIC = "logarithmic"  # zero and signed powers of two: multiplying is a shift


class Granularity(StrEnum):
    """What shares one scale or one codebook."""

    PER_TENSOR = "per-tensor"
    PER_CHANNEL = "per-channel"  # one for each output channel


class Estimator(StrEnum):
    """How a range is found from values."""

    MIN_MAX = "min-max"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MSE = "mse"


#: Logarithmic levels reach down to 2^-30 of the largest at 6 bits; further ones would be denormal numbers.
MAX_LOGARITHMIC_BITS = 6
#: What 16-bit intermediates of int8 kernels hold without saturating (``DeviceProfile.needs_reduced_range``).
REDUCED_BITS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantisationSpec:
    """What is done to weights, and to activations where the student runs in int8.

    ``bits``, ``scheme``, ``symmetric``, ``granularity`` and ``estimator`` are about weights; activations are
    unsigned 8-bit with ``activation_estimator``. ``percentile`` belongs to both estimators.
    ``tuning_epochs`` of distillation go through the rounded weights (0: post-training quantisation alone).
    Where int8 is still over ``tolerance`` less accurate than the student was before anything was rounded,
    ``qat_epochs`` of quantisation-aware training follow, and stay only when they measure better (0: never).

    Raises ``ValueError``, naming the field, when a value is out of range.
    """

    scheme: Scheme = Scheme.UNIFORM
    bits: int = 8
    symmetric: bool = True
    granularity: Granularity = Granularity.PER_CHANNEL
    estimator: Estimator = Estimator.MIN_MAX
    activation_estimator: Estimator = Estimator.MIN_MAX
    percentile: float = 99.9
    tuning_epochs: int = 1
    tuning_learning_rate: float = 1e-3
    qat_epochs: int = 2
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        for name, kind in (
            ("scheme", Scheme),
            ("granularity", Granularity),
            ("estimator", Estimator),
            ("activation_estimator", Estimator),
        ):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be one of {', '.join(kind)}")
        for name, low, high, whole in (
            ("bits", 2, 8, True),
            ("percentile", 50.0, 100.0, False),
            ("tuning_epochs", 0, 1000, True),
            ("tuning_learning_rate", 1e-7, 10.0, False),
            ("qat_epochs", 0, 1000, True),
            ("tolerance", 0.0, 1.0, False),
        ):
            value = getattr(self, name)
            right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not right or not low <= value <= high:
                kind_of = "a whole number" if whole else "a number"
                raise ValueError(f"{name} is {value!r}: it must be {kind_of} from {low} to {high}")
        if not isinstance(self.symmetric, bool):
            raise ValueError(f"symmetric is {self.symmetric!r}: it must be true or false")
        if not self.symmetric and self.scheme is not Scheme.UNIFORM:
            raise ValueError(
                f"symmetric is false, but scheme {self.scheme} has no zero point: leave it out, "
                f"or take scheme {Scheme.UNIFORM}"
            )
        if self.scheme is Scheme.LOGARITHMIC and self.bits > MAX_LOGARITHMIC_BITS:
            raise ValueError(
                f"bits is {self.bits}: scheme {self.scheme} takes 2 to {MAX_LOGARITHMIC_BITS}, "
                "more would only add levels beside zero"
            )

    @property
    def is_uniform(self) -> bool:
        """Whether levels are evenly spaced, so that int8 kernels take the weights as they are."""
        return self.scheme in (Scheme.UNIFORM, Scheme.POWER_OF_TWO)

    def weight_bits(self, *, is_int8: bool, is_reduced_range: bool) -> int:
        """``bits``, or as many as int8 kernels can take of an evenly spaced weight.

        With a zero point for each channel, ``q - zero_point`` is what kernels get (they take one zero point
        for all channels, and 0 is the one), and that needs a bit more than ``q``.
        """
        if not is_int8 or not self.is_uniform:
            return self.bits
        limit = REDUCED_BITS if is_reduced_range else 8
        has_zero_points = not self.symmetric and self.granularity is Granularity.PER_CHANNEL
        return min(self.bits, limit - 1 if has_zero_points else limit)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from parsed JSON or YAML. Raises ``ValueError`` naming an unknown key or a bad value."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known, key=str)
        if unknown:
            raise ValueError(f"{unknown[0]} is no key: known are {', '.join(sorted(known))}")
        checked = dict(values)
        for key, kind in (
            ("scheme", Scheme),
            ("granularity", Granularity),
            ("estimator", Estimator),
            ("activation_estimator", Estimator),
        ):
            if checked.get(key) in tuple(kind):
                checked[key] = kind(checked[key])
        return cls(**checked)
