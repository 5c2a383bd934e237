"""The ``[[bridge]]`` and ``[[folder]]`` tables: which sensor feeds the model, and where its answers go.

Rules that this module keeps:

- Every complaint names the table, its number and the key. Unknown keys are errors.
- What cannot work is refused before anything starts: an answer that would be the next input, two folder
  tables on one folder, two sources of one name.
- A password is in a file of its own, never in the settings.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from edge_agent.bridge_tls import BridgeTls
from edge_agent.config_values import (
    Endpoint,
    Place,
    between,
    endpoint_value,
    existing_file,
    path_value,
    text_value,
    whole,
)

MAX_SOURCES: Final = 32
DEFAULT_BROKER: Final = Endpoint(host="127.0.0.1", port=1883)
TOPIC_FIELD: Final = "{topic}"
ERRORS_SUFFIX: Final = "/errors"
BRIDGE_FORMATS: Final = ("json", "raw")
FOLDER_FORMATS: Final = ("json", "raw", "npy")
_PATTERNS: Final = {"json": "*.json", "raw": "*.raw", "npy": "*.npy"}
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_MAX_TOPIC_BYTES = 65_535


@dataclass(frozen=True, kw_only=True, slots=True)
class BridgeSettings:
    """Topic to topic on a broker."""

    name: str
    broker: Endpoint = DEFAULT_BROKER
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    #: None: the connection is not encrypted.
    tls: BridgeTls | None = None
    #: A filter; wildcards are allowed.
    input_topic: str
    #: May hold ``{topic}``, which stands for the topic of the sample.
    output_topic: str
    error_topic: str
    format: str = "json"
    qos: int = 1
    #: Samples that may wait for the model; the oldest go first.
    max_pending: int = 64
    #: Whose model answers, on a device that hosts several.
    workload: str = ""

    def answer_topic(self, topic: str) -> str:
        return self.output_topic.replace(TOPIC_FIELD, topic)

    def errors_topic(self, topic: str) -> str:
        return self.error_topic.replace(TOPIC_FIELD, topic)

    def takes(self, topic: str) -> bool:
        """Whether a message of this topic is one of the inputs."""
        return topic_matches(self.input_topic, topic)


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderSettings:
    """Files in, files out."""

    name: str
    path: Path
    #: Of file names, as a shell has it.
    pattern: str
    output: Path
    format: str = "json"
    #: How often the folder is looked at.
    poll_s: float = 1.0
    #: A file is whole once its size and time have stood still for so long.
    settle_s: float = 2.0
    #: Whose model answers, on a device that hosts several.
    workload: str = ""

    @property
    def done(self) -> Path:
        return self.path / "done"

    @property
    def failed(self) -> Path:
        return self.path / "failed"


def topic_matches(pattern: str, topic: str) -> bool:
    """As a broker judges it."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for number, part in enumerate(wanted):
        if part == "#":
            return True
        if number >= len(levels) or part not in ("+", levels[number]):
            return False
    return len(wanted) == len(levels)


def read_bridges(value: object, place: Place) -> tuple[BridgeSettings, ...]:
    """The ``[[bridge]]`` tables."""
    found = []
    for number, (table, at) in enumerate(read_tables(value, place), 1):
        values = table_values(table, at, _BRIDGE_KEYS, required=("input_topic", "output_topic"))
        values["tls"] = _tls(values, table, at)
        if "password_file" in values:
            values["password"] = values.pop("password_file")
        values.setdefault("name", f"bridge-{number}")
        values.setdefault("error_topic", values["output_topic"] + ERRORS_SUFFIX)
        bridge = BridgeSettings(**values)
        if bridge.password is not None and bridge.username is None:
            at_key(at, "password_file").fail(table["password_file"], "a username beside it")
        sample = bridge.input_topic.replace("+", "x").replace("#", "x")
        for key, topic in (
            ("output_topic", bridge.answer_topic(sample)),
            ("error_topic", bridge.errors_topic(sample)),
        ):
            if bridge.takes(topic):
                at_key(at, key).fail(
                    getattr(bridge, key),
                    f"a topic outside of input_topic ({bridge.input_topic!r}), or each answer would be the "
                    "next input",
                )
        found.append(bridge)
    _unique_names(found, place)
    return tuple(found)


def read_folders(value: object, place: Place) -> tuple[FolderSettings, ...]:
    """The ``[[folder]]`` tables."""
    found: list[FolderSettings] = []
    for number, (table, at) in enumerate(read_tables(value, place), 1):
        values = table_values(table, at, _FOLDER_KEYS, required=("path",))
        values.setdefault("name", f"folder-{number}")
        values.setdefault("pattern", _PATTERNS[values.get("format", "json")])
        values.setdefault("output", values["path"] / "out")
        folder = FolderSettings(**values)
        if folder.output.resolve() in {p.resolve() for p in (folder.path, folder.done, folder.failed)}:
            at_key(at, "output").fail(
                str(folder.output), "a folder that is neither path, nor its done or failed"
            )
        for other in found:
            if other.path.resolve() == folder.path.resolve():
                at_key(at, "path").fail(
                    str(folder.path), f"a folder of its own ({other.name} reads this one)"
                )
            if other.output.resolve() == folder.output.resolve():
                at_key(at, "output").fail(
                    str(folder.output), f"a folder of its own ({other.name} writes into this one)"
                )
        found.append(folder)
    _unique_names(found, place)
    return tuple(found)


def read_tables(
    value: object, place: Place, *, at_most: int = MAX_SOURCES
) -> list[tuple[Mapping[str, object], Place]]:
    """The tables under one key of the settings file, each with its place."""
    tables = value if isinstance(value, list) else None
    if tables is None or not all(isinstance(table, Mapping) for table in tables):
        place.fail(value, f"tables in the settings file, each under [[{place.key}]]")
    if len(tables) > at_most:
        place.fail(f"{len(tables)} tables", f"at most {at_most}")
    return [
        (table, Place(source=place.source, key=f"{place.key}[{number}]", folder=place.folder))
        for number, table in enumerate(tables, 1)
    ]


def at_key(place: Place, key: str) -> Place:
    """The place of one key of a table."""
    return Place(source=place.source, key=f"{place.key}.{key}", folder=place.folder)


def table_values(
    table: Mapping[str, object],
    place: Place,
    parsers: Mapping[str, Callable[[object, Place], object]],
    *,
    required: tuple[str, ...],
) -> dict[str, Any]:
    """What a table says, by key. Unknown and missing keys are errors."""
    for key in table:
        if key not in parsers:
            at_key(place, key).fail(table[key], "one of the keys " + ", ".join(sorted(parsers)))
    for key in required:
        if key not in table:
            at_key(place, key).fail(None, "a value: it must be set")
    return {key: parsers[key](value, at_key(place, key)) for key, value in table.items()}


def _unique_names(found: list[BridgeSettings] | list[FolderSettings], place: Place) -> None:
    names = [source.name for source in found]
    for name in names:
        if names.count(name) > 1:
            place.fail(name, "a name of its own for each table")


def _name(value: object, place: Place) -> str:
    text = text_value(value, place)
    if not _NAME.fullmatch(text):
        place.fail(value, "a name of at most 32 lower-case letters, digits and dashes")
    return text


def _password(value: object, place: Place) -> str:
    expected = "a file that holds a password in one line, readable by the agent"
    try:
        text = existing_file(value, place).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError):
        place.fail(value, expected)
    if not text or "\n" in text:
        place.fail(value, expected)
    return text


def _filter(value: object, place: Place) -> str:
    text = text_value(value, place)
    levels = text.split("/")
    stray = any(("+" in level and level != "+") or ("#" in level and level != "#") for level in levels)
    if stray or "#" in levels[:-1] or "\0" in text or len(text.encode()) > _MAX_TOPIC_BYTES:
        place.fail(value, "an MQTT topic filter: '+' for one level, '#' for all that follow, at the end")
    return text


def _topic(value: object, place: Place) -> str:
    text = text_value(value, place)
    rest = text.replace(TOPIC_FIELD, "")
    if any(sign in rest for sign in "+#{}\0") or text.startswith("$") or len(text.encode()) > 1024:
        place.fail(
            value, f"an MQTT topic without wildcards, in which {TOPIC_FIELD} may stand for the sample's"
        )
    return text


def _flag(value: object, place: Place) -> bool:
    if not isinstance(value, bool):
        place.fail(value, "true or false")
    return value


def _tls(values: dict[str, Any], table: Mapping[str, object], place: Place) -> BridgeTls | None:
    """Takes the keys of TLS out of ``values``; any of its files turns it on."""
    files = {key: values.pop(key) for key in _TLS_FILES if key in values}
    if not values.pop("tls", bool(files)):
        for key in files:
            at_key(place, key).fail(table[key], "no such key beside tls = false")
        return None
    tls = BridgeTls(**files)

    def complain(key: str, value: object, expected: str) -> NoReturn:
        at_key(place, key).fail(value, expected)

    tls.check(complain)
    return tls


def _one_of(words: tuple[str, ...]) -> Callable[[object, Place], str]:
    def parse(value: object, place: Place) -> str:
        if value not in words:
            place.fail(value, "one of " + ", ".join(words))
        return str(value)

    return parse


def _pattern(value: object, place: Place) -> str:
    text = text_value(value, place)
    if "/" in text or text.startswith("."):
        place.fail(value, "a pattern of file names such as *.json, without folders and not of hidden files")
    return text


_TLS_FILES: Final = ("ca_file", "certificate_file", "key_file")
_BRIDGE_KEYS: Final[Mapping[str, Callable[[object, Place], object]]] = {
    "workload": text_value,
    "name": _name,
    "broker": endpoint_value,
    "username": text_value,
    "password_file": _password,
    "tls": _flag,
    "ca_file": existing_file,
    "certificate_file": existing_file,
    "key_file": existing_file,
    "input_topic": _filter,
    "output_topic": _topic,
    "error_topic": _topic,
    "format": _one_of(BRIDGE_FORMATS),
    "qos": whole(0, 1),
    "max_pending": whole(1, 100_000),
}
_FOLDER_KEYS: Final[Mapping[str, Callable[[object, Place], object]]] = {
    "workload": text_value,
    "name": _name,
    "path": path_value,
    "pattern": _pattern,
    "output": path_value,
    "format": _one_of(FOLDER_FORMATS),
    "poll_s": between(0.05, 3600, "s"),
    "settle_s": between(0, 3600, "s"),
}
