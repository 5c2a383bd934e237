"""Domain values as plain JSON, and back: for the store, and for the inputs that a decision is replayed from.

Rules kept here:

- The same value gives the same text: keys sorted, sets sorted, no spaces. Floats come back exactly.
- Text written before a field existed reads with that field's default; a key that is no longer known is
  ignored. So values may grow without a migration.
- Only dataclasses, enums, tuples, lists, frozen sets, mappings and JSON's own types: nothing in the text
  names code to run.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence, Set
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_json(value: object) -> str:
    """Canonical JSON. Raises ``TypeError`` for a value that this module does not know."""
    return json.dumps(encode(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_json(kind: type[T], text: str) -> T:
    """The inverse of ``to_json``. Raises ``ValueError`` when the text does not fit the type."""
    return cast(T, decode(kind, json.loads(text)))


def encode(value: object) -> Any:
    """Plain JSON values: dicts, lists, strings, numbers. Raises ``TypeError`` for any other kind of value."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | int | float):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted(encode(item) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [encode(item) for item in value]
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def decode(kind: Any, data: Any) -> Any:
    """The inverse of ``encode``, given the type. Raises ``ValueError`` when the data do not fit it."""
    if kind is Any:  # a class of its own since Python 3.11, but none that isinstance takes
        return data
    origin = get_origin(kind)
    if origin is Union or origin is types.UnionType:
        options = get_args(kind)
        if data is None and type(None) in options:
            return None
        (option,) = (option for option in options if option is not type(None))
        return decode(option, data)
    if origin is not None:
        return _decode_generic(origin, get_args(kind), data)
    if not isinstance(kind, type):
        return data
    if is_dataclass(kind):
        return _decode_dataclass(kind, data)
    if issubclass(kind, Enum):
        return kind(data)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is not object and not isinstance(data, kind):
        raise ValueError(f"stored value {data!r} is no {kind.__name__}")
    return data


def _decode_generic(origin: Any, arguments: tuple[Any, ...], data: Any) -> Any:
    if issubclass(origin, Mapping):
        key_kind, item_kind = arguments
        return {
            key_kind(key) if key_kind is not str else key: decode(item_kind, item)
            for key, item in data.items()
        }
    if not isinstance(data, list):
        raise ValueError(f"stored value {data!r} is no list")
    if issubclass(origin, tuple) and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return tuple(decode(kind, item) for kind, item in zip(arguments, data, strict=True))
    items = (decode(arguments[0], item) for item in data)
    return frozenset(items) if issubclass(origin, Set) else list(items) if origin is list else tuple(items)


def _decode_dataclass(kind: type, data: Any) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"stored value {data!r} is no {kind.__name__}")
    hints = _hints(kind)
    values = {}
    for field in fields(kind):
        if field.name in data:
            values[field.name] = decode(hints[field.name], data[field.name])
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"stored {kind.__name__} lacks {field.name}")
    return kind(**values)
