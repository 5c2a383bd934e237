"""What goes between the control plane and the driver of Ray: comes out as it went in, or is refused."""

from __future__ import annotations

import json
import logging
import socket
import struct
import sys
from collections.abc import Iterator

import pytest
from control_plane_fakes import PROFILE, WORKLOAD, candidate_of, family_of, teacher_of

from cloud.domain.families import FamilySettings
from cloud.domain.specs import CompressionSpec
from cloud.domain.tasks import (
    FamilyTask,
    StudentTask,
    Task,
    TaskEvent,
    TaskFailed,
    TaskProgress,
    TaskSucceeded,
    TeacherTask,
)
from cloud.jobs.driver import logged
from cloud.jobs.link import MAX_FRAME_BYTES, Link
from cloud.jobs.messages import Alive, Cancel, Gone, Submit, from_bytes, heard, said, to_bytes
from edgeloop.errors import ConfigError, TransientError

TEACHER = teacher_of(WORKLOAD)
FAMILY_TASK = FamilyTask(
    task_id="f", workload=WORKLOAD, teacher=TEACHER, settings=FamilySettings(num_epochs=2)
)
TASKS: list[Task] = [
    TeacherTask(task_id="t", workload=WORKLOAD, attempt="again"),
    FAMILY_TASK,
    StudentTask(
        task_id="s",
        workload=WORKLOAD,
        teacher=TEACHER,
        profile=PROFILE,
        spec=CompressionSpec(width_ratio=0.25),
        family=family_of(FAMILY_TASK),
    ),
]
EVENTS: list[TaskEvent] = [
    TaskProgress(task_id="p", fraction=1 / 3, message="Epoche 1 für alle"),
    TaskFailed(task_id="x", code="config", message="no such column"),
    TaskSucceeded(task_id="t", result=TEACHER),
    TaskSucceeded(task_id="f", result=family_of(FAMILY_TASK)),
    TaskSucceeded(task_id="s", result=candidate_of(PROFILE, CompressionSpec(width_ratio=0.25))),
]


@pytest.fixture
def ends() -> Iterator[tuple[Link, socket.socket]]:
    """A link, and the bare socket of whoever talks with it."""
    ours, theirs = socket.socketpair()
    link = Link(ours, silence_s=30.0)
    yield link, theirs
    link.close()
    theirs.close()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_a_task_arrives_as_it_was_sent(task: Task, ends: tuple[Link, socket.socket]) -> None:
    link, other = ends
    Link(other).send(Submit.of(task))
    arrived = link.receive()
    assert isinstance(arrived, Submit)
    assert arrived.task == task


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: f"{type(event).__name__}-{event.task_id}")
def test_an_event_arrives_as_it_was_sent(event: TaskEvent) -> None:
    arrived = from_bytes(to_bytes(said(event)))
    assert heard(arrived) == event  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error", [ConfigError("fix it", code="ray-address"), TransientError("again", code="ray-lost")]
)
def test_an_error_keeps_its_kind_and_code(error: ConfigError | TransientError) -> None:
    arrived = from_bytes(to_bytes(Gone.of(error)))
    assert isinstance(arrived, Gone)
    again = arrived.error
    assert (type(again), again.code, again.message) == (type(error), error.code, error.message)


def test_frames_that_come_in_pieces_and_together_are_told_apart(ends: tuple[Link, socket.socket]) -> None:
    link, other = ends
    frames = b""
    for name in ("a", "b"):
        data = to_bytes(Cancel(task_id=name))
        frames += struct.pack("!I", len(data)) + data
    other.sendall(frames[:7])
    other.sendall(frames[7:])
    assert [link.receive(), link.receive()] == [Cancel(task_id="a"), Cancel(task_id="b")]


@pytest.mark.parametrize("cut", [0, 2, 4, 10])
def test_an_end_anywhere_in_a_frame_is_an_end(cut: int, ends: tuple[Link, socket.socket]) -> None:
    link, other = ends
    data = to_bytes(Cancel(task_id="a"))
    other.sendall((struct.pack("!I", len(data)) + data)[:cut])
    other.close()
    assert link.receive() is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"kind": "Cancel"}',
        b'{"kind": "Cancel", "value": {"task_id": 3}}',
        b'{"kind": "Cancel", "value": []}',
        b'{"kind": ["Cancel"], "value": {}}',
        b'{"kind": "os.system", "value": {}}',
        b'{"kind": "Progressed", "value": {"event": {"task_id": "a"}}}',
        b"[" * 100_000,
    ],
    ids=str,
)
def test_what_is_no_message_is_refused(body: bytes, ends: tuple[Link, socket.socket]) -> None:
    link, other = ends
    other.sendall(struct.pack("!I", len(body)) + body)
    with pytest.raises(ValueError, match="no message of ours"):
        link.receive()


def test_neither_side_takes_or_sends_a_frame_without_bound(ends: tuple[Link, socket.socket]) -> None:
    link, other = ends
    with pytest.raises(ValueError, match="longer than a frame"):
        link.send(Cancel(task_id="x" * MAX_FRAME_BYTES))
    other.sendall(struct.pack("!I", MAX_FRAME_BYTES + 1))
    with pytest.raises(ValueError, match="at most"):
        link.receive()


def test_silence_is_told_from_an_end() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours, silence_s=0.01)
    with theirs, pytest.raises(TimeoutError):
        link.receive()
    link.close()


def test_a_message_names_no_code_to_run() -> None:
    assert json.loads(to_bytes(Alive())) == {"kind": "Alive", "value": {}}


def test_a_record_keeps_its_sentence_and_what_it_is_about() -> None:
    about = ("job-1/0", 4, KeyError("x"))
    record = logging.LogRecord(
        "cloud.jobs.compute", logging.ERROR, "", 0, "task %s failed %d times: %s", about, None
    )
    told = logged(record)
    assert (told.logger, told.level) == ("cloud.jobs.compute", logging.ERROR)
    assert told.arguments == ("job-1/0", 4, "'x'")
    assert told.message % told.arguments == record.getMessage()
    assert from_bytes(to_bytes(told)) == told


def test_a_record_with_an_exception_or_a_lone_percent_sign_is_told_whole() -> None:
    try:
        raise ValueError("100 %")
    except ValueError:
        failed = logging.LogRecord("a", logging.ERROR, "", 0, "50 % done", (), sys.exc_info())
    told = logged(failed)
    text = told.message % told.arguments
    assert text.startswith("50 % done\nTraceback")
    assert text.endswith("ValueError: 100 %")
    plain = logged(logging.LogRecord("a", logging.INFO, "", 0, "50 % done", (), None))
    assert (plain.message, plain.arguments) == ("50 % done", ())
