"""Values to HTML. Pure: no clock, no database.

Rules kept here:

* Everything is escaped by the template engine; the one text that is not is the curve, made of numbers alone.
* The page loads nothing and runs nothing: its policy allows the one style sheet in it, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from importlib import resources

import jinja2
from markupsafe import Markup

from cloud.web.sparkline import sparkline
from cloud.web.values import FleetView, ProfileRow

REFRESH_S = 10
_STYLE = resources.files("cloud.web").joinpath("templates/fleet.css").read_text(encoding="utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: What goes with every answer, whatever it is.
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}

#: Verdicts that ask for a look, and those that say all is well; the rest is neither.
BAD_VERDICTS = frozenset({"misses", "infeasible", "untrusted", "mixed", "throttled"})
_GOOD_VERDICTS = frozenset({"meets", "slack"})


def render(view: FleetView) -> bytes:
    """The whole page, UTF-8."""
    return _TEMPLATE.render(view=view, style=Markup(_STYLE)).encode()  # noqa: S704 - our own file


def _clock(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value > 0 else "-"


def _curve(profile: ProfileRow) -> Markup:
    return Markup(sparkline(profile.history, profile.objective_p95_ms))  # noqa: S704 - numbers alone


def _mood(verdict: str) -> str:
    return "bad" if verdict in BAD_VERDICTS else "good" if verdict in _GOOD_VERDICTS else "quiet"


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("cloud.web", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(clock=_clock, milliseconds=_milliseconds, curve=_curve, mood=_mood)
_TEMPLATE = _ENVIRONMENT.get_template("fleet.html.j2")
