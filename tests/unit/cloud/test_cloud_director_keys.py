"""Changing the director's key on the control plane's disk, wherever the command is killed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloud.cli.app import app
from cloud.director_keys import CHAIN_FILE, KEY_FILE, OLD_KEY_FILE, DirectorKeys, retire, rotate
from edgeloop.director_keys import TrustedKeys
from edgeloop.errors import ConfigError
from edgeloop.trust import DirectorKey


@pytest.fixture
def first(tmp_path: Path) -> DirectorKey:
    return DirectorKey.load_or_generate(tmp_path / KEY_FILE)


def followed(folder: Path, configured: DirectorKey) -> set[str]:
    return set(
        TrustedKeys.configured(configured.public_bytes).follow((folder / CHAIN_FILE).read_bytes()).ring
    )


def test_rotating_and_retiring_leads_devices_to_the_new_key(tmp_path: Path, first: DirectorKey) -> None:
    heard: list[bytes] = []
    running = DirectorKeys(tmp_path, on_chain=heard.append)
    assert (running.current().key_id, heard) == (first.key_id, [])

    rotate(tmp_path, now_s=1.0)
    second = running.current()
    assert second.key_id != first.key_id
    assert heard == [(tmp_path / CHAIN_FILE).read_bytes()]
    assert followed(tmp_path, first) == {first.key_id, second.key_id}

    retire(tmp_path, now_s=2.0)
    assert running.current().key_id == second.key_id
    assert len(heard) == 2
    assert followed(tmp_path, first) == {second.key_id}
    assert not (tmp_path / OLD_KEY_FILE).exists()
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o077 == 0
    # A control plane that starts now says the same.
    again: list[bytes] = []
    assert DirectorKeys(tmp_path, on_chain=again.append).current().key_id == second.key_id
    assert again == heard[1:]


class KilledError(Exception):
    """The command ended here."""


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("step", [rotate, retire])
def test_a_command_that_was_killed_at_any_step_is_finished_by_running_it_again(
    tmp_path: Path, first: DirectorKey, monkeypatch: pytest.MonkeyPatch, step, number: int
) -> None:
    if step is retire:
        rotate(tmp_path, now_s=1.0)
    left = number

    def dying(call):
        def wrapped(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError
            return call(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patched:
        for name in ("replace", "link", "fsync", "unlink"):
            patched.setattr(os, name, dying(getattr(os, name)))
        try:
            step(tmp_path, now_s=2.0)
            killed = False
        except KilledError:
            killed = True
    # Whatever was reached, the key that signs is one that devices come to obey.
    signs = DirectorKeys(tmp_path).current().key_id
    assert signs == first.key_id or signs in followed(tmp_path, first)
    if killed:
        # Refused only where all but the last flush had been done.
        with contextlib.suppress(ConfigError):
            step(tmp_path, now_s=3.0)
    wanted = {first.key_id, DirectorKeys(tmp_path).current().key_id} - (
        {first.key_id} if step is retire else set()
    )
    assert len(wanted) == (2 if step is rotate else 1)
    assert followed(tmp_path, first) == wanted


def test_steps_out_of_order_are_refused(tmp_path: Path) -> None:
    for command in (rotate, retire):
        with pytest.raises(ConfigError) as caught:
            command(tmp_path, now_s=1.0)
        assert caught.value.code == "key-missing"
    DirectorKey.generate().save(tmp_path / KEY_FILE)
    with pytest.raises(ConfigError) as caught:
        retire(tmp_path, now_s=1.0)
    assert caught.value.code == "keys-no-overlap"
    rotate(tmp_path, now_s=1.0)
    with pytest.raises(ConfigError) as caught:
        rotate(tmp_path, now_s=1.0)
    assert caught.value.code == "keys-overlap"


def test_the_commands_say_what_is_obeyed_now_and_print_no_private_key(
    tmp_path: Path, first: DirectorKey
) -> None:
    run = CliRunner().invoke(app, ["keys", "rotate-director", "--state-dir", str(tmp_path)])
    assert run.exit_code == 0
    second = DirectorKey.load(tmp_path / KEY_FILE)
    assert run.stdout.count(first.public_bytes.hex()) == 1
    assert run.stdout.count(second.public_bytes.hex()) == 2
    run = CliRunner().invoke(app, ["keys", "retire-director", "--state-dir", str(tmp_path)])
    assert (run.exit_code, first.public_bytes.hex() in run.stdout) == (0, False)
