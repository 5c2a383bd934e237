"""The spool: durable, bounded, exact, and not to be stopped by a damaged file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_agent.spool import ReportSpool
from edgeloop.errors import TransientError
from edgeloop.v1 import deployment_pb2, telemetry_pb2


def opened(path: Path, **settings: Any) -> ReportSpool:
    spool = ReportSpool(path, **settings)
    spool.open()
    return spool


def report(number: int = 0, size: int = 0) -> telemetry_pb2.LatencyReport:
    return telemetry_pb2.LatencyReport(
        device_id="gateway-1", digest=f"{number:064x}", generation=number, workload="w" * size
    )


def keys(reports: list[telemetry_pb2.LatencyReport]) -> list[tuple[str, int]]:
    return [(one.boot_id, one.sequence) for one in reports]


def status(generation: int, state: str, message: str = "") -> deployment_pb2.DeploymentStatus:
    return deployment_pb2.DeploymentStatus(
        device_id="gateway-1",
        generation=generation,
        state=deployment_pb2.DeploymentState.Value(f"DEPLOYMENT_STATE_{state}"),
        message=message,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "reports.db"


class TestReports:
    def test_sequences_count_from_one_and_the_original_is_left_alone(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a")
        original = report(5)
        assert [spool.append(original) for _ in range(3)] == [1, 2, 3]
        assert original == report(5)
        batch = spool.batch(10)
        assert keys(batch) == [("boot-a", 1), ("boot-a", 2), ("boot-a", 3)]
        assert batch[0].generation == 5

    def test_what_is_not_acknowledged_is_there_after_a_restart_under_its_old_key(self, path: Path) -> None:
        first = opened(path, boot_id="boot-a")
        for n in range(4):
            first.append(report(n))
        first.acknowledge([("boot-a", 1), ("boot-a", 3)])
        first.close()
        second = opened(path, boot_id="boot-b")
        assert second.append(report(9)) == 1
        assert keys(second.batch(10)) == [("boot-a", 2), ("boot-a", 4), ("boot-b", 1)]

    def test_opened_again_in_the_same_boot_it_gives_no_sequence_twice(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a")
        spool.append(report())
        spool.append(report())
        spool.acknowledge([("boot-a", 1), ("boot-a", 2)])
        spool.close()
        assert opened(path, boot_id="boot-a").append(report()) == 3

    def test_only_the_exact_key_is_deleted(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a")
        spool.append(report())
        assert spool.acknowledge([("boot-b", 1), ("boot-a", 2)]) == 0
        assert spool.num_pending == 1
        assert spool.acknowledge([("boot-a", 1)]) == 1
        assert spool.acknowledge([("boot-a", 1)]) == 0
        assert spool.num_pending == 0

    def test_a_batch_is_bounded_in_bytes_but_never_empty(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a")
        for n in range(4):
            spool.append(report(n, size=1000))
        assert len(spool.batch(10, max_bytes=2500)) == 2
        assert len(spool.batch(10, max_bytes=1)) == 1
        assert len(spool.batch(3)) == 3

    def test_rejected_reports_are_gone_and_counted(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a")
        spool.append(report())
        spool.append(report())
        assert spool.reject([("boot-a", 1), ("boot-a", 7)]) == 1
        assert (spool.num_rejected, spool.num_dropped, spool.num_pending) == (1, 0, 1)

    def test_a_row_that_cannot_be_read_does_not_block_the_others(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a")
        for n in range(3):
            spool.append(report(n))
        with sqlite3.connect(path) as other:
            other.execute("UPDATE reports SET payload = X'FFFF' WHERE sequence = 2")
        assert keys(spool.batch(10)) == [("boot-a", 1), ("boot-a", 3)]
        assert (spool.num_dropped, spool.num_pending) == (1, 2)


class TestQuota:
    def test_the_oldest_rows_go_and_later_reports_say_how_many(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a", max_rows=3)
        for n in range(5):
            spool.append(report(n))
        assert keys(spool.batch(10)) == [("boot-a", 3), ("boot-a", 4), ("boot-a", 5)]
        spool.close()
        again = opened(path, boot_id="boot-b", max_rows=3)
        assert again.num_dropped == 2
        again.append(report())
        assert again.batch(10)[-1].num_dropped_reports == 2
        assert again.num_dropped == 3

    def test_bytes_are_bounded_and_the_newest_stays_even_if_it_alone_is_too_large(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a", max_bytes=5000)
        for n in range(10):
            spool.append(report(n, size=1000))
        assert spool.num_bytes <= 5000
        assert spool.num_pending + spool.num_dropped == 10
        spool.append(report(99, size=9000))
        assert keys(spool.batch(10)) == [("boot-a", 11)]

    def test_a_smaller_quota_than_before_is_kept_at_the_next_append(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a")
        for n in range(9):
            spool.append(report(n))
        spool.close()
        small = opened(path, boot_id="boot-b", max_rows=2)
        small.append(report())
        assert (small.num_pending, small.num_dropped) == (2, 8)


class TestStatuses:
    def test_they_come_in_order_and_stay_until_delivered(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a")
        for generation, state in ((1, "ACTIVE"), (2, "FETCHING"), (2, "TRIAL")):
            spool.enqueue_status(status(generation, state))
        spool.close()
        again = opened(path, boot_id="boot-b")
        pending = again.pending_statuses()
        assert [one.generation for _, one in pending] == [1, 2, 2]
        again.status_delivered(pending[0][0])
        assert [one for _, one in again.pending_statuses()] == [status(2, "FETCHING"), status(2, "TRIAL")]

    def test_of_one_state_only_the_newest_waits(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a")
        for progress in ("10 %", "50 %"):
            spool.enqueue_status(status(1, "FETCHING", progress))
        assert [one.message for _, one in spool.pending_statuses()] == ["50 %"]

    def test_a_delivery_does_not_take_what_replaced_it_meanwhile(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a")
        spool.enqueue_status(status(1, "FETCHING", "10 %"))
        ((row, _),) = spool.pending_statuses()
        spool.enqueue_status(status(1, "FETCHING", "50 %"))
        spool.status_delivered(row)
        assert [one.message for _, one in spool.pending_statuses()] == ["50 %"]

    def test_a_terminal_state_replaces_the_way_to_it(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a")
        for generation, state in ((1, "FETCHING"), (2, "FETCHING"), (1, "TRIAL"), (1, "ROLLED_BACK")):
            spool.enqueue_status(status(generation, state))
        assert [one for _, one in spool.pending_statuses()] == [
            status(2, "FETCHING"),
            status(1, "ROLLED_BACK"),
        ]


class TestDamage:
    @pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
    def test_a_damaged_file_is_moved_aside_and_counted(self, path: Path, content: bytes) -> None:
        path.parent.mkdir()
        path.write_bytes(content)
        spool = opened(path, boot_id="boot-a")
        assert spool.append(report()) == 1
        assert spool.num_corruptions == 1
        assert (path.parent / "reports.db.damaged-1").read_bytes() == content

    def test_the_count_goes_on_and_one_damaged_file_is_kept(self, path: Path) -> None:
        for n in range(1, 4):
            spool = opened(path, boot_id="boot-a")
            spool.append(report())
            spool.close()
            path.write_bytes(b"x" * 5000)
            spool = opened(path, boot_id="boot-a")
            assert spool.num_corruptions == n
            spool.close()
        assert [found.name for found in path.parent.glob("*damaged*")] == ["reports.db.damaged-3"]

    def test_damage_while_running_is_outlived_and_no_sequence_repeats(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a")
        for n in range(300):
            spool.append(report(n, size=3000))
        spool.close()
        spool = opened(path, boot_id="boot-a")
        with path.open("r+b") as file:  # every page but the first, under the open connection
            file.seek(4096)
            file.write(b"\xa5" * (path.stat().st_size - 4096))
        spool.batch(1000)
        assert spool.num_corruptions == 1
        assert spool.append(report()) == 301
        assert keys(spool.batch(10)) == [("boot-a", 301)]
        assert spool.num_pending == 1

    def test_a_file_of_a_later_schema_is_not_misread(self, path: Path) -> None:
        opened(path, boot_id="boot-a").close()
        with sqlite3.connect(path) as other:
            other.execute("PRAGMA user_version = 99")
        spool = opened(path, boot_id="boot-a")
        assert spool.append(report()) == 1
        assert spool.num_corruptions == 1

    def test_a_closed_spool_says_so(self, path: Path) -> None:
        spool = opened(path, boot_id="boot-a")
        spool.close()
        with pytest.raises(TransientError):
            spool.append(report())


WRITER = """
import sys
from pathlib import Path
from edge_agent.spool import ReportSpool
from edgeloop.v1 import deployment_pb2, telemetry_pb2
spool = ReportSpool(Path(sys.argv[1]), boot_id=sys.argv[2])
n = 0
while True:
    n += 1
    sequence = spool.append(telemetry_pb2.LatencyReport(digest="a" * 64, workload="w" * 300))
    spool.enqueue_status(deployment_pb2.DeploymentStatus(generation=n, state=6))
    print(sequence, n, flush=True)
"""


@pytest.mark.parametrize("num_lines", [1, 7, 40])
def test_what_was_returned_from_survives_kill_9(path: Path, num_lines: int) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "boot-a"], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for _ in range(num_lines):
        last = writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    last = (writer.stdout.read().splitlines() or [last])[-1]
    writer.wait()
    sequence, generation = map(int, last.split())
    spool = opened(path, boot_id="boot-b")
    found = [one.sequence for one in spool.batch(100_000, max_bytes=1 << 30)]
    assert found == list(range(1, len(found) + 1))
    assert sequence <= len(found) <= sequence + 1
    assert len(spool.pending_statuses(10_000)) >= min(generation, 1000)
    assert spool.num_corruptions == 0


class SpoolMachine(RuleBasedStateMachine):
    """Against a list: what was appended, less what was acknowledged, in order, within the quota."""

    MAX_ROWS = 6

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        self.boot = 0
        self.model: list[tuple[str, int]] = []
        self.sequence = 0
        self.num_dropped = 0
        self.spool: ReportSpool | None = None
        self.open()

    def open(self) -> None:
        self.boot += 1
        self.sequence = 0
        self.spool = ReportSpool(
            Path(self.directory.name) / "reports.db", boot_id=f"boot-{self.boot}", max_rows=self.MAX_ROWS
        )

    @rule()
    def append(self) -> None:
        assert self.spool is not None
        self.sequence += 1
        assert self.spool.append(report()) == self.sequence
        self.model.append((f"boot-{self.boot}", self.sequence))
        if len(self.model) > self.MAX_ROWS:
            del self.model[0]
            self.num_dropped += 1

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        assert self.spool is not None
        some = st.sampled_from([*self.model, ("boot-x", 1)])
        chosen = data.draw(st.lists(some, unique=True, max_size=4))
        self.spool.acknowledge(chosen)
        self.model = [key for key in self.model if key not in chosen]

    @rule()
    def restart(self) -> None:
        assert self.spool is not None
        self.spool.close()
        self.open()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert self.spool is not None
        assert keys(self.spool.batch(100)) == self.model
        assert self.spool.num_pending == len(self.model)
        assert self.spool.num_dropped == self.num_dropped

    def teardown(self) -> None:
        assert self.spool is not None
        self.spool.close()
        self.directory.cleanup()


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)


@settings(max_examples=10, deadline=None)
@given(st.binary(max_size=200))
def test_any_start_of_the_file_is_survived(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("spool") / "reports.db"
    path.write_bytes(content)
    assert opened(path, boot_id="boot-a").append(report()) == 1
