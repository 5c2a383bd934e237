"""The fleet's page: what it shows, and that nothing that a device says becomes markup."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from cloud_store_values import DEVICE, JOB, PROFILE, ROLLOUT, STATUS, fill

from cloud.domain.devices import DeploymentState
from cloud.domain.evidence import Window
from cloud.domain.jobs import JobState
from cloud.domain.rollout import RolloutState
from cloud.domain.settings import PolicySettings
from cloud.metrics import PlaneState
from cloud.store import Store
from cloud.web.gather import FleetPage, history
from cloud.web.page import HEADERS, render
from cloud.web.sparkline import sparkline
from cloud.web.values import DecisionRow, FleetView, JobRow, Notice, Point, ProfileRow, RolloutRow
from edgeloop.sketch import LatencySketch

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe\x00\x1b[31m",
    "javascript:alert(1)//\r\nSet-Cookie: a=b",
)
ALLOWED_TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "br", "span", "table", "tr", "th",
    "td", "code", "progress", "svg", "line", "polyline",
}  # fmt: skip


class Seen(HTMLParser):
    """Every tag, every attribute and all text of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def view(text: str = "x") -> FleetView:
    """Every text that the page shows is this one."""
    return FleetView(
        time_s=1_700_000_000.0,
        version=text,
        acts=True,
        broker_connected=True,
        controller_paused=False,
        profiles=(
            ProfileRow(
                name=text,
                num_devices=3,
                num_connected=2,
                states={text: 2},
                objective_p95_ms=8.0,
                measured_p95_ms=9.1,
                verdict=text,
                message=text,
                history=(Point(time_s=0.0, p95_ms=7.0), Point(time_s=60.0, p95_ms=9.0)),
            ),
        ),
        rollouts=(
            RolloutRow(
                rollout_id=text,
                profile=text,
                digest=text,
                state=text,
                message=text,
                groups=((text, text, 1, 2),),
            ),
        ),
        jobs=(JobRow(job_id=text, kind=text, about=text, state=text, progress=0.5, message=text),),
        decisions=(DecisionRow(time_s=1.0, profile=text, action=text, reason=text),),
        notices=(Notice(about=text, text=text),),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(text: str) -> None:
    seen, plain = Seen(render(view(text))), Seen(render(view()))
    assert seen.tags <= ALLOWED_TAGS
    assert (seen.tags, seen.attributes) == (plain.tags, plain.attributes)
    shown = text.replace("\r\n", "\n")
    assert shown in seen.text.replace("\r\n", "\n")


def test_the_policy_allows_the_style_sheet_and_nothing_else() -> None:
    page = render(view()).decode()
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(style) == 1
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    policy = HEADERS["Content-Security-Policy"]
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "style=" not in page


def test_objective_and_measurement_stand_beside_a_curve() -> None:
    page = render(view()).decode()
    assert "8 ms" in page
    assert "9.1 ms" in page
    assert page.count("<polyline") == 1


@pytest.mark.parametrize(
    "values",
    [(), (1.0,), (float("nan"), 1.0), (float("inf"), 2.0), (-1.0, 2.0)],
    ids=["none", "one", "nan", "infinite", "negative"],
)
def test_a_curve_of_less_than_two_figures_is_none(values: tuple[float, ...]) -> None:
    points = [Point(time_s=float(number), p95_ms=value) for number, value in enumerate(values)]
    assert sparkline(points, 5.0) == ""


def test_a_curve_stays_within_its_frame_and_shows_the_objective() -> None:
    points = [Point(time_s=60.0 * number, p95_ms=value) for number, value in enumerate((0.0, 500.0, 3.0))]
    drawn = ElementTree.fromstring(sparkline(points, 100.0))
    line, goal = drawn.find("polyline"), drawn.find("line")
    assert line is not None
    assert goal is not None
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert all(0 <= x <= 160 and 0 <= y <= 36 for x, y in places)
    assert 0 < float(goal.attrib["y1"]) < 36
    assert "<line" not in sparkline(points, 0.0)


def window(end_s: float, value_ms: float) -> Window:
    latency = LatencySketch.of([value_ms] * 20)
    return Window(
        device_id="gw-1", boot_id="b", sequence=int(end_s), digest="d" * 64, generation=1, workload="digits",
        start_s=end_s - 30, end_s=end_s, latency=latency, reference=latency,
    )  # fmt: skip


def test_windows_of_one_minute_are_one_point_and_old_or_future_ones_none() -> None:
    now_s = 100_000 * 60.0
    windows = [window(now_s - ago_s, 4.0) for ago_s in (10, 20, 70, 4000, -60)]
    points = history(windows, now_s)
    assert len(points) == 2
    assert points[0].time_s < points[1].time_s
    assert points[1].p95_ms == pytest.approx(4.0, rel=0.1)


@pytest.fixture
def page(store: Store) -> FleetPage:
    fill(store)
    return FleetPage(
        store,
        settings=PolicySettings(),
        plane=lambda: PlaneState(acts=True, broker_connected=False),
        now_s=lambda: 200.0,
    )


def test_the_page_tells_what_is_in_the_database(store: Store, page: FleetPage) -> None:
    running = replace(ROLLOUT, rollout_id="rollout-9", state=RolloutState.RUNNING, create_time_s=190.0)
    store.save_rollout(running, 190.0)
    store.create_job(
        replace(JOB, job_id="job-lost", state=JobState.FAILED, message="no room", end_time_s=150.0)
    )
    seen = Seen(page.html()).text
    assert PROFILE.name in seen
    assert "8 ms" in seen
    assert "rollout-9" in seen
    assert "p95 9.1 ms over 8 ms" in seen
    assert "The broker does not answer." in seen
    assert re.search(r"job-lost\s*failed: no room", seen)


def test_devices_that_are_away_refused_or_of_no_profile_are_to_be_looked_at(
    store: Store, page: FleetPage
) -> None:
    store.register_device(replace(DEVICE, device_id="gw-2"), PROFILE.name, "", 150.0)
    store.set_presence("gw-2", False, 160.0)
    store.register_device(replace(DEVICE, device_id="<b>lost</b>"), None, "no profile & no 'hope'", 150.0)
    store.register_device(replace(DEVICE, device_id="mirror"), None, "\u202eeliforp on", 150.0)
    store.record_status(
        replace(
            STATUS, state=DeploymentState.ROLLED_BACK, code="crash-loop", message="died", event_time_s=199.0
        ),
        199.0,
    )
    notices = {item.about: item.text for item in page.look().notices}
    assert notices["device gw-2"] == "not connected"
    assert "no profile & no 'hope'" in notices["device <b>lost</b>"]
    assert notices["device mirror"] == "\ufffdeliforp on"
    assert "crash-loop" in notices["device gw-1"]
    assert b"&lt;b&gt;lost&lt;/b&gt;" in page.html()


def test_a_large_fleet_and_long_texts_make_no_large_page(store: Store, page: FleetPage) -> None:
    for number in range(120):
        store.register_device(replace(DEVICE, device_id=f"lost-{number}"), None, "x" * 100_000, 150.0)
    look = page.look()
    assert len(look.notices) == 50
    assert look.num_more_notices >= 70
    assert len(page.html()) < 100_000
