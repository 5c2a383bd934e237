"""What is wrong with a document, in the words of who wrote it.

Every problem names the field by its path and says what was expected; pydantic's own words speak of types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from cloud.resources import KINDS, Document, InstructionSet, Name, Reference
from edgeloop.errors import ConfigError


def _described(*types: Any) -> dict[str, str]:
    """What each pattern asks for, in words."""
    fields = [field for kind in types for field in kind.__metadata__ if field.description]
    return {
        bound.pattern: field.description
        for field in fields
        for bound in field.metadata
        if hasattr(bound, "pattern")
    }


_EXPECTED = _described(Name, Reference, InstructionSet)
#: What pydantic calls an object or an array is a mapping or a list in YAML.
_IN_YAML = {
    "model_type": "should be a mapping of keys",
    "dict_type": "should be a mapping of keys",
    "list_type": "should be a list",
}


def _shown(value: Any) -> str:
    return "nothing" if value is None else "a mapping" if isinstance(value, dict) else repr(value)[:80]


def problems_of(error: ValidationError) -> list[tuple[tuple[int | str, ...], str]]:
    """Each problem as (path into the document, what was expected and what to do)."""
    found = []
    for item in error.errors(include_url=False):
        message = item["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        elif item["type"] == "missing":
            message = "is required"
        elif item["type"] in _IN_YAML:
            message = f"{_IN_YAML[item['type']]}, not {_shown(item['input'])}"
        elif item["type"] == "string_pattern_mismatch":
            expected = _EXPECTED.get(item["ctx"]["pattern"], f"text that fits {item['ctx']['pattern']}")
            message = f"should be {expected}, not {item['input']!r}"
        elif item["type"] != "value_error" and not isinstance(item["input"], dict | list):
            message = f"{message}, not {item['input']!r}"
        # A bad key of a mapping stands behind its own name.
        found.append((tuple(part for part in item["loc"] if part != "[key]"), message))
    return found


def path_text(path: Sequence[int | str]) -> str:
    """``("profiles", 0, "name")`` as people write it: ``profiles[0].name``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def known_keys(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """The keys that the section at ``path`` may hold; empty when the path leads into free-form options."""
    current = model
    is_name = False
    for part in path[:-1]:
        if isinstance(part, int) or is_name:
            is_name = False
            continue
        field = current.model_fields.get(part)
        found = _section_in(field.annotation) if field else None
        if field is None or found is None:
            return []
        current = found
        is_name = get_origin(field.annotation) is dict  # sections by names that their writer chose
    return sorted(current.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _section_in(inner)) is not None:
            return found
    return None


def parse_document(kind: str, json_text: str, source: str) -> Document:
    """Validate a document that came as JSON.

    Raises ``ConfigError`` that names the source, the field and what was expected.
    """
    model = KINDS.get(kind)
    if model is None:
        raise ConfigError(
            f"{source}: kind is {kind!r}: it must be one of {', '.join(KINDS)}", code="document-kind"
        )
    try:
        return model.model_validate_json(json_text)
    except ValidationError as error:
        lines = [f"{source}: {path_text(path) or 'document'}: {text}" for path, text in problems_of(error)]
        raise ConfigError("\n".join(lines), code="document-field") from None
