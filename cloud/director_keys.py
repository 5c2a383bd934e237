"""The director's keys on the control plane's disk, and the steps of changing them.

Rules that this module keeps:

* ``director.key`` signs. ``director.key.new`` exists only between the steps of a change, and
  ``director.key.old`` during the overlap, in which devices obey both.
* A change is written before the key that it brings is used, and every step may be repeated: a command that
  was killed is finished by running it again.
* A running control plane notices a change by itself; one lock keeps two commands apart.
* Key files are readable by their owner alone, and are never overwritten, only renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeloop.director_keys import add_change, newest_keys
from edgeloop.errors import ConfigError
from edgeloop.trust import DirectorKey

KEY_FILE, NEW_KEY_FILE, OLD_KEY_FILE = "director.key", "director.key.new", "director.key.old"
CHAIN_FILE = "director-keys.bin"
LOCK_FILE = "director.lock"


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyChange:
    """What a command did: who signs now, and every key that devices obey."""

    signing_key: str
    trusted_keys: tuple[str, ...]


class DirectorKeys:
    """What a control plane signs with now. ``current`` is for one thread, and cheap enough for every step."""

    def __init__(self, state_dir: Path, *, on_chain: Callable[[bytes], None] = lambda chain: None) -> None:
        self._state_dir = state_dir
        self._on_chain = on_chain
        #: What signed last; any thread may read it.
        self.key = DirectorKey.load_or_generate(state_dir / KEY_FILE)
        self._chain = b""
        self._seen = self._stamps()
        self._publish_chain()

    def current(self) -> DirectorKey:
        """The signing key; a change of keys is noticed and handed on before it is used."""
        seen = self._stamps()
        if seen != self._seen:
            with _locked(self._state_dir):
                seen, key = self._stamps(), DirectorKey.load(self._state_dir / KEY_FILE)
                self._publish_chain()
            self.key, self._seen = key, seen
        return self.key

    def _publish_chain(self) -> None:
        chain = _read_chain(self._state_dir)
        if chain != self._chain:
            self._chain = chain
            self._on_chain(chain)

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        found = []
        for name in (KEY_FILE, CHAIN_FILE):
            with contextlib.suppress(FileNotFoundError):
                at = (self._state_dir / name).stat()
                found.append((at.st_ino, at.st_mtime_ns))
        return tuple(found)


def rotate(state_dir: Path, *, now_s: float) -> KeyChange:
    """Make a new key, let the present one vouch for it, and sign with the new one from now on.

    Raises ``ConfigError``: "key-missing" where no control plane ever ran, "keys-overlap" while the last
    rotation has not been ended with ``retire``.
    """
    with _locked(state_dir):
        present = DirectorKey.load(state_dir / KEY_FILE)
        if (state_dir / OLD_KEY_FILE).exists() and not (state_dir / NEW_KEY_FILE).exists():
            raise ConfigError(
                "devices obey two director keys already: end that rotation with "
                "'edgeloop keys retire-director' before the next",
                code="keys-overlap",
            )
        new = DirectorKey.load_or_generate(state_dir / NEW_KEY_FILE)
        chain = _read_chain(state_dir)
        wanted = (present.public_bytes, new.public_bytes)
        if newest_keys(chain) != wanted:
            _write_chain(state_dir, add_change(chain, present, wanted, now_s=now_s))
        with contextlib.suppress(FileExistsError):
            os.link(state_dir / KEY_FILE, state_dir / OLD_KEY_FILE)
        os.replace(state_dir / NEW_KEY_FILE, state_dir / KEY_FILE)
        _sync(state_dir)
    return KeyChange(
        signing_key=new.public_bytes.hex(), trusted_keys=tuple(key.hex() for key in reversed(wanted))
    )


def retire(state_dir: Path, *, now_s: float) -> KeyChange:
    """End the overlap: devices obey the present key alone, and the old one is deleted.

    Raises ``ConfigError``: "key-missing", or "keys-no-overlap" when there is no other key to retire.
    """
    with _locked(state_dir):
        present = DirectorKey.load(state_dir / KEY_FILE)
        old = state_dir / OLD_KEY_FILE
        if not old.exists() or (state_dir / NEW_KEY_FILE).exists():
            raise ConfigError(
                "devices obey one director key alone: begin with 'edgeloop keys rotate-director'",
                code="keys-no-overlap",
            )
        chain = _read_chain(state_dir)
        wanted = (present.public_bytes,)
        if newest_keys(chain) != wanted:
            _write_chain(state_dir, add_change(chain, present, wanted, now_s=now_s))
        old.unlink()
        _sync(state_dir)
    return KeyChange(signing_key=present.public_bytes.hex(), trusted_keys=(present.public_bytes.hex(),))


@contextlib.contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    if not (state_dir / KEY_FILE).exists():
        raise ConfigError(
            f"there is no director key in {state_dir}: give the --state-dir of a control plane",
            code="key-missing",
        )
    with (state_dir / LOCK_FILE).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_chain(state_dir: Path) -> bytes:
    try:
        return (state_dir / CHAIN_FILE).read_bytes()
    except FileNotFoundError:
        return b""


def _write_chain(state_dir: Path, chain: bytes) -> None:
    temporary = state_dir / f".{CHAIN_FILE}.new"
    with temporary.open("wb") as file:
        file.write(chain)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(state_dir / CHAIN_FILE)
    _sync(state_dir)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
