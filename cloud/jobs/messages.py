"""What the control plane and the driver of Ray say to each other: plain values, one JSON document each.

Nothing here names code to run, and neither side unpickles what the other said. Both are of the same release,
so there is no version: the control plane starts the driver anew with itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cloud.domain import codec
from cloud.domain.candidates import Candidate
from cloud.domain.families import FamilyResult
from cloud.domain.tasks import (
    FamilyTask,
    StudentTask,
    Task,
    TaskEvent,
    TaskFailed,
    TaskProgress,
    TaskSucceeded,
    TeacherResult,
    TeacherTask,
)
from edgeloop.errors import ConfigError, EdgeloopError, TransientError


@dataclass(frozen=True, kw_only=True, slots=True)
class Begin:
    """The first word to a driver: what it drives, and from which level on (as ``logging`` counts) it logs."""

    work_dir: str
    registry_url: str
    address: str = ""
    num_cpus: int | None = None
    log_level: int = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Submit:
    """One of the three kinds of task."""

    teacher: TeacherTask | None = None
    family: FamilyTask | None = None
    student: StudentTask | None = None

    @classmethod
    def of(cls, task: Task) -> Submit:
        if isinstance(task, TeacherTask):
            return cls(teacher=task)
        if isinstance(task, FamilyTask):
            return cls(family=task)
        return cls(student=task)

    @property
    def task(self) -> Task:
        """Raises ``ValueError`` when there is none."""
        task = self.teacher or self.family or self.student
        if task is None:
            raise ValueError("a submission without a task")
        return task


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    task_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """End what runs, leave Ray, and exit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """Ray is there. ``description`` is for people."""

    description: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    description: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Alive:
    """Said while there is nothing else to say, by the thread that calls Ray: when Ray hangs, it stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gone:
    """Ray could not be had, or was lost; the driver exits. ``is_config`` when only a person can help."""

    message: str
    code: str
    is_config: bool = False

    @classmethod
    def of(cls, error: Exception) -> Gone:
        if isinstance(error, EdgeloopError):
            return cls(message=error.message, code=error.code, is_config=isinstance(error, ConfigError))
        return cls(message=f"{type(error).__name__}: {error}"[:2000], code="ray-driver")

    @property
    def error(self) -> EdgeloopError:
        kind = ConfigError if self.is_config else TransientError
        return kind(self.message, code=self.code)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progressed:
    event: TaskProgress


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    event: TaskFailed


@dataclass(frozen=True, kw_only=True, slots=True)
class Succeeded:
    """One of the three kinds of result."""

    task_id: str
    teacher: TeacherResult | None = None
    family: FamilyResult | None = None
    candidate: Candidate | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Logged:
    """A record of the driver's log. ``arguments`` are text and numbers."""

    time_s: float
    level: int
    logger: str
    thread: str
    message: str
    arguments: tuple[Any, ...] = ()


Message = (
    Begin
    | Submit
    | Cancel
    | Stop
    | Started
    | Described
    | Alive
    | Gone
    | Progressed
    | Failed
    | Succeeded
    | Logged
)
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(Begin, Submit, Cancel, Stop),
        *(Started, Described, Alive, Gone, Progressed, Failed, Succeeded, Logged),
    )
}


def to_bytes(message: Message) -> bytes:
    """The message as JSON in UTF-8. Raises ``TypeError`` or ``ValueError`` for values that JSON lacks."""
    document = {"kind": type(message).__name__, "value": codec.encode(message)}
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def from_bytes(data: bytes) -> Message:
    """The inverse of ``to_bytes``. Raises ``ValueError`` for everything that it did not write."""
    try:
        document = json.loads(data)
        message: Message = codec.decode(_KINDS[document["kind"]], document["value"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no message of ours: {error!r}") from error
    return message


def said(event: TaskEvent) -> Message:
    """The message that carries this event."""
    if isinstance(event, TaskProgress):
        return Progressed(event=event)
    if isinstance(event, TaskFailed):
        return Failed(event=event)
    result = event.result
    if isinstance(result, TeacherResult):
        return Succeeded(task_id=event.task_id, teacher=result)
    if isinstance(result, FamilyResult):
        return Succeeded(task_id=event.task_id, family=result)
    return Succeeded(task_id=event.task_id, candidate=result)


def heard(message: Progressed | Failed | Succeeded) -> TaskEvent:
    """The event that the message carries. Raises ``ValueError`` when a result is missing."""
    if not isinstance(message, Succeeded):
        return message.event
    result = message.teacher or message.family or message.candidate
    if result is None:
        raise ValueError(f"task {message.task_id} succeeded without a result")
    return TaskSucceeded(task_id=message.task_id, result=result)
