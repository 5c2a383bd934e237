"""When a device may be disturbed: maintenance windows in its own time zone.

Rules kept here:

- Pure: a window, a zone and a moment give the same answer each time. The zone's rules come from the system's
  tz database through ``zoneinfo``; an unknown zone is an error of whoever checks it, and never guessed.
- A window opens at a time of the wall clock and stays open for a *duration*: an hour is an hour, also in a
  night in which the clocks change.
- A wall clock time that a night leaves out (clocks go forward) counts at the moment of the change; one that
  comes twice (clocks go back) counts the first time alone. So a daily window opens once on every day.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

__all__ = ["MaintenanceWindow", "Opening", "check_window", "check_zone", "opening", "opening_text", "zone_of"]

_MAX_DURATION = timedelta(days=7)
#: A schedule that names 29 February comes at least once in eight years (1900 and 2100 have none).
_SEARCH_DAYS = 8 * 366 + 1
_ZONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+/-]{0,63}", re.ASCII)
_DURATION = re.compile(r"([0-9]{1,3}):([0-5][0-9])(?::([0-5][0-9]))?", re.ASCII)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of month", 1, 31),
    ("month", 1, 12),
    ("day of week", 0, 7),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MaintenanceWindow:
    """The field names are hawkBit's. ``timezone`` is for devices that have none of their own.

    ``schedule`` is cron's five fields (minute, hour, day of month, month, day of week), ``duration`` is
    HH:MM or HH:MM:SS.
    """

    schedule: str
    duration: str
    timezone: str = "UTC"


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """One time that the window is open, in seconds since the epoch: ``open_s`` to before ``close_s``."""

    open_s: float
    close_s: float


@dataclass(frozen=True, slots=True)
class _Schedule:
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    #: As cron has it: when both are restricted, a day that fits either counts.
    either_day: bool

    def fits(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either_day else of_month and of_week


def check_window(window: MaintenanceWindow) -> None:
    """Raises ``ValueError`` that names the field and says what to give."""
    schedule = _schedule(window.schedule)
    _duration(window.duration)
    check_zone(window.timezone, "timezone")
    first = date(2024, 1, 1)
    if not any(schedule.fits(first + timedelta(days=n)) for n in range(_SEARCH_DAYS)):
        raise ValueError(f"schedule {window.schedule!r} fits no day of any year: give one that does")


def check_zone(name: str, field: str = "timezone") -> str:
    """The name itself. Raises ``ValueError`` for one that the tz database does not have."""
    if zone_of(name) is None:
        raise ValueError(f"{field} is {name[:80]!r}: give a name of the tz database, such as Europe/Berlin")
    return name


@lru_cache(maxsize=1024)
def zone_of(name: str) -> ZoneInfo | None:
    """None for a name that is not known."""
    if not _ZONE.fullmatch(name):
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


@lru_cache(maxsize=1024)  # all devices of a zone ask the same in one step
def opening(window: MaintenanceWindow, time_zone: str, now_s: float) -> Opening:
    """The opening that ``now_s`` falls into, or else the next one.

    ``time_zone`` is the device's; the window's own counts for one that is empty or unknown. Raises
    ``ValueError`` for a window that ``check_window`` refuses.
    """
    zone = zone_of(time_zone) or zone_of(window.timezone)
    if zone is None:
        raise ValueError(f"timezone is {window.timezone!r}: give a name of the tz database")
    schedule, duration = _schedule(window.schedule), _duration(window.duration)
    length_s = duration.total_seconds()
    # One day more than its length: where a zone's clock jumped over a day, yesterday was the day before.
    first = datetime.fromtimestamp(now_s, zone).date() - timedelta(days=duration.days + 2)
    for number in range(_SEARCH_DAYS + duration.days + 3):
        day = first + timedelta(days=number)
        if not schedule.fits(day):
            continue
        for open_s in _openings(schedule, day, zone):
            if now_s < open_s + length_s:
                return Opening(open_s=open_s, close_s=open_s + length_s)
    raise ValueError(f"schedule {window.schedule!r} fits no day of any year: give one that does")


def opening_text(found: Opening, window: MaintenanceWindow, time_zone: str, now_s: float) -> str:
    """``02:00 Europe/Berlin``, with the day where it is more than a day away."""
    zone = zone_of(time_zone) or zone_of(window.timezone) or UTC
    name = time_zone if zone_of(time_zone) is not None else window.timezone
    moment = datetime.fromtimestamp(found.open_s, zone)
    day = f"{moment:%Y-%m-%d} " if found.open_s - now_s >= 86_400 else ""
    return f"{day}{moment:%H:%M} {name}"


def _openings(schedule: _Schedule, day: date, zone: ZoneInfo) -> Iterator[float]:
    """In order, each moment once."""
    last_s = float("-inf")
    for hour in schedule.hours:
        for minute in schedule.minutes:
            open_s = _moment(datetime.combine(day, time(hour, minute)), zone)
            if open_s > last_s:
                last_s = open_s
                yield open_s


def _moment(wall: datetime, zone: ZoneInfo) -> float:
    """When the wall clock first shows ``wall``, or passes over it."""
    before = wall.replace(tzinfo=zone, fold=0)
    after = wall.replace(tzinfo=zone, fold=1)
    first_s, second_s = before.timestamp(), after.timestamp()
    if first_s <= second_s:  # an ordinary time, or the first of two
        return first_s
    # In a gap, fold=0 counts with the offset from before the change: look for the change itself.
    low, high = int(second_s), int(first_s)
    offset = datetime.fromtimestamp(low, zone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return float(high)


@lru_cache(maxsize=256)
def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    length = (
        timedelta(hours=int(found[1]), minutes=int(found[2]), seconds=int(found[3] or 0))
        if found
        else timedelta()
    )
    if not timedelta(minutes=1) <= length <= _MAX_DURATION:
        raise ValueError(f"duration is {text[:40]!r}: give HH:MM or HH:MM:SS, from 00:01 to 168:00")
    return length


@lru_cache(maxsize=256)
def _schedule(text: str) -> _Schedule:
    fields = text.lower().split()
    if len(fields) != len(_FIELDS):
        raise ValueError(
            f"schedule is {text[:80]!r}: give five fields as cron has them, such as '0 2 * * *' for "
            "every day at 02:00"
        )
    minutes, hours, days, months, weekdays = (
        _field(part, name, low, high) for part, (name, low, high) in zip(fields, _FIELDS, strict=True)
    )
    return _Schedule(
        tuple(sorted(minutes)),
        tuple(sorted(hours)),
        days,
        months,
        frozenset(day % 7 for day in weekdays),
        not fields[2].startswith("*") and not fields[4].startswith("*"),
    )


def _field(text: str, name: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        try:
            if span == "*":
                begin, end = low, high
            else:
                begin = _number(first, name)
                end = _number(last, name) if dash else high if slash else begin
            by = int(step) if slash else 1
        except ValueError:
            begin, end, by = 0, -1, 0
        if not (low <= begin <= end <= high and 1 <= by <= high):
            raise ValueError(
                f"schedule: {name} is {text[:40]!r}: give *, or numbers from {low} to {high}, with - for a "
                "span, / for a step and commas between"
            )
        found.update(range(begin, end + 1, by))
    return frozenset(found)


def _number(text: str, name: str) -> int:
    names = _MONTHS if name == "month" else _DAYS if name == "day of week" else ()
    if text in names:
        return names.index(text) + (name == "month")
    if not (text.isascii() and text.isdigit() and len(text) <= 2):
        raise ValueError(text)
    return int(text)
