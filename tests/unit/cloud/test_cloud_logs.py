"""The log of a control plane, and the words of its devices, read from elsewhere."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from control_desk import call, run, served
from control_plane_fakes import PROFILE, SETTINGS, World, build, prepared

from cloud.cli.client import ControlClient
from cloud.cli.logs import parse_since
from cloud.domain.devices import DeploymentState
from cloud.domain.identities import Role
from cloud.domain.jobs import JobState
from cloud.domain.specs import CompressionSpec
from cloud.job_plans import compress_job, with_trial
from cloud.log_ring import LogRing, without_secrets
from cloud.services.control import ControlServicer
from edgeloop.errors import ConfigError
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1.control_service_pb2_grpc import ControlServiceStub


@pytest.fixture
def ring() -> LogRing:
    return LogRing(max_records=100)


@pytest.fixture
def log(ring: LogRing) -> logging.Logger:
    logger = logging.Logger("cloud.jobrunner")
    logger.addHandler(ring)
    return logger


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    prepared(world)
    return world


@pytest.fixture
def servicer(world: World, ring: LogRing) -> ControlServicer:
    return ControlServicer(
        world.store,
        settings=SETTINGS,
        info=pb.GetServerInfoResponse,
        read_blob=lambda _digest: b"",
        now_s=lambda: world.now_s,
        logs=ring,
        plane="plane-a",
    )


@pytest.fixture
def address(world: World, servicer: ControlServicer) -> Iterator[str]:
    with served(world.store, servicer) as address:
        yield address


def texts(ring: LogRing) -> list[str]:
    return [record.text for record in ring.after(0)[0]]


def test_the_ring_keeps_the_newest_and_goes_on_where_a_reader_was(ring: LogRing, log: logging.Logger) -> None:
    for number in range(250):
        log.info("step %d", number)
    assert texts(ring) == [f"step {number}" for number in range(150, 250)]
    position = ring.newest()
    log.warning("late")
    records, position = ring.after(position)
    assert [record.text for record in records] == ["late"]
    assert ring.after(position) == ([], position)
    # A reader that was away for longer than the ring holds gets what is left.
    for number in range(500):
        log.info("more %d", number)
    assert len(ring.after(position)[0]) == 100


def test_records_are_found_by_what_they_are_about_not_by_the_words_of_the_sentence(
    ring: LogRing, log: logging.Logger
) -> None:
    log.info("job %s %s: %s", "compress-gw-1", "failed", "out of memory")
    log.info("device %s refused it: %s", "gw-1", "bad.signature.")
    log.info("the job of gw-1 goes on")
    about = ring.after(0, names=frozenset({"gw-1"}))[0]
    assert [record.text for record in about] == ["device gw-1 refused it: bad.signature."]
    assert not ring.after(0, names=frozenset({"job"}))[0]


def test_records_outlive_a_restart_and_damaged_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    first = LogRing()
    first.keep_in(path)
    log = logging.Logger("cloud.publisher")
    log.addHandler(first)
    log.info("artifact %s \u2028 cleared", "abc123")
    try:
        raise ValueError("no\nline")
    except ValueError:
        log.exception("job %s failed", "job-7")
    first.close()
    with path.open("a") as file:
        file.write('{"time_s": 1, "le\n[]\n')
    again = LogRing()
    again.keep_in(path)
    again.close()
    assert again.after(0) == first.after(0)
    assert "ValueError: no\nline" in texts(again)[1]
    assert again.after(0, names=frozenset({"job-7"}))[0][0].level == logging.ERROR


def test_a_long_record_and_one_that_cannot_be_written_harm_nobody(
    ring: LogRing, log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.info("%s", "x" * 100_000)
    log.info("%d of them", "not a number")
    log.info("fine")
    assert [len(text) for text in texts(ring)] == [4000, 4]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("token elo_Zm9vYmFyYmF6 was wrong", "token (token) was wrong"),
        ("ele_Zm9vYmFyYmF6-_x", "(token)"),
        ("authorization: Bearer abc.def", "authorization: Bearer (token)"),
        ("postgresql://edge:s3cret@db/edgeloop", "postgresql://edge:(password)@db/edgeloop"),
        ("host=db password=s3cret user=edge", "host=db password=(secret) user=edge"),
        ("device gw-1 on http://127.0.0.1:8000/v2", "device gw-1 on http://127.0.0.1:8000/v2"),
    ],
)
def test_secrets_are_not_kept(ring: LogRing, log: logging.Logger, text: str, kept: str) -> None:
    assert without_secrets(text) == kept
    log.info("%s", text)
    assert texts(ring) == [kept]
    assert not {"s3cret", "abc.def"} & ring.after(0)[0][0].names


def test_a_device_is_told_of_by_the_control_plane_and_by_itself(
    world: World,
    log: logging.Logger,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world.register("gw-1")
    world.register("gw-2")
    build(world.store, PROFILE, 0.5)
    start = ("rollout", "start", "--profile", "gateway", "--canary-share", "1")
    assert run(monkeypatch, address, *start) == 0
    world.step()
    world.obey(["gw-1", "gw-2"], DeploymentState.REJECTED)
    log.info("device %s gets no deployment: %s", "gw-1", "\x1b[2Jit is\nfull")
    log.info("device %s gets no deployment: %s", "gw-2", "it is full")
    capsys.readouterr()
    assert run(monkeypatch, address, "logs", "--device", "gw-1") == 0
    shown = capsys.readouterr()
    assert "records of control plane plane-a; no control plane acts now" in shown.err
    assert re.search(r"WARNING device gw-1  generation 1 \(\w{12}\) rejected: self-test-output", shown.out)
    assert (
        "INFO    plane plane-a  cloud.jobrunner: device gw-1 gets no deployment: \ufffd[2Jit is\n    full"
        in (shown.out)
    )
    assert "gw-2" not in shown.out
    assert run(monkeypatch, address, "logs", "--device", "gw-1", "--level", "warning", "-o", "json") == 0
    (told,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (told["source"], told["level"], told["logger"]) == ("device gw-1", "warning", "")
    assert run(monkeypatch, address, "logs", "--profile", "gateway", "--limit", "2") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3  # the escape's record has two lines
    assert run(monkeypatch, address, "logs", "--device", "gw-3") == 1
    assert "device 'gw-3' is not known: known are gw-1, gw-2" in capsys.readouterr().err


def test_a_job_is_told_of_with_its_tasks_also_after_the_records_are_gone(
    world: World,
    log: logging.Logger,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = compress_job("compress-1", PROFILE, (CompressionSpec(width_ratio=0.25),), world.now_s)
    world.store.create_job(job)
    log.warning("task %s failed (%s): %s", job.trials[0].task_id, "memory", "killed")
    log.warning("task %s failed (%s): %s", "student-of-another", "memory", "killed")
    failed = replace(job.trials[0], state=JobState.FAILED, code="memory", message="killed at 2 GB")
    job = replace(
        with_trial(job, failed), state=JobState.FAILED, message="no student", end_time_s=world.now_s
    )
    world.store.update_job(job)
    assert run(monkeypatch, address, "logs", "--job", "compress-1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "job compress-1  compress asked for: workload digits, profile gateway" in lines[0]
    assert any("task compress-1-0 failed (memory): killed at 2 GB" in line for line in lines)
    assert any("job compress-1  failed: no student" in line for line in lines)
    assert any("cloud.jobrunner: task compress-1-0 failed" in line for line in lines)
    assert not any("student-of-another" in line for line in lines)


def test_who_follows_hears_what_comes_once(world: World, log: logging.Logger, address: str) -> None:
    world.register("gw-1")
    build(world.store, PROFILE, 0.5)
    log.info("before")
    heard: list[pb.LogRecord] = []
    news = threading.Semaphore(0)

    def listen(client: ControlClient) -> None:
        with contextlib.suppress(Exception):  # the connection is closed under it
            for answer in client.watch_logs(pb.WatchLogsRequest(follow=True)):
                heard.extend(answer.records)
                news.release()

    with ControlClient(address) as client:
        thread = threading.Thread(target=listen, args=(client,))
        thread.start()
        assert news.acquire(timeout=60)  # whose they are
        assert news.acquire(timeout=60)
        with grpc.insecure_channel(address) as channel:
            ControlServiceStub(channel).StartRollout(pb.StartRolloutRequest(profile="gateway"))
        world.step()
        world.obey(["gw-1"])
        log.error("after")
        while not {"after"} <= {record.message for record in heard} or len(heard) < 3:
            assert news.acquire(timeout=60)
    thread.join(60)
    sources = [record.source for record in heard]
    assert sorted(sources) == ["device gw-1", "plane plane-a", "plane plane-a"]


def test_viewers_may_read_and_a_wrong_filter_is_refused(world: World, servicer: ControlServicer) -> None:
    with served(world.store, servicer, with_tokens=True) as address:
        header, *_ = call(address, "WatchLogs", pb.WatchLogsRequest(), Role.VIEWER)
        assert header.plane == "plane-a"
        for request, said in (
            (pb.WatchLogsRequest(min_level="loud"), "min_level is 'loud'"),
            (pb.WatchLogsRequest(device_id="a", job_id="b"), "one of device, profile and job"),
        ):
            with pytest.raises(grpc.RpcError, match=said):
                list(call(address, "WatchLogs", request, Role.VIEWER))


def test_times_are_given_as_ago_or_in_utc() -> None:
    assert parse_since("10m", 1000.0) == 400.0
    assert parse_since("1970-01-01T00:10", 0.0) == 600.0
    assert parse_since("1970-01-01T01:10:00+01:00", 0.0) == 600.0
    with pytest.raises(ConfigError, match="--since is 'yesterday'"):
        parse_since("yesterday", 0.0)
