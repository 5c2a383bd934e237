"""Where the device says that it hangs: found without asking anybody, and empty rather than wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.hardware import time_zone


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TZ", raising=False)


def test_the_link_says_it_then_the_file(tmp_path: Path) -> None:
    link, text = tmp_path / "localtime", tmp_path / "timezone"
    text.write_text("Asia/Tokyo\n")
    assert time_zone(localtime=link, timezone=text) == "Asia/Tokyo"
    link.symlink_to("/usr/share/zoneinfo/Europe/Berlin")
    assert time_zone(localtime=link, timezone=text) == "Europe/Berlin"


def test_what_is_no_name_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing, text = tmp_path / "localtime", tmp_path / "timezone"
    assert time_zone(localtime=missing, timezone=text) == ""
    text.write_bytes(b"\xff\xfe")
    assert time_zone(localtime=missing, timezone=text) == ""
    monkeypatch.setenv("TZ", "/etc/../odd zone")
    assert time_zone(localtime=missing, timezone=text) == ""
