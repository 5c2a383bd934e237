"""``edgeloop keys tuf-...`` as a person runs them: keys in other places, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloud.cli.app import app
from cloud.tuf_files import TufFiles
from edgeloop.trust import DirectorKey


class Place:
    """A state folder, and the root's keys elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.state, self.keys = folder / "state", folder / "keys"
        self.state.mkdir()
        self.files = TufFiles(self.state)

    def run(self, *words: object, fails: bool = False) -> str:
        result = CliRunner().invoke(app, ["keys", *map(str, words)])
        assert (result.exit_code != 0) is fails, result.output
        # Either our own error, or the line on standard error that comes of it; never a stack trace.
        error = result.exception
        assert error is None or isinstance(error, SystemExit) or hasattr(error, "code"), repr(error)
        return result.output + (str(error) if error is not None else "")

    def init(self, *words: object, fails: bool = False) -> str:
        where = ("--state-dir", self.state, "--root-keys", self.keys)
        return self.run("tuf-init", *where, *words, fails=fails)

    def rotate(self, role: str, *words: object, fails: bool = False) -> str:
        return self.run("rotate-tuf", role, "--state-dir", self.state, *words, fails=fails)

    def apply(self, *words: object, fails: bool = False) -> str:
        return self.run("apply-root", *words, "--state-dir", self.state, fails=fails)

    def key(self, number: int) -> Path:
        return self.keys / f"root-{number}.pem"

    @property
    def root(self) -> dict[str, Any]:
        signed: dict[str, Any] = json.loads(self.files.root_bytes())["signed"]
        return signed

    def contents(self) -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in self.state.rglob("*") if p.is_file() and p.suffix != ".lock"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.init()
    return place


def test_the_ceremony_puts_the_root_keys_where_it_was_told_and_says_to_take_them_away(tmp_path: Path) -> None:
    place = Place(tmp_path)
    said = place.init("--root-count", 4, "--threshold", 3)
    assert "3 of 4 sign a root" in said
    assert "Take them off this machine" in said.replace("\n", " ")
    assert sorted(path.name for path in place.keys.glob("*.pem")) == [f"root-{n}.pem" for n in (1, 2, 3, 4)]
    assert not list(place.files.root_keys.glob("*.pem"))
    assert (place.root["version"], place.root["roles"]["root"]["threshold"]) == (1, 3)


def test_a_second_ceremony_changes_nothing(place: Place) -> None:
    before = place.contents()
    assert "nothing was changed" in place.init(fails=True)
    assert place.contents() == before


@pytest.mark.parametrize(("count", "threshold"), [(2, 3), (3, 0), (0, 0), (1000, 1)])
def test_a_threshold_that_nobody_can_reach_is_refused_before_a_key_is_made(
    tmp_path: Path, count: int, threshold: int
) -> None:
    place = Place(tmp_path)
    said = place.init("--root-count", count, "--threshold", threshold, fails=True)
    assert "--threshold" in said
    assert not list(place.keys.glob("*.pem"))
    assert not place.files.root_version()


def test_status_shows_each_role_and_warns_of_root_keys_on_this_machine(place: Place) -> None:
    said = place.run("tuf-status", "--state-dir", place.state)
    assert "version 1" in said
    assert "2 of 3 sign" in said
    for role in ("root", "targets", "snapshot", "timestamp"):
        assert f"key of {role}" in said
    assert "take them off" not in said
    shutil.copytree(place.keys, place.files.root_keys, dirs_exist_ok=True)
    assert "take them off" in place.run("tuf-status", "--state-dir", place.state).replace("\n", " ")


def test_the_printed_root_is_the_root_byte_for_byte(place: Place) -> None:
    result = CliRunner().invoke(app, ["keys", "tuf-root", "--state-dir", str(place.state)])
    assert result.stdout_bytes == place.files.root_bytes()


def test_online_keys_change_once_two_root_keys_have_signed_each_where_it_is(place: Place) -> None:
    old = place.root
    said = place.rotate("online")
    assert "0 of 2 signatures by the old root" in said.replace("\n", " ")
    assert place.root["version"] == 1
    # The draft goes to one key holder, and then to another.
    elsewhere = place.keys / "next.root.json"
    shutil.copy(place.files.draft, elsewhere)
    place.run("sign-root", elsewhere, "--root-key", place.key(1))
    assert "1 of 2" in place.apply(elsewhere)
    assert place.root["version"] == 1
    place.run("sign-root", elsewhere, "--root-key", place.key(3))
    assert "root version 2 counts" in place.apply(elsewhere)
    for role in ("targets", "snapshot", "timestamp"):
        assert not set(place.root["roles"][role]["keyids"]) & set(old["roles"][role]["keyids"])
    assert not place.files.draft.exists()


def test_one_command_is_enough_where_the_keys_are_at_hand(place: Place) -> None:
    said = place.rotate("timestamp", "--root-key", place.key(1), "--root-key", place.key(2))
    assert "root version 2 counts" in said
    assert place.root["version"] == 2


def test_the_same_key_twice_is_one_signature(place: Place) -> None:
    said = place.rotate("online", "--root-key", place.key(1), "--root-key", place.key(1))
    assert "1 of 2" in said
    assert place.root["version"] == 1


def test_a_strangers_signature_counts_for_nothing(place: Place) -> None:
    stranger = place.keys / "stranger.pem"
    DirectorKey.generate().save(stranger)
    said = place.rotate("online", "--root-key", stranger, "--root-key", place.key(1))
    assert "1 of 2" in said
    assert "1 of 2" in place.apply()
    assert place.root["version"] == 1


def test_a_lost_root_key_is_retired_and_another_takes_its_place(place: Place) -> None:
    lost = place.root["roles"]["root"]["keyids"][2]
    added = place.keys / "root-4.pem"
    place.rotate(
        *("root", "--retire", lost[:12], "--add", added),
        *("--root-key", place.key(1), "--root-key", place.key(2)),
    )
    ids = place.root["roles"]["root"]["keyids"]
    assert (place.root["version"], len(ids), lost in ids) == (2, 3, False)
    assert added.exists()
    # The new one signs the next with one of the old.
    place.rotate("online", "--root-key", added, "--root-key", place.key(1))
    assert place.root["version"] == 3


def test_a_retired_key_signs_no_more(place: Place) -> None:
    lost = place.root["roles"]["root"]["keyids"][2]
    place.rotate("root", "--retire", lost, "--root-key", place.key(1), "--root-key", place.key(2))
    place.rotate("online", "--root-key", place.key(3), "--root-key", place.key(1))
    assert place.root["version"] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nobody",), "is no role for this"),
        (("online", "--threshold", 1), "go with root alone"),
        (("root", "--retire", "feed"), "names 0 root keys"),
        (("root", "--retire", ""), "names 0 root keys"),
        (("root", "--threshold", 9), "nobody could sign it"),
        (("online", "--root-key", "missing.pem"), "missing.pem"),
    ],
)
def test_a_rotation_that_is_wrong_says_why_and_counts_for_nothing(
    place: Place, words: tuple[object, ...], said: str
) -> None:
    before = place.files.root_bytes()
    assert said in place.rotate(str(words[0]), *words[1:], fails=True).replace("\n", " ")
    assert place.files.root_bytes() == before


@pytest.mark.parametrize(
    "damage", [b"", b"\x00\xff", b"{}", b'{"signed": {"_type": "targets"}}', b"x" * 2**20]
)
def test_a_damaged_draft_is_refused_by_name_and_left_alone(place: Place, damage: bytes) -> None:
    place.rotate("online")
    place.files.draft.write_bytes(damage)
    for said in (
        place.run("sign-root", place.files.draft, "--root-key", place.key(1), fails=True),
        place.apply(fails=True),
    ):
        assert "next.root.json" in said.replace("\n", "")
    assert place.files.draft.read_bytes() == damage
    assert place.root["version"] == 1


def test_a_damaged_key_signs_nothing(place: Place) -> None:
    place.rotate("online")
    before = place.files.draft.read_bytes()
    place.key(1).write_bytes(b"not a key")
    said = place.run("sign-root", place.files.draft, "--root-key", place.key(1), fails=True)
    assert "root-1.pem" in said.replace("\n", "")
    assert place.files.draft.read_bytes() == before


def test_a_key_that_others_can_read_signs_nothing(place: Place) -> None:
    place.rotate("online")
    place.key(1).chmod(0o644)
    assert "chmod 600" in place.run("sign-root", place.files.draft, "--root-key", place.key(1), fails=True)


def test_a_draft_of_an_older_root_is_no_draft_any_more(place: Place) -> None:
    place.rotate("online")
    old = place.keys / "old.root.json"
    shutil.copy(place.files.draft, old)
    keys = ("--root-key", place.key(1), "--root-key", place.key(2))
    place.rotate("online", *keys)
    place.run("sign-root", old, *keys)
    assert "begin a new one" in place.apply(old, fails=True).replace("\n", " ")
    assert place.root["version"] == 2


def test_without_a_draft_or_a_key_it_says_how_to_begin(place: Place) -> None:
    assert "rotate-tuf" in place.apply(fails=True)
    assert "--root-key is missing" in place.run("sign-root", place.files.draft, fails=True)


@pytest.mark.parametrize("command", ["tuf-status", "tuf-root"])
def test_a_folder_without_a_root_is_refused(tmp_path: Path, command: str) -> None:
    (tmp_path / "state").mkdir()
    result = CliRunner().invoke(app, ["keys", command, "--state-dir", str(tmp_path / "state")])
    assert result.exit_code != 0
    assert hasattr(result.exception, "code")
