"""The control plane's side of Ray: whatever becomes of drivers, each task ends once and nobody waits."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_plane_fakes import WORKLOAD, teacher_of
from hypothesis import given
from hypothesis import strategies as st
from remote_driver import WAIT_S, World

from cloud.domain.tasks import TaskEvent, TaskFailed, TaskProgress, TaskSucceeded, TeacherTask
from cloud.jobs.messages import (
    Cancel,
    Described,
    Gone,
    Logged,
    Message,
    Started,
    Stop,
    Submit,
    said,
)
from cloud.jobs.open_tasks import OpenTasks
from cloud.jobs.remote import SILENCE_S, take_secrets
from edgeloop.errors import ConfigError, TransientError

RESULT = teacher_of(WORKLOAD)


def task(name: str) -> TeacherTask:
    return TeacherTask(task_id=name, workload=WORKLOAD)


def done(name: str) -> TaskSucceeded:
    return TaskSucceeded(task_id=name, result=RESULT)


def ends(events: list[TaskEvent]) -> list[TaskEvent]:
    return [event for event in events if not isinstance(event, TaskProgress)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.may_launch.set()
    world.compute.stop()


def words_of_compute(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """Without what threads of other tests have to say."""
    return [
        record.getMessage()
        for record in list(caplog.records)
        if record.name == "cloud.jobs.remote" and record.levelno >= level
    ]


def test_a_task_is_told_to_the_driver_once_and_its_events_come_out_in_order(world: World) -> None:
    compute = world.compute
    compute.start()
    driver = world.driver()
    compute.submit(task("a"))
    compute.submit(task("a"))
    assert driver.told() == [Submit.of(task("a"))]
    progress = TaskProgress(task_id="a", fraction=0.5, message="epoch 1")
    driver.say(said(progress), said(done("a")), said(progress), said(done("a")), said(done("unknown")))
    assert compute.poll() == [progress, done("a")]
    assert compute.poll() == []
    assert compute.describe() == "local Ray, 2 CPUs"
    driver.say(Described(description="local Ray, 4 CPUs"))
    assert compute.describe() == "local Ray, 4 CPUs"


def test_the_next_driver_gets_what_is_unfinished_and_one_line_says_why(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    compute = world.compute
    compute.start()
    first = world.driver()
    for name in "abc":
        compute.submit(task(name))
    first.say(said(done("b")))
    world.may_launch.clear()
    with caplog.at_level(logging.WARNING):
        first.say(None)
        assert "is started again" in compute.describe() or compute.pid is None
        compute.submit(task("d"))
        world.may_launch.set()
        second = world.driver()
    assert second.told() == [Submit.of(task(name)) for name in "acd"]
    (line,) = words_of_compute(caplog)
    assert "process 1) was ended by SIGABRT" in line
    assert "Check failed: no head" in line
    second.say(*(said(done(name)) for name in "cad"))
    assert ends(compute.poll()) == [done(name) for name in "bcad"]
    assert compute.pid == second.pid


def test_each_driver_that_has_ray_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """scripts/compose_test.py waits for this line after the head of the cluster was killed."""
    with caplog.at_level(logging.INFO):
        world.compute.start()
        world.driver().say(None)
        world.driver()
    lines = words_of_compute(caplog, logging.INFO)
    assert sum("driven by process" in line for line in lines) == 2


def test_a_head_that_stays_away_is_told_once_and_again_when_it_is_lost_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    refused = Gone(message="compute.address is h:1: refused", code="ray-address", is_config=True)
    world.first_words = [world.first_word, refused, refused, refused, world.first_word, refused]
    world.compute.start()
    world.driver().say(None)
    for _ in range(3):
        world.launched()
    world.driver().say(None)
    world.launched()
    world.driver()
    lines = words_of_compute(caplog)
    assert ["refused" in line for line in lines] == [False, True, False, True]
    assert ["SIGABRT" in line for line in lines] == [True, False, True, False]


def test_who_waits_is_told_that_ray_is_started_again(world: World) -> None:
    compute = world.compute
    compute.start()
    driver = world.driver()
    compute.submit(task("a"))
    driver.say(None)
    (word,) = compute.poll()
    assert isinstance(word, TaskProgress)
    assert "started again" in word.message


def test_a_driver_that_hangs_in_ray_is_ended_and_said_so(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    compute = world.compute
    compute.start()
    first = world.driver()
    assert first.silence_s == [SILENCE_S]
    compute.submit(task("a"))
    first.say(TimeoutError())
    second = world.driver()
    assert first.patience_s == 0.0, "it is not waited for any longer"
    assert f"did not answer for {SILENCE_S:.0f} s" in caplog.text
    assert second.told() == [Submit.of(task("a"))]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (ValueError("a frame of 4000000000 bytes"), "nobody understands"),
        (Gone(message="Ray does not answer: x", code="ray-lost"), "Ray does not answer: x"),
    ],
)
def test_a_driver_that_babbles_or_gives_up_is_replaced(
    world: World, caplog: pytest.LogCaptureFixture, word: Message | Exception, reason: str
) -> None:
    world.compute.start()
    world.driver().say(word)
    world.driver()
    assert reason in caplog.text


def test_a_cluster_that_cannot_be_joined_is_told_by_start_and_may_be_tried_again(world: World) -> None:
    world.first_word = Gone(message="compute.address is h:1: refused", code="ray-address", is_config=True)
    with pytest.raises(ConfigError, match="refused") as caught:
        world.compute.start()
    assert caught.value.code == "ray-address"
    world.launched()
    assert world.no_more_drivers(), "who called decides when it is tried again"
    world.first_word = Started(description="Ray at h:1, 2 CPUs")
    world.compute.start()
    assert world.driver().pid == world.compute.pid


def test_a_driver_that_dies_while_it_starts_ray_is_an_error_that_may_pass(world: World) -> None:
    world.first_word = ValueError("torn")
    with pytest.raises(TransientError, match="SIGABRT"):
        world.compute.start()


def test_a_cancelled_task_ends_at_once_and_only_once(world: World) -> None:
    compute = world.compute
    compute.start()
    driver = world.driver()
    compute.submit(task("a"))
    compute.cancel("a")
    compute.cancel("a")
    compute.cancel("unknown")
    cancelled = TaskFailed(task_id="a", code="cancelled", message="cancelled")
    assert compute.poll() == [cancelled]
    assert driver.told() == [Submit.of(task("a")), Cancel(task_id="a")]
    compute.submit(task("a"))
    driver.say(said(cancelled))
    assert compute.poll() == [], "that was the end of the first submission"
    driver.say(said(done("a")))
    assert compute.poll() == [done("a")]


def test_what_is_cancelled_while_there_is_no_driver_is_not_given_to_the_next(world: World) -> None:
    compute = world.compute
    compute.start()
    first = world.driver()
    compute.submit(task("a"))
    compute.submit(task("b"))
    world.may_launch.clear()
    first.say(None)
    compute.cancel("a")
    assert [event.task_id for event in ends(compute.poll())] == ["a"]
    world.may_launch.set()
    assert world.driver().told() == [Submit.of(task("b"))]


def test_stopping_asks_the_driver_to_leave_ray_and_starts_none_again(world: World) -> None:
    compute = world.compute
    compute.start()
    driver = world.driver()
    compute.submit(task("a"))
    compute.stop()
    assert driver.told() == [Submit.of(task("a")), Stop()]
    assert not driver.killed.is_set()
    assert world.no_more_drivers()
    assert compute.poll() == []
    compute.start()
    assert world.driver().told() == [], "what was stopped is forgotten"


def test_stopping_while_ray_is_being_started_does_not_wait_for_it(world: World) -> None:
    world.first_word = None
    errors: list[Exception] = []

    def start() -> None:
        try:
            world.compute.start()
        except TransientError as error:
            errors.append(error)

    starting = threading.Thread(target=start)
    starting.start()
    driver = world.launched()
    driver.sent.get(timeout=WAIT_S)  # it was told to begin
    world.compute.stop()
    starting.join(WAIT_S)
    assert driver.killed.is_set()
    assert len(errors) == 1


def test_what_the_driver_logs_is_logged_here(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.compute.start()
    record = Logged(
        time_s=12.5,
        level=logging.WARNING,
        logger="cloud.jobs.cluster",
        thread="driver/ray-owner",
        message="task %s failed %d times",
        arguments=("job-1/0", 4),
    )
    world.driver().say(record)
    (found,) = [item for item in caplog.records if item.name == "cloud.jobs.cluster"]
    assert found.getMessage() == "task job-1/0 failed 4 times"
    assert found.args == ("job-1/0", 4), "logs are searched by them"
    assert (found.created, found.levelno) == (12.5, logging.WARNING)


def test_a_token_of_ray_leaves_the_environment_that_others_inherit() -> None:
    environment = {"RAY_AUTH_TOKEN": "secret", "RAY_AUTH_TOKEN_PATH": "/secrets/token", "HOME": "/"}
    assert take_secrets(environment) == {"RAY_AUTH_TOKEN": "secret"}
    assert environment == {"RAY_AUTH_TOKEN_PATH": "/secrets/token", "HOME": "/"}
    assert take_secrets(environment) == {}


@given(
    st.lists(
        st.tuples(st.sampled_from(["submit", "cancel", "end", "progress", "die"]), st.sampled_from("ab")),
        max_size=40,
    )
)
def test_each_submission_ends_exactly_once_whatever_happens(steps: list[tuple[str, str]]) -> None:
    book = OpenTasks()
    book.driver_came()
    #: Ends that the driver owes, submissions that counted, ends that were told.
    owed, submitted, told = Counter[str](), Counter[str](), Counter[str]()
    is_open = {"a": False, "b": False}
    for what, name in steps:
        if what == "submit":
            was_told_to_driver = book.submit(task(name))
            assert was_told_to_driver == (not is_open[name])
            if not is_open[name]:
                is_open[name] = True
                submitted[name] += 1
                owed[name] += 1
        elif what == "cancel":
            event = book.cancel(name)
            assert (event is not None) == is_open[name]
            told[name] += event is not None
            is_open[name] = False
        elif what == "die":
            assert {word.task_id for word in book.driver_went("x")} == {n for n in "ab" if is_open[n]}
            owed = Counter(again.task_id for again in book.driver_came())
        elif owed[name]:
            if what == "progress":
                book.hear(TaskProgress(task_id=name, fraction=0.1, message=""))
                continue
            owed[name] -= 1
            if book.hear(done(name)) is not None:
                assert is_open[name]
                told[name] += 1
                is_open[name] = False
        for each in "ab":
            assert told[each] + is_open[each] == submitted[each]
    assert len(book) == sum(is_open.values())
