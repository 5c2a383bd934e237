"""The spool on a disk that is full, failing or damaged: what is lost is counted, and nothing is mixed up."""

from __future__ import annotations

import logging
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from test_agent_spool import keys, report, status

from edge_agent.spool import ReportSpool
from edgeloop.backoff import Backoff
from edgeloop.errors import TransientError


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class FailingDisk:
    """Connections whose commits fail, before or after the bytes are on the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        disk = self
        self.fails = False
        self.after_all = False
        self.num_tries = 0
        connect = sqlite3.connect

        class Connection(sqlite3.Connection):
            def commit(self) -> None:
                if disk.fails:
                    disk.num_tries += 1
                    if disk.after_all:
                        super().commit()
                    error = sqlite3.OperationalError("disk I/O error")
                    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                    raise error
                super().commit()

        def failing(*arguments: Any, **options: Any) -> sqlite3.Connection:
            return connect(*arguments, factory=Connection, **options)

        monkeypatch.setattr("edge_agent.spool_file.sqlite3.connect", failing)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    return FailingDisk(monkeypatch)


def make(path: Path, clock: Clock, boot_id: str = "boot-a", **settings: Any) -> ReportSpool:
    return ReportSpool(
        path, boot_id=boot_id, monotonic=clock, backoff=Backoff(1.0, 60.0, random.Random(1)), **settings
    )


def of_the_spool(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Without what threads of other tests have to say."""
    return [record for record in caplog.records if record.name.startswith("edge_agent.spool")]


def lose(spool: ReportSpool) -> None:
    with pytest.raises(TransientError) as caught:
        spool.append(report())
    assert caught.value.code == "spool-write"


def test_nothing_touches_the_disk_before_the_first_use(path: Path, clock: Clock) -> None:
    spool = make(path, clock)
    assert (spool.num_pending, spool.num_dropped, spool.problem) == (0, 0, "")
    assert not path.exists()


def test_what_cannot_be_opened_is_said_once_counted_and_opened_later(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()  # in the way
    spool = make(path, clock)
    with caplog.at_level(logging.INFO, "edge_agent"):
        spool.open()
        for _ in range(5):
            lose(spool)
            clock.now_s += 100
        assert "unable to open" in spool.problem
        (said,) = [record for record in of_the_spool(caplog) if record.levelno >= logging.WARNING]
        assert "free some room" in said.getMessage()
        assert (spool.num_dropped, spool.num_pending) == (5, 0)
        path.rmdir()
        clock.now_s += 100
        assert spool.append(report()) == 1
        assert "works again" in of_the_spool(caplog)[-1].getMessage()
    assert (spool.problem, spool.num_dropped) == ("", 5)
    (kept,) = spool.batch(10)
    assert kept.num_dropped_reports == 5
    spool.close()
    again = make(path, clock, "boot-b")
    again.open()
    assert again.num_dropped == 5  # also after a restart


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").write_text("in the way")
    spool = make(tmp_path / "file" / "spool.db", clock)
    spool.open()
    assert spool.problem
    lose(spool)


def test_a_full_disk_drops_and_keeps_what_it_had(path: Path, clock: Clock) -> None:
    spool = make(path, clock)
    spool.append(report(1))
    connection = spool._file._connection
    assert connection is not None
    connection.execute("PRAGMA max_page_count = 1")  # SQLite then says SQLITE_FULL, as on a full disk
    with pytest.raises(TransientError, match="full"):
        spool.append(report(2, size=50_000))
    # Nothing is sent that could not be deleted after it, and an ending waits with its sender.
    assert spool.batch(10) == []
    assert spool.pending_statuses() == []
    with pytest.raises(TransientError):
        spool.enqueue_status(status(1, "ACTIVE"))
    connection.execute("PRAGMA max_page_count = 100000")
    clock.now_s += 100
    assert [one.generation for one in spool.batch(10)] == [1]
    spool.enqueue_status(status(1, "ACTIVE"))
    sequence = spool.append(report(3))
    assert sequence > 1
    assert keys(spool.batch(10)) == [("boot-a", 1), ("boot-a", sequence)]
    assert spool.num_dropped == 1


def test_the_disk_is_left_alone_until_the_back_off_has_passed(
    path: Path, clock: Clock, disk: FailingDisk
) -> None:
    spool = make(path, clock)
    spool.append(report())
    disk.fails = True
    for _ in range(50):
        lose(spool)
    assert disk.num_tries == 1
    for _ in range(40):
        clock.now_s += 1
        lose(spool)
    assert 2 <= disk.num_tries <= 25
    assert spool.num_dropped == 90


@pytest.mark.parametrize("after_all", [False, True], ids=["not-written", "written-after-all"])
def test_no_number_is_given_twice_whatever_a_failed_commit_left(
    path: Path, clock: Clock, disk: FailingDisk, after_all: bool
) -> None:
    spool = make(path, clock)
    disk.after_all = after_all
    delivered: list[tuple[str, int]] = []
    contents: dict[tuple[str, int], int] = {}
    for n in range(40):
        disk.fails = n % 4 == 2
        clock.now_s += 100
        try:
            spool.append(report(n))
        except TransientError:
            continue
        batch = spool.batch(100)
        for one in batch:
            assert contents.setdefault((one.boot_id, one.sequence), one.generation) == one.generation
        spool.acknowledge(keys(batch))
        delivered += keys(batch)
    assert len(set(delivered)) == len(delivered)
    assert len(delivered) + spool.num_dropped >= 40
    assert spool.num_pending == 0


def test_a_failed_acknowledgement_sends_nothing_again_until_it_can_be_written(
    path: Path, clock: Clock, disk: FailingDisk
) -> None:
    spool = make(path, clock)
    spool.append(report())
    disk.fails = True
    with pytest.raises(TransientError):
        spool.acknowledge([("boot-a", 1)])
    for _ in range(5):
        clock.now_s += 100
        assert spool.batch(10) == []
    disk.fails = False
    clock.now_s += 100
    assert keys(spool.batch(10)) == [("boot-a", 1)]
    assert spool.acknowledge([("boot-a", 1)]) == 1


def test_flapping_is_said_once_until_a_report_was_kept(
    path: Path, clock: Clock, disk: FailingDisk, caplog: pytest.LogCaptureFixture
) -> None:
    spool = make(path, clock)
    with caplog.at_level(logging.WARNING, "edge_agent"):
        for _ in range(5):
            disk.fails = True
            lose(spool)
            disk.fails = False
            clock.now_s += 100
            spool.batch(1)  # a try that passes, and nothing kept
        assert len(of_the_spool(caplog)) == 1
        spool.append(report())
        disk.fails = True
        lose(spool)
        assert len(of_the_spool(caplog)) == 2


def test_reports_lost_with_a_damaged_file_are_counted(path: Path, clock: Clock) -> None:
    spool = make(path, clock, max_rows=200)
    for n in range(210):
        spool.append(report(n, size=3000))
    spool.close()
    spool = make(path, clock, "boot-b")
    spool.open()
    assert (spool.num_pending, spool.num_dropped) == (200, 10)
    with path.open("r+b") as file:  # every page but the first, under the open connection
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    spool.batch(1000)
    assert (spool.num_corruptions, spool.num_pending, spool.num_dropped) == (1, 0, 210)


def test_a_damaged_file_that_cannot_be_set_aside_degrades_and_is_set_aside_later(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"no database at all" * 100)

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        spool = make(path, clock)
        spool.open()
        assert "No space left" in spool.problem
        lose(spool)
    clock.now_s += 100
    assert spool.append(report()) == 1
    assert (spool.num_corruptions, spool.num_dropped) == (1, 1)
    assert path.with_name("spool.db.damaged-1").exists()
