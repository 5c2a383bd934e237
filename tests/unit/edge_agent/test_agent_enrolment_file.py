"""What enrolment told is kept twice, and one damaged file changes nothing that a user could notice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_agent import identity
from edge_agent.config import ENROLMENT_COPY, ENROLMENT_FILE, AgentConfig, load_config
from edge_agent.identity import mend_enrolment, save_enrolment
from edgeloop.errors import ConfigError
from edgeloop.trust import DirectorKey

KEY = DirectorKey.generate().public_bytes.hex()
TOLD = {
    "device_id": "gw-1",
    "enrol_server": "cloud:1",
    "server": "cloud:2",
    "broker": "cloud:3",
    "director_key": KEY,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_enrolment(tmp_path, b"ca", TOLD)
    return tmp_path


def config(folder: Path) -> AgentConfig:
    return load_config(environment={}, flags={"state_dir": str(folder)})


@pytest.mark.parametrize("damage", [b"", b"\x00 half", b'{"device_id": "gw-1"}', b"[]"])
def test_a_damaged_file_is_read_from_its_copy_and_written_again(folder: Path, damage: bytes) -> None:
    wanted = config(folder)
    (folder / ENROLMENT_FILE).write_bytes(damage)
    assert config(folder) == wanted
    mend_enrolment(folder)
    assert json.loads((folder / ENROLMENT_FILE).read_bytes())["server"] == "cloud:2"
    (folder / ENROLMENT_COPY).unlink()
    assert config(folder) == wanted


@pytest.mark.parametrize("damage", [b"\x00", None])
def test_a_copy_that_is_damaged_or_was_never_made_is_made(folder: Path, damage: bytes | None) -> None:
    if damage is None:
        (folder / ENROLMENT_COPY).unlink()
    else:
        (folder / ENROLMENT_COPY).write_bytes(damage)
    mend_enrolment(folder)
    assert (folder / ENROLMENT_COPY).read_bytes() == (folder / ENROLMENT_FILE).read_bytes()


def test_the_newer_enrolment_counts_where_the_copy_is_of_an_older_one(folder: Path) -> None:
    new = json.dumps({**TOLD, "server": "elsewhere:9"})
    (folder / ENROLMENT_FILE).write_text(new)
    mend_enrolment(folder)
    assert str(config(folder).server) == "elsewhere:9"
    assert (folder / ENROLMENT_COPY).read_text() == new


def test_with_both_damaged_it_says_what_to_do(folder: Path) -> None:
    for name in (ENROLMENT_FILE, ENROLMENT_COPY):
        (folder / name).write_bytes(b"\x00")
    mend_enrolment(folder)
    with pytest.raises(ConfigError, match="enrol again"):
        config(folder)


def test_a_folder_that_is_enrolled_no_more_is_not_enrolled_by_its_copy(folder: Path) -> None:
    (folder / ENROLMENT_FILE).unlink()
    mend_enrolment(folder)
    assert not (folder / ENROLMENT_FILE).exists()
    assert identity.load_identity(folder) is None


def test_a_disk_that_takes_no_writes_ends_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise ConfigError("read-only", code="state-dir")

    (folder / ENROLMENT_FILE).write_bytes(b"\x00")
    monkeypatch.setattr(identity, "write_private", refuse)
    mend_enrolment(folder)
    assert config(folder).device_id == "gw-1"
