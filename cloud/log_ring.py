"""The newest records of this control plane's log, for people who are elsewhere: ``edgeloop logs``.

Rules that this module keeps:

* Bounded: so many records, each of so many characters; in memory, and in a file that brings them back after a
  restart.
* A record is found by what it is about: the words of its arguments, not of its sentence, so that a profile
  called "task" is not in every line.
* No secrets: what looks like a token or a password in an address is blotted out before it is kept.
* Logging never fails what it tells of.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import re
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_RECORDS = 5000
MAX_TEXT_CHARS = 4000
_MAX_NAMES = 64
_FILE_BYTES = 4 << 20

_WORD = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@:-]{0,198}[A-Za-z0-9])?")
_SECRETS = (
    (re.compile(r"\bel[oe]_[A-Za-z0-9_-]{8,}"), "(token)"),
    (re.compile(r"(?i)\bbearer +[^\s'\"]+"), "Bearer (token)"),
    (re.compile(r"(?i)(://[^\s/:@]*):[^\s@/]+@"), r"\1:(password)@"),
    (re.compile(r"(?i)\b(password|passwd|secret|token)=[^\s&'\"]+"), r"\1=(secret)"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedRecord:
    """``time_s`` is seconds since the epoch, ``level`` as ``logging`` counts, ``names`` what it is about."""

    time_s: float
    level: int
    logger: str
    text: str
    names: frozenset[str] = frozenset()


class LogRing(logging.Handler):
    """Safe to use from any thread."""

    def __init__(self, max_records: int = MAX_RECORDS) -> None:
        super().__init__()
        self._kept: deque[LoggedRecord] = deque(maxlen=max_records)
        self._num_seen = 0
        self._kept_lock = threading.Lock()
        self._file: logging.handlers.RotatingFileHandler | None = None

    def keep_in(self, path: Path) -> None:
        """Bring back what the file holds, and write to it from now on. Raises ``OSError``."""
        for found in (path.with_name(path.name + ".1"), path):
            for line in _lines(found):
                record = _read(line)
                if record is not None:
                    self._keep(record)
        self._file = logging.handlers.RotatingFileHandler(
            path, maxBytes=_FILE_BYTES, backupCount=1, encoding="utf-8"
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; called by ``logging``."""
        try:
            kept = LoggedRecord(
                time_s=record.created,
                level=record.levelno,
                logger=record.name,
                text=without_secrets(_text(record))[:MAX_TEXT_CHARS],
                names=_names(record.args),
            )
            self._keep(kept)
            if self._file is not None:
                line = {**_written(kept), "names": sorted(kept.names)}
                text = json.dumps(line, separators=(",", ":"))
                self._file.handle(logging.LogRecord("", record.levelno, "", 0, text, None, None))
        except Exception:  # noqa: BLE001 - a record that cannot be kept stops nobody
            self.handleError(record)

    def close(self) -> None:
        """Close the file; called by ``logging``."""
        if self._file is not None:
            self._file.close()
        super().close()

    def newest(self) -> int:
        """How many records there ever were: where ``after`` goes on from."""
        with self._kept_lock:
            return self._num_seen

    def after(
        self, position: int, *, since_s: float = 0.0, level: int = 0, names: frozenset[str] | None = None
    ) -> tuple[list[LoggedRecord], int]:
        """Oldest first: those kept after ``position`` (0 for all) that fit, and the position to go on from.

        ``names`` None means about anything; else about one of these.
        """
        with self._kept_lock:
            num_new = min(max(self._num_seen - position, 0), len(self._kept))
            found = list(self._kept)[len(self._kept) - num_new :]
            newest = self._num_seen
        fitting = [
            record
            for record in found
            if record.time_s >= since_s
            and record.level >= level
            and (names is None or not names.isdisjoint(record.names))
        ]
        return fitting, newest

    def _keep(self, record: LoggedRecord) -> None:
        with self._kept_lock:
            self._kept.append(record)
            self._num_seen += 1


def without_secrets(text: str) -> str:
    """The text with tokens and passwords blotted out."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _text(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    return text


def _names(arguments: Any) -> frozenset[str]:
    values: Iterable[Any] = arguments.values() if isinstance(arguments, dict) else arguments or ()
    found: set[str] = set()
    for value in values:
        if not isinstance(value, int | float):
            found.update(_WORD.findall(without_secrets(str(value)[:MAX_TEXT_CHARS]))[:_MAX_NAMES])
    return frozenset(list(found)[:_MAX_NAMES])


def _written(record: LoggedRecord) -> dict[str, Any]:
    return {"time_s": record.time_s, "level": record.level, "logger": record.logger, "text": record.text}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-MAX_RECORDS:]
    except FileNotFoundError:
        return []


def _read(line: str) -> LoggedRecord | None:
    """None for a line that is damaged, as after a power cut."""
    try:
        values = json.loads(line)
        return LoggedRecord(
            time_s=float(values["time_s"]),
            level=int(values["level"]),
            logger=str(values["logger"]),
            text=str(values["text"])[:MAX_TEXT_CHARS],
            names=frozenset(map(str, values["names"][:_MAX_NAMES])),
        )
    except (ValueError, TypeError, KeyError):
        return None
