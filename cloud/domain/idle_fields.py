"""Fields of a spec that do nothing on its road: refused where people ask, never proposed by the search.

Rules kept here:

- A spec that names such a field is refused at the entrance (``--spec``, the API), with the field, the road
  and what to do. One that was stored or queued before that is built as it always was: nobody asks here.
- A value that says what is done anyway is none: it is left out, so that the same wish has one identity.
- What the search makes of a student that was built takes over none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, Final

from cloud.domain.networks import network_name
from cloud.domain.quantisation import Estimator, QuantisationSpec
from cloud.domain.specs import CompressionSpec, Importance, Precision, Road

_DEFAULTS: Final[dict[str, Any]] = {field.name: field.default for field in fields(CompressionSpec)}
#: What None stands for, where that is a value that can be named.
_MEANT: Final[dict[str, Any]] = {"importance": Importance.TAYLOR, "pruning_steps": 1, "hint_weight": 0.0}


def as_asked(spec: CompressionSpec) -> CompressionSpec:
    """``spec`` without what does nothing in it and asks for nothing.

    Raises ``ValueError``, naming the field, when one that does nothing asks for something.
    """
    for name, why in _idle(spec):
        value = getattr(spec, name)
        if value != _DEFAULTS[name] and value != _MEANT.get(name, _DEFAULTS[name]):
            said = value if isinstance(value, bool | int | float) else str(value)
            raise ValueError(f"{name} is {said}, but {why}, or leave {name} out")
    if spec.quantisation is not None:
        _check_rounding(spec.quantisation, spec.precision)
    return without_idle(spec)


def _check_rounding(asked: QuantisationSpec, precision: Precision) -> None:
    """Raises ``ValueError`` for a field of ``quantisation`` that would do nothing."""
    usual = {field.name: field.default for field in fields(QuantisationSpec)}
    for name, why in _idle_in_rounding(asked, precision):
        value = getattr(asked, name)
        if value != usual[name] and not (name == "qat_epochs" and value == 0):
            raise ValueError(f"quantisation.{name} is {value}, but {why}, or leave {name} out")


def _idle_in_rounding(asked: QuantisationSpec, precision: Precision) -> Iterator[tuple[str, str]]:
    runs_in_int8, estimators = precision is not Precision.FP32, set()
    if asked.is_uniform:
        estimators.add(asked.estimator)
    else:
        yield "estimator", f"scheme is {asked.scheme}: it finds its levels by itself; set scheme to uniform"
    if runs_in_int8:
        estimators.add(asked.activation_estimator)
        if not asked.qat_epochs:
            yield "tolerance", "qat_epochs is 0: no training waits for it; give qat_epochs at least 1"
    else:
        for name in ("activation_estimator", "qat_epochs", "tolerance"):
            yield name, "precision is fp32: nothing runs in int8; set precision to int8 or auto"
    if Estimator.PERCENTILE not in estimators:
        yield "percentile", "no estimator is percentile; set estimator or activation_estimator to that"
    if not asked.tuning_epochs and not (asked.qat_epochs and runs_in_int8):
        yield "tuning_learning_rate", "nothing is tuned; give tuning_epochs or qat_epochs at least 1"


def without_idle(spec: CompressionSpec) -> CompressionSpec:
    """``spec`` with the defaults of fields that do nothing in it: it builds the same student."""
    idle = {name: _DEFAULTS[name] for name, _ in _idle(spec)}
    return replace(spec, **idle) if any(getattr(spec, name) != idle[name] for name in idle) else spec


def _idle(spec: CompressionSpec) -> Iterator[tuple[str, str]]:
    """Names of fields that do nothing in it, and why, up to what else to do."""
    road = spec.road
    if road is Road.RULES:  # refused wherever they come from (``specs``)
        return
    if road is not Road.PRUNED:
        why = (
            f"road is {road}: its network begins with fresh weights, none of which matters more than the rest"
        )
        if road is Road.ELASTIC:
            why = "road is elastic: the family has its own order of channels, and is cut at once"
        yield "importance", f"{why}; set road to pruned"
        yield "pruning_steps", f"{why}; set road to pruned"
    if spec.network is not None:
        why = f"network is {network_name(spec.network)}: a network of your own is as you wrote it"
        yield "shortcuts", f"{why}; write one without shortcuts"
    quantisation = spec.quantisation
    is_tuned = quantisation is not None and bool(quantisation.tuning_epochs or quantisation.qat_epochs)
    untrained = "num_epochs is 0: nothing is trained; give num_epochs at least 1"
    unasked = f"road is {road}: it learns from the labels alone; set road to distilled"
    if not spec.num_epochs:
        yield "learning_rate", untrained
        yield "hint_weight", untrained
        if not is_tuned:
            yield "temperature", untrained
            yield "alpha", untrained
    elif road is Road.SCRATCH:
        yield "hint_weight", unasked
        if not is_tuned:  # tuning through rounded weights asks the teacher on every road
            yield "temperature", unasked
            yield "alpha", unasked
