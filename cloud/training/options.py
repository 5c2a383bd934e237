"""Options of built-in datasets and teachers, as a workload's YAML gives them: checked against defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeloop.errors import ConfigError


def check_options(given: Mapping[str, Any], defaults: Mapping[str, Any], *, field: str) -> dict[str, Any]:
    """``defaults`` overlaid with ``given``. A default's type is the type wanted; ``None`` stands for a text.

    Raises ``ConfigError`` naming an unknown key or a value of the wrong type.
    """
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ConfigError(
            f"{field}.{unknown[0]} is unknown: known are {', '.join(sorted(defaults))}", code="option-unknown"
        )
    for key, value in given.items():
        kind = str if defaults[key] is None else type(defaults[key])
        fits = isinstance(value, kind) and not (kind is not bool and isinstance(value, bool))
        if not fits:
            raise ConfigError(
                f"{field}.{key} is {value!r}: it must be of type {kind.__name__}", code="option-type"
            )
    return {**defaults, **given}


def check_range(options: Mapping[str, Any], key: str, low: int, high: int, *, field: str) -> int:
    """The whole number ``options[key]``. Raises ``ConfigError`` when it is out of range."""
    value = int(options[key])
    if not low <= value <= high:
        raise ConfigError(f"{field}.{key} is {value}: it must lie from {low} to {high}", code="option-range")
    return value
