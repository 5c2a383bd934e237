"""A folder of samples: each file is answered once, then moved to ``done`` or ``failed``.

Rules that this module keeps:

- An answer is on the disk, whole and flushed, before its file moves. It names the content and the time of its
  file, so that after a crash between the two the file is moved and not answered again.
- A file is read once its size and time have stood still for ``settle_s``. Hidden files, ``*.tmp``, ``*.part``
  and links are never read: whoever writes under such a name and renames may set ``settle_s = 0``.
- What can never be answered goes to ``failed`` with a text ``.error`` beside it. What may go better later (no
  model yet, a full disk) stays where it is and is tried again, and is said once.
- Nothing is overwritten: where a name is taken, digits of the content's digest make another.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.journal import fsync_folder, write_atomically
from edge_agent.sensors.asker import Asker
from edge_agent.sensors.counts import ANSWERED, FAILED, SourceCounts
from edge_agent.source_settings import FolderSettings
from edgeloop.errors import EdgeloopError, RejectedError, TransientError

logger = logging.getLogger(__name__)

UNFINISHED: Final = (".tmp", ".part", ".partial", ".new", "~")
_STUCK_RETRY_S: Final = 30.0
_JOIN_S: Final = 5.0
_MAX_ANSWER_BYTES: Final = 64 << 20

#: What shows that a file changed: number on the disk, size, time.
_Version = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Input:
    """A file that was read."""

    path: Path
    data: bytes
    time_ns: int
    sha256: str

    @property
    def identity(self) -> dict[str, object]:
        return {"input_sha256": self.sha256, "input_time_ns": self.time_ns}

    @property
    def digits(self) -> str:
        return hashlib.sha256(f"{self.sha256} {self.time_ns}".encode()).hexdigest()[:12]


class FolderSource:
    """``start`` once, ``close`` once; ``scan`` is what its thread does at each look."""

    def __init__(
        self,
        settings: FolderSettings,
        asker: Asker,
        counts: SourceCounts,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._asker = asker
        self._counts = counts
        self._clock = clock
        self._stop = threading.Event()
        self._seen: dict[str, tuple[_Version, float]] = {}
        self._retry_at_s: dict[str, float] = {}
        self._said = ""
        self._thread = threading.Thread(target=self._watch, name=f"source-{settings.name}", daemon=True)

    def start(self) -> None:
        logger.info("source %s: %s in %s", self._settings.name, self._settings.pattern, self._settings.path)
        self._thread.start()

    def stop(self) -> None:
        """Asks its thread to end, and returns at once."""
        self._stop.set()

    def close(self) -> None:
        """After the file under way; what waits is there at the next start."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)

    def _watch(self) -> None:
        while True:
            try:
                self.scan()
            except Exception:
                # One file must not end the thread that reads all the others.
                logger.exception("source %s: failed in an unforeseen way; going on", self._settings.name)
            if self._stop.wait(self._settings.poll_s):
                return

    def scan(self) -> None:
        """One look: answers every file that is whole, the oldest first."""
        try:
            found = self._found()
        except OSError as error:
            self._say_once(f"{self._settings.path} cannot be read ({error.strerror}); make the folder")
            return
        now_s = self._clock()
        before, self._seen = self._seen, {}
        for name, version in found:
            known = before.get(name)
            since_s = known[1] if known is not None and known[0] == version else now_s
            self._seen[name] = (version, since_s)
        self._retry_at_s = {name: at_s for name, at_s in self._retry_at_s.items() if name in self._seen}
        for name, version in found:
            if self._stop.is_set():
                return
            if now_s - self._seen[name][1] < self._settings.settle_s:
                continue
            if now_s < self._retry_at_s.get(name, now_s):
                continue
            try:
                self._handle(name, version)
            except TransientError as error:
                self._say_once(f"files wait code={error.code}: {error.message}")
                return
            except OSError as error:
                self._retry_at_s[name] = now_s + _STUCK_RETRY_S
                self._say_once(f"{name} waits: {error}")

    def _found(self) -> list[tuple[str, _Version]]:
        found: list[tuple[int, str, _Version]] = []
        with os.scandir(self._settings.path) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or name.endswith(UNFINISHED):
                    continue
                if not fnmatch.fnmatchcase(name, self._settings.pattern):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(facts.st_mode):
                        found.append((facts.st_mtime_ns, name, _version(facts)))
        return [(name, version) for _, name, version in sorted(found)]

    def _handle(self, name: str, version: _Version) -> None:
        settings = self._settings
        path = settings.path / name
        try:
            taken = self._read(path, version)
        except RejectedError as error:
            self._fail(path, version, error)
            return
        if taken is None:  # it went, or goes on being written
            return
        if not self._is_answered(taken):
            reply = self._asker.ask(
                taken.data,
                sample_format=settings.format,
                source=name,
                more=taken.identity,
            )
            if isinstance(reply.error, RejectedError):
                self._fail(path, version, reply.error, digits=taken.digits)
                return
            if reply.error is not None:
                raise reply.error
            settings.output.mkdir(parents=True, exist_ok=True)
            write_atomically(_free(*self._answer_paths(taken)), reply.data)
        _move(path, _free(settings.done / name, _with_digits(settings.done / name, taken.digits)))
        self._counts.add(settings.name, ANSWERED)
        self._said = ""

    def _read(self, path: Path, version: _Version) -> _Input | None:
        try:
            # No link, and no waiting should a pipe have taken its place.
            number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except PermissionError:
            raise RejectedError("the agent may not read this file", code="file-unreadable") from None
        with open(number, "rb") as file:
            if _version(os.fstat(number)) != version:
                return None
            data = file.read(self._asker.max_bytes + 1)
            if _version(os.fstat(number)) != version:
                return None
        return _Input(path=path, data=data, time_ns=version[2], sha256=hashlib.sha256(data).hexdigest())

    def _answer_paths(self, taken: _Input) -> tuple[Path, Path]:
        plain = self._settings.output / f"{taken.path.name}.json"
        return plain, _with_digits(plain, taken.digits)

    def _is_answered(self, taken: _Input) -> bool:
        for path in self._answer_paths(taken):
            try:
                if path.stat().st_size > _MAX_ANSWER_BYTES:
                    continue
                said = json.loads(path.read_bytes())
            except (FileNotFoundError, ValueError, RecursionError):
                continue
            if isinstance(said, dict) and taken.identity.items() <= said.items():
                return True
        return False

    def _fail(self, path: Path, version: _Version, error: EdgeloopError, *, digits: str = "") -> None:
        """The text first: a crash between the two writes it again."""
        failed = self._settings.failed
        failed.mkdir(exist_ok=True)
        digits = digits or f"{version[0]:x}-{version[2]:x}"
        target = _free(failed / path.name, _with_digits(failed / path.name, digits))
        text = f"{error.code}: {error.message}\n"
        write_atomically(target.with_name(f"{target.name}.error"), text.encode("utf-8", "replace"))
        _move(path, target)
        is_first = self._counts.add(self._settings.name, FAILED) == 1
        logger.log(
            logging.WARNING if is_first else logging.DEBUG,
            "source %s: %s failed code=%s: %s",
            self._settings.name,
            path.name,
            error.code,
            error.message,
        )

    def _say_once(self, what: str) -> None:
        """Again only after something else was said, or a file was answered."""
        level = logging.DEBUG if what == self._said else logging.WARNING
        self._said = what
        logger.log(level, "source %s: %s", self._settings.name, what)


def _version(facts: os.stat_result) -> _Version:
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _with_digits(path: Path, digits: str) -> Path:
    return path.with_name(f"{path.stem}.{digits}{path.suffix}")


def _free(path: Path, other: Path) -> Path:
    """The first where its name is free. The other is for this very content and time alone."""
    return other if os.path.lexists(path) else path


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    os.replace(path, target)
    fsync_folder(target.parent)
    fsync_folder(path.parent)
