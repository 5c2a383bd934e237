"""The state on the disk: what comes back after any kind of damage."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent import journal
from edge_agent.journal import COPY_FILE, MAX_ASIDE, STATE_FILE, Journal, StateLock, decode, encode
from edge_agent.update_state import FORMAT_VERSION, Slot, State, StatusNote, UpdateState
from edgeloop.errors import ConfigError

DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
SLOTS = st.builds(
    Slot,
    generation=st.integers(1, 2**63 - 1),
    digest=DIGESTS,
    manifest_digest=DIGESTS,
    workload=st.text(max_size=20),
    profile=st.text(max_size=20),
    signed=st.binary(max_size=60),
)
NOTES = st.builds(
    StatusNote,
    generation=st.integers(1, 100),
    digest=DIGESTS,
    state=st.sampled_from(State),
    code=st.text(max_size=10),
    message=st.text(max_size=40),
    event_s=st.floats(0, 4e9),
)
STATES = st.builds(
    UpdateState,
    state=st.sampled_from([state for state in State if state not in (State.IDLE, State.SUPERSEDED)]),
    target=SLOTS,
    committed=st.none() | SLOTS,
    previous=st.none() | SLOTS,
    num_starts=st.integers(-1, 5),
    num_refetches=st.integers(0, 5),
    code=st.text(max_size=10),
    message=st.text(max_size=40),
    quarantine=st.lists(DIGESTS, max_size=3).map(tuple),
    outbox=st.lists(NOTES, max_size=3).map(tuple),
)


def a_state(generation: int = 1) -> UpdateState:
    slot = Slot(
        generation=generation,
        digest="a" * 64,
        manifest_digest="b" * 64,
        workload="tiny",
        profile="small",
        signed=b"\x00\xff",
    )
    return UpdateState(state=State.ACTIVE, target=slot, committed=slot)


@given(STATES)
def test_what_is_written_reads_back(state: UpdateState) -> None:
    assert decode(encode(state)) == state


@given(STATES, st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_changed_byte_is_never_read_as_another_state(state: UpdateState, data: st.DataObject) -> None:
    raw = bytearray(encode(state))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ValueError, ConfigError):
        assert decode(bytes(raw)) == state  # a changed blank, for one


@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.integers(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_anything_else_is_refused_as_unreadable(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the message is the JSON parser's or ours
        decode(raw)


def test_the_state_survives_and_the_second_save_replaces_the_first(tmp_path: Path) -> None:
    Journal(tmp_path).save(a_state(1))
    Journal(tmp_path).save(a_state(2))
    assert Journal(tmp_path).load() == a_state(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [COPY_FILE, STATE_FILE]


def test_a_damaged_file_is_moved_aside_and_its_copy_used(tmp_path: Path, caplog) -> None:
    Journal(tmp_path).save(a_state(3))
    (tmp_path / STATE_FILE).write_bytes(b"\x00" * 100)
    assert Journal(tmp_path).load() == a_state(3)
    assert (tmp_path / f"{STATE_FILE}.unreadable-1").read_bytes() == b"\x00" * 100
    assert "moved aside" in caplog.text


def test_with_both_files_damaged_the_device_starts_over_and_loses_no_evidence(tmp_path: Path) -> None:
    for number in (1, 2):
        for name in (STATE_FILE, COPY_FILE):
            (tmp_path / name).write_bytes(b"{}")
        assert Journal(tmp_path).load() == UpdateState()
        assert (tmp_path / f"{STATE_FILE}.unreadable-{number}").exists()


def test_reading_without_moving_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(b"{}")
    assert Journal(tmp_path).load(move_aside=False) == UpdateState()
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    assert len(Journal(tmp_path).problems()) == 1


def test_the_state_of_a_newer_agent_is_left_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("edge_agent.update_state.FORMAT_VERSION", FORMAT_VERSION + 1)
    Journal(tmp_path).save(a_state())
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="newer agent"):
        Journal(tmp_path).load()
    assert (tmp_path / STATE_FILE).exists()


@pytest.mark.parametrize("num_before", range(8))
def test_a_failure_at_any_write_leaves_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch, num_before: int
) -> None:
    """Every fsync and rename of a save fails once, as on a disk that fills up."""
    Journal(tmp_path).save(a_state(1))
    calls = [num_before]

    def failing(real):  # type: ignore[no-untyped-def]
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            calls[0] -= 1
            if calls[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(journal.os, name, failing(getattr(os, name)))
    try:
        Journal(tmp_path).save(a_state(2))
        saved = True
    except OSError:
        saved = False
    monkeypatch.undo()
    found = Journal(tmp_path).load()
    assert found in ([a_state(2)] if saved else [a_state(1), a_state(2)])
    assert not list(tmp_path.glob("*unreadable*"))


def test_a_second_agent_is_told_who_holds_the_folder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, edge_agent.journal as j\n"
        f"with j.StateLock(pathlib.Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match=f"process {process.pid}") as caught, StateLock(tmp_path):
        pass
    assert caught.value.code == "state-locked"
    process.kill()
    process.wait()
    with StateLock(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="state_dir"), StateLock(tmp_path / "file" / "state"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_no_writes_can_be_locked_all_the_same(
    tmp_path: Path, monkeypatch, number: int
) -> None:
    with StateLock(tmp_path):
        pass
    real = os.open

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(number, os.strerror(number))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with StateLock(tmp_path):
        with pytest.raises(ConfigError) as caught, StateLock(tmp_path):
            pass
        assert caught.value.code == "state-locked"


def test_a_lock_file_that_cannot_be_written_keeps_nobody_from_starting(tmp_path: Path, monkeypatch) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with StateLock(tmp_path), pytest.raises(ConfigError, match="in use"), StateLock(tmp_path):
        pass


def test_a_damaged_file_that_cannot_be_moved_leaves_its_copy_to_go_on_with(
    tmp_path: Path, monkeypatch
) -> None:
    Journal(tmp_path).save(a_state(3))
    (tmp_path / STATE_FILE).write_text("{")

    def full(old: Path, new: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert Journal(tmp_path).load() == a_state(3)


@pytest.mark.parametrize("bad", [{STATE_FILE}, {STATE_FILE, COPY_FILE}], ids=["one", "both"])
def test_a_sector_that_does_not_read_leaves_the_copy_and_without_one_a_person(
    tmp_path: Path, monkeypatch, bad: set[str]
) -> None:
    Journal(tmp_path).save(a_state(3))
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.name in bad:
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    if len(bad) == 1:
        assert Journal(tmp_path).load() == a_state(3)
    else:
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            Journal(tmp_path).load()
        assert caught.value.code == "state-dir"


def test_a_write_that_fails_leaves_no_half_file_behind(tmp_path: Path, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Journal(tmp_path).save(a_state(1))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_damages_every_file_does_not_fill_with_them(tmp_path: Path) -> None:
    for number in range(3 * MAX_ASIDE):
        (tmp_path / STATE_FILE).write_bytes(b"%d" % number)
        Journal(tmp_path).load()
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("*unreadable*")}
    assert len(kept) == MAX_ASIDE
    assert kept[f"{STATE_FILE}.unreadable-1"] == b"0"
    assert kept[f"{STATE_FILE}.unreadable-{MAX_ASIDE}"] == b"%d" % (3 * MAX_ASIDE - 1)
