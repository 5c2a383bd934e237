"""Maintenance windows: openings of the wall clock, also in nights in which the clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.domain.windows import MaintenanceWindow, check_window, check_zone, opening, opening_text

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "UTC",
    "America/Havana",
]


def window(schedule: str = "0 2 * * *", duration: str = "01:00", timezone: str = "UTC") -> MaintenanceWindow:
    return MaintenanceWindow(schedule=schedule, duration=duration, timezone=timezone)


def at(*parts: int, zone=BERLIN, fold: int = 0) -> float:
    return datetime(*parts, tzinfo=zone, fold=fold).timestamp()


def test_a_window_opens_by_the_devices_own_clock():
    found = opening(window(), "Europe/Berlin", at(2026, 7, 1, 12))
    assert (found.open_s, found.close_s) == (at(2026, 7, 2, 2), at(2026, 7, 2, 3))
    elsewhere = opening(window(), "Asia/Tokyo", at(2026, 7, 1, 12))
    assert elsewhere.open_s == at(2026, 7, 2, 2, zone=ZoneInfo("Asia/Tokyo"))


def test_a_device_without_a_zone_goes_by_the_windows():
    given = window(timezone="America/New_York")
    for zone in ("", "Not/AZone", "../../etc/passwd"):
        assert opening(given, zone, at(2026, 7, 1, 12)) == opening(
            given, "America/New_York", at(2026, 7, 1, 12)
        )


def test_it_is_open_from_its_first_second_to_before_its_last():
    for inside in (at(2026, 7, 2, 2), at(2026, 7, 2, 2, 59, 59)):
        found = opening(window(), "Europe/Berlin", inside)
        assert found.open_s <= inside < found.close_s
    assert opening(window(), "Europe/Berlin", at(2026, 7, 2, 3)).open_s == at(2026, 7, 3, 2)


def test_a_time_that_a_night_leaves_out_counts_when_the_clocks_change():
    # On 29 March 2026 it is 01:59:59 and then 03:00:00.
    found = opening(window("30 2 * * *"), "Europe/Berlin", at(2026, 3, 28, 12))
    assert (found.open_s, found.close_s) == (at(2026, 3, 29, 3), at(2026, 3, 29, 4))


def test_a_time_that_comes_twice_counts_the_first_time_alone_and_an_hour_stays_an_hour():
    # On 25 October 2026 it is 02:59:59 and then 02:00:00 again.
    given = window("30 2 * * *")
    found = opening(given, "Europe/Berlin", at(2026, 10, 25, 0))
    assert found.open_s == at(2026, 10, 25, 2, 30, fold=0)
    assert found.close_s - found.open_s == 3600
    second = at(2026, 10, 25, 2, 30, fold=1)
    assert opening(given, "Europe/Berlin", second).open_s == at(2026, 10, 26, 2, 30)


def test_a_window_over_a_change_is_as_long_as_it_says():
    for day in ((2026, 3, 28), (2026, 10, 24)):
        found = opening(window("0 22 * * *", "08:00"), "Europe/Berlin", at(*day, 12))
        assert found.close_s - found.open_s == 8 * 3600


def test_days_are_picked_as_cron_picks_them():
    saturday = opening(window("0 2 * * sat"), "UTC", at(2026, 7, 1, zone=UTC))
    assert datetime.fromtimestamp(saturday.open_s, UTC) == datetime(2026, 7, 4, 2, tzinfo=UTC)
    sunday = opening(window("0 2 * * 7"), "UTC", at(2026, 7, 1, zone=UTC))
    assert datetime.fromtimestamp(sunday.open_s, UTC).isoweekday() == 7
    leap = opening(window("0 0 29 feb *"), "UTC", at(2096, 3, 1, zone=UTC))
    assert datetime.fromtimestamp(leap.open_s, UTC) == datetime(2104, 2, 29, tzinfo=UTC)
    either = opening(window("0 2 13 * fri"), "UTC", at(2026, 7, 1, zone=UTC))
    assert datetime.fromtimestamp(either.open_s, UTC).day == 3  # a Friday, long before the 13th


def test_it_says_when_it_opens_as_people_would():
    given = window()
    now_s = at(2026, 7, 1, 12)
    text = opening_text(opening(given, "Europe/Berlin", now_s), given, "Europe/Berlin", now_s)
    assert text == "02:00 Europe/Berlin"
    weekly = window("0 2 * * sat")
    found = opening(weekly, "Europe/Berlin", now_s)
    assert opening_text(found, weekly, "Europe/Berlin", now_s) == "2026-07-04 02:00 Europe/Berlin"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (window("0 2 * *"), "five fields"),
        (window("60 2 * * *"), "minute"),
        (window("0 24 * * *"), "hour"),
        (window("0 2 31 feb *"), "no day"),
        (window("0 2 * * mon-"), "day of week"),
        (window("0 2 */0 * *"), "day of month"),
        (window("0 ٢ * * *"), "hour"),
        (window(duration="00:00"), "duration"),
        (window(duration="169:00"), "duration"),
        (window(duration="1h"), "duration"),
        (window(timezone="Mars/Base"), "timezone"),
    ],
)
def test_what_is_wrong_is_named(given, word):
    with pytest.raises(ValueError, match=word):
        check_window(given)


def test_zones_are_names_of_the_database_and_no_paths():
    assert check_zone("Europe/Berlin") == "Europe/Berlin"
    for name in ("", "/etc/localtime", "..", "Europe/../Europe/Berlin", "a" * 65, "Europe/Berlin\n"):
        with pytest.raises(ValueError, match="tz database"):
            check_zone(name)


@given(
    zone=st.sampled_from(ZONES),
    hour=st.integers(0, 23),
    minute=st.integers(0, 59),
    minutes=st.integers(1, 24 * 60),
    now_s=st.integers(at(2020, 1, 1, zone=UTC), at(2035, 1, 1, zone=UTC)).map(float),
)
def test_a_daily_window_opens_once_on_every_day(zone, hour, minute, minutes, now_s):
    given = window(f"{minute} {hour} * * *", f"{minutes // 60:02d}:{minutes % 60:02d}")
    found = opening(given, zone, now_s)
    assert found.close_s - found.open_s == minutes * 60
    assert now_s < found.close_s
    after = opening(given, zone, max(found.close_s, found.open_s + minutes * 60))
    assert after.open_s > found.open_s
    local = [datetime.fromtimestamp(item.open_s, ZoneInfo(zone)) for item in (found, after)]
    assert local[1].date() - local[0].date() in (timedelta(days=1), timedelta(days=2))
    for moment in local:
        wall = (moment.hour, moment.minute)
        # At its time, or, in a night that leaves that out, when the clocks changed.
        before = datetime.fromtimestamp(moment.timestamp() - 1, ZoneInfo(zone))
        assert wall == (hour, minute) or before.utcoffset() < moment.utcoffset()
