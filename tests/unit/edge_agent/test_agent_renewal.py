"""When a certificate is renewed, in virtual time, on a device whose clock is set by years."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.identity import Identity
from edge_agent.renewal import Renewer
from edgeloop.backoff import Backoff
from edgeloop.errors import TransientError
from edgeloop.identity import CertificateFacts

DAY_S = 86_400.0
YEAR_S = 365 * DAY_S
BEGIN_S = 1_800_000_000.0


def identity(not_before_s: float) -> Identity:
    known = CertificateFacts(
        name="gw-1", serial="01", not_before_s=not_before_s, not_after_s=not_before_s + 30 * DAY_S
    )
    return Identity(
        state_dir=Path(), facts=known, key_pem=b"", certificate_pem=b"", ca_pem=b"", enrol_server="x:1"
    )


class VirtualRenewer(Renewer):
    """Its waits pass at once. `offset_s` is how far the device's clock is ahead; the cloud's is right."""

    def __init__(self, until_s: float, offset_at: Callable[[float], float]) -> None:
        self.now_s = BEGIN_S
        self.until_s = until_s
        self.offset_at = offset_at
        self.renewals: list[float] = []
        self.attempts: list[float] = []
        # Whether the server's certificate is good by the device's clock.
        self.connects: Callable[[float], bool] = lambda offset_s: True
        super().__init__(
            Path(),
            identity(BEGIN_S),
            server="x:2",
            on_renewed=lambda found: None,
            backoff=Backoff(1.0, 300.0, random.Random(0)),
            clock=lambda: self.now_s + self.offset_at(self.now_s),
        )

    def _wait(self, seconds: float) -> bool:
        self.now_s += max(seconds, 0.0)
        assert len(self.attempts) < 100_000
        return self.now_s >= self.until_s

    def _renewed(self) -> Identity:
        self.attempts.append(self.now_s)
        if not self.connects(self.offset_at(self.now_s)):
            raise TransientError("certificate verify failed", code="grpc-unavailable")
        self.renewals.append(self.now_s)
        return identity(self.now_s)

    def run(self) -> None:
        self._run()


def test_it_renews_at_two_thirds_of_each_life() -> None:
    renewer = VirtualRenewer(BEGIN_S + 100 * DAY_S, lambda now_s: 0.0)
    renewer.run()
    lives = [b - a for a, b in zip([BEGIN_S, *renewer.renewals], renewer.renewals, strict=False)]
    assert len(lives) == 4
    assert all(20 * DAY_S <= life_s <= 21.6 * DAY_S for life_s in lives)


@pytest.mark.parametrize("years", [-50, 12])
def test_a_clock_that_was_wrong_by_years_for_a_day_costs_no_later_renewal(years: int) -> None:
    def offset_at(now_s: float) -> float:
        return years * YEAR_S if DAY_S < now_s - BEGIN_S < 2 * DAY_S else 0.0

    renewer = VirtualRenewer(BEGIN_S + 29 * DAY_S, offset_at)
    renewer.connects = lambda offset_s: offset_s == 0.0
    renewer.run()
    assert len(renewer.renewals) == 1
    assert 20 * DAY_S <= renewer.renewals[0] - BEGIN_S <= 21.6 * DAY_S + 3600.0


def test_a_clock_that_is_ahead_for_good_renews_no_more_than_once_an_hour() -> None:
    renewer = VirtualRenewer(BEGIN_S + DAY_S, lambda now_s: YEAR_S)
    renewer.run()
    assert 20 <= len(renewer.renewals) <= 25


def test_a_cloud_that_is_away_is_tried_again_with_growing_pauses() -> None:
    renewer = VirtualRenewer(BEGIN_S + 25 * DAY_S, lambda now_s: 0.0)
    renewer.connects = lambda offset_s: False
    renewer.run()
    span_s = renewer.attempts[-1] - renewer.attempts[0]
    assert span_s > DAY_S
    assert span_s / 300 < len(renewer.attempts) < 2.5 * span_s / 300
