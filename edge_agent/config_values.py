"""Values of the settings file: what is read, and how a complaint names its place.

Rules:
- Every parser takes the value as found and the place where it stood, and gives exactly its type or raises
  ``ConfigError`` with place, key, what was found and what was expected.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from edgeloop.errors import ConfigError

MAX_LABELS = 32
_LABEL_KEY = re.compile(r"[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?")
_MAX_LABEL_VALUE = 128
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a value was written, for messages and for relative paths."""

    source: str
    key: str
    folder: Path

    def fail(self, value: object, expected: str) -> NoReturn:
        raise ConfigError(f"{self.source}: {self.key} is {value!r}; expected {expected}", code="config-value")


def text_value(value: object, place: Place) -> str:
    if not isinstance(value, str) or not value.strip():
        place.fail(value, "a text")
    return value.strip()


def path_value(value: object, place: Place) -> Path:
    return place.folder / Path(text_value(value, place)).expanduser()


def existing_file(value: object, place: Place) -> Path:
    path = path_value(value, place)
    if not path.is_file():
        place.fail(value, "the name of a file that exists")
    return path


def parse_endpoint(text: str, *, lowest_port: int = 1) -> Endpoint:
    """`host:port` or `[ipv6]:port`; ValueError says what is wrong."""
    host, colon, port_text = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("host:port, with an IPv6 host in brackets")
    digits = re.fullmatch(r"[0-9]{1,5}", port_text)
    if not colon or not host or not digits or not lowest_port <= int(port_text) < 65536:
        raise ValueError(f"host:port with a port from {lowest_port} to 65535")
    return Endpoint(host=host, port=int(port_text))


def endpoint_value(value: object, place: Place) -> Endpoint:
    text = text_value(value, place)
    try:
        return parse_endpoint(text)
    except ValueError as error:
        place.fail(value, str(error))


def _number(value: object, place: Place, expected: str) -> float:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            place.fail(value, expected)
    if isinstance(value, bool) or not isinstance(value, int | float):
        place.fail(value, expected)
    return float(value)


def between(low: float, high: float, unit: str) -> Callable[[object, Place], float]:
    expected = f"a number from {low:g} to {high:g}{' ' + unit if unit else ''}"

    def parse(value: object, place: Place) -> float:
        number = _number(value, place, expected)
        # Written so that NaN fails too.
        if not low <= number <= high:
            place.fail(value, expected)
        return number

    return parse


def whole(low: int, high: int) -> Callable[[object, Place], int]:
    expected = f"a whole number from {low} to {high}"

    def parse(value: object, place: Place) -> int:
        number = _number(value, place, expected)
        if not low <= number <= high or number != int(number):
            place.fail(value, expected)
        return int(number)

    return parse


def labels_value(value: object, place: Place) -> tuple[tuple[str, str], ...]:
    """A table in a file, `k=v,k=v` in the environment, a list of `k=v` from flags."""
    expected = "labels as key=value (keys of lower-case letters, digits, '.', '_', '/', '-')"
    found: dict[str, str] = {}
    if isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            place.fail(value, expected)
        pairs = []
        for item in items:
            if not isinstance(item, str) or "=" not in item:
                place.fail(item, expected)
            key, _, text = item.partition("=")
            pairs.append((key.strip(), text.strip()))
    for key, text in pairs:
        if not isinstance(text, str) or not _LABEL_KEY.fullmatch(str(key)) or len(text) > _MAX_LABEL_VALUE:
            place.fail(f"{key}={text}", expected)
        found[str(key)] = text
    if len(found) > MAX_LABELS:
        place.fail(f"{len(found)} labels", f"at most {MAX_LABELS}")
    return tuple(sorted(found.items()))


def log_level_value(value: object, place: Place) -> str:
    text = text_value(value, place).lower()
    if text not in LOG_LEVELS:
        place.fail(value, "one of " + ", ".join(LOG_LEVELS))
    return text
