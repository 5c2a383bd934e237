"""Protobuf messages as plain values, for ``-o json`` and ``-o yaml``.

Unlike the canonical JSON mapping, 64-bit counts stay numbers, states read as people write them, times are
ISO 8601 in UTC, and embedded JSON is opened, so that ``jq`` needs no second pass.
"""

from __future__ import annotations

import json
from datetime import UTC
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp


def time_text(value: Timestamp) -> str:
    """``2026-01-31T12:00:00.000Z``, or an empty text for a time that was never set."""
    if not value.seconds and not value.nanos:
        return ""
    moment = value.ToDatetime(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock_text(value: Timestamp) -> str:
    """``2026-01-31 12:00:00`` in UTC, for tables; ``-`` for a time that was never set."""
    return time_text(value)[:19].replace("T", " ") or "-"


def enum_text(message: Message, field_name: str) -> str:
    """The value of an enum field as people write it: ``JOB_STATE_RUNNING`` of ``JobState`` is ``running``."""
    enum: Any = message.DESCRIPTOR.fields_by_name[field_name].enum_type
    number = getattr(message, field_name)
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name).lstrip("_")
    return str(value.name).removeprefix(f"{prefix}_").lower().replace("_", "-")


def plain(message: Message) -> dict[str, Any]:
    """Every field of the message as JSON-able values, unset ones included."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            result[field.name] = dict(value)
        elif field.is_repeated:
            result[field.name] = [_value(item) for item in value]
        elif field.message_type is not None and not message.HasField(field.name):
            result[field.name] = None
        elif field.enum_type is not None:
            result[field.name] = enum_text(message, field.name)
        elif field.name.endswith("_json"):
            result[field.name.removesuffix("_json")] = json.loads(value) if value else None
        else:
            result[field.name] = _value(value)
    return result


def _value(value: Any) -> Any:
    if isinstance(value, Timestamp):
        return time_text(value)
    if isinstance(value, Message):
        return plain(value)
    return value.hex() if isinstance(value, bytes) else value
