"""YAML files to documents, with the line of everything that is wrong.

All problems of a file are reported at once, each as ``file:line: field: what was expected``. Only plain YAML
is read (no tags that build objects), a key may stand only once, and aliases are refused, since a few lines of
them can expand to gigabytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cloud.document_problems import known_keys, path_text, problems_of
from cloud.resources import KINDS, Document, WorkloadDocument
from edgeloop.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 50


def load_documents(path: Path) -> list[Document]:
    """Read every document of a YAML file, in order.

    Raises ``ConfigError`` listing each problem with its line.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes: split it", code="document-size")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", code="document-file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text", code="document-file") from None
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"{path}:{line}: aliases are not read: write it out", code="document-yaml")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ConfigError(
                    f"{path}:{line}: nested more than {MAX_DEPTH} deep: make it flatter", code="document-yaml"
                )
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_problem(path, error), code="document-yaml") from None
    if not nodes:
        raise ConfigError(f"{path}: holds no document: it needs a 'kind'", code="document-empty")
    return [_document(path, node) for node in nodes]


def _yaml_problem(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "is not YAML"
    return f"{path}:{mark.line + 1}: {problem}" if mark else f"{path}: {problem}"


def _document(path: Path, root: yaml.Node) -> Document:
    first = root.start_mark.line + 1
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:{first}: must be a mapping with a 'kind'", code="document-yaml")
    if (odd := _odd_key(root)) is not None:
        raise ConfigError(
            f"{path}:{odd.start_mark.line + 1}: a key must be plain text, not a list or mapping",
            code="document-yaml",
        )
    doubled = _doubled_keys(root)
    if doubled:
        lines = [f"{path}:{node.start_mark.line + 1}: {node.value}: stands here twice" for node in doubled]
        raise ConfigError("\n".join(lines), code="document-yaml")
    try:
        values = yaml.SafeLoader("").construct_document(root)
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_problem(path, error), code="document-yaml") from None
    kind = values.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        line = _line_of(root, ("kind",))
        raise ConfigError(
            f"{path}:{line}: kind is {kind!r}: it must be one of {', '.join(KINDS)}", code="document-kind"
        )
    try:
        # Through JSON, so that a file is read exactly as the server will read what is sent on.
        document = model.model_validate_json(json.dumps(values))
    except TypeError:
        raise ConfigError(
            f"{path}:{_line_of_time(root) or first}: only text, numbers, lists and mappings are read: put a "
            "date into quotes",
            code="document-yaml",
        ) from None
    except ValidationError as error:
        lines = []
        for place, problem in problems_of(error):
            hint = _hint(model, place) if problem == "unknown key" else ""
            lines.append(f"{path}:{_line_of(root, place)}: {path_text(place) or 'document'}: {problem}{hint}")
        raise ConfigError("\n".join(lines), code="document-field") from None
    # Without code of their own, equal files in two folders are one workload, with one teacher.
    if isinstance(document, WorkloadDocument) and any(":" in name for name in document.references):
        folder = path.resolve().parent
        source = folder / document.source_dir if document.source_dir else folder
        document = document.model_copy(update={"source_dir": str(source)})
    return document


def _hint(model: type[Any], place: Sequence[int | str]) -> str:
    known = known_keys(model, place)
    close = get_close_matches(str(place[-1]), known, n=1)
    if close:
        return f": did you mean {close[0]!r}?"
    return f": known are {', '.join(known)}" if known else ""


def _nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    yield node
    if isinstance(node, yaml.MappingNode | yaml.SequenceNode):
        for item in node.value:
            for inner in item if isinstance(item, tuple) else (item,):
                yield from _nodes(inner)


def _odd_key(root: yaml.Node) -> yaml.Node | None:
    keys = (key for node in _nodes(root) if isinstance(node, yaml.MappingNode) for key, _ in node.value)
    return next((key for key in keys if not isinstance(key, yaml.ScalarNode)), None)


def _line_of_time(root: yaml.Node) -> int:
    """Where the first value stands that YAML takes for a date."""
    tags = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:binary", "tag:yaml.org,2002:set")
    return next((node.start_mark.line + 1 for node in _nodes(root) if node.tag in tags), 0)


def _doubled_keys(node: yaml.Node) -> list[yaml.Node]:
    found: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                found.append(key)
            seen.add(key.value)
            found += _doubled_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            found += _doubled_keys(item)
    return found


def _line_of(root: yaml.Node, place: Sequence[int | str]) -> int:
    """The line of the deepest node on the way to ``place`` that the file holds."""
    node = root
    line = node.start_mark.line
    for part in place:
        if isinstance(node, yaml.MappingNode):
            entry = next(((key, value) for key, value in node.value if key.value == part), None)
            if entry is None:
                break
            line, node = entry[0].start_mark.line, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return int(line) + 1
