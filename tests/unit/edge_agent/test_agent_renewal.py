"""When a certificate is renewed, in virtual time, on a device whose clock is set by years."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from edge_agent.identity import (
    IDENTITY_FILE,
    Identity,
    load_identity,
    save_certificate,
    save_enrolment,
)
from edge_agent.renewal import Renewer
from edgeloop.backoff import Backoff
from edgeloop.errors import TransientError
from edgeloop.identity import CertificateFacts, certificate_request, new_private_key

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

    def __init__(
        self, until_s: float, offset_at: Callable[[float], float], *, state_dir: Path = Path()
    ) -> None:
        self.now_s = BEGIN_S
        self.until_s = until_s
        self.offset_at = offset_at
        self.renewals: list[float] = []
        self.attempts: list[float] = []
        # Whether the server's certificate is good by the device's clock.
        self.connects: Callable[[float], bool] = lambda offset_s: True
        self.used: list[Identity] = []
        # What others do while it waits.
        self.meanwhile: Callable[[float], None] = lambda now_s: None
        super().__init__(
            state_dir,
            identity(BEGIN_S),
            server="x:2",
            on_renewed=self.used.append,
            backoff=Backoff(1.0, 300.0, random.Random(0)),
            clock=lambda: self.now_s + self.offset_at(self.now_s),
            look_s=60.0,
        )

    def _wait(self, seconds: float) -> bool:
        self.now_s += max(seconds, 0.0)
        self.meanwhile(self.now_s)
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


def enrolled(folder: Path, name: str) -> Identity:
    """As `edgeloop-agent enroll` leaves the folder, by an authority of the test."""
    key_pem = new_private_key()
    certificate_pem = issue(name, certificate_request(key_pem, name), BEGIN_S)
    save_certificate(folder, key_pem, certificate_pem)
    save_enrolment(folder, certificate_pem, {"device_id": name, "enrol_server": "x:1"})
    found = load_identity(folder)
    assert found is not None
    return found


def issue(name: str, request: bytes, now_s: float) -> bytes:
    asked = x509.load_der_x509_csr(request)
    begin = datetime.fromtimestamp(now_s, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")]))
        .public_key(asked.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=30))
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def test_a_device_that_is_enrolled_anew_uses_that_at_the_next_look_and_renews_it(
    tmp_path: Path,
) -> None:
    enrolled(tmp_path, "gw-1")
    renewer = VirtualRenewer(BEGIN_S + 22 * DAY_S, lambda now_s: 0.0, state_dir=tmp_path)
    at_s = BEGIN_S + 5000.0
    seen: list[tuple[float, Identity]] = []
    fresh: list[Identity] = []

    def enrol_at(now_s: float) -> None:
        if now_s >= at_s and not fresh:
            fresh.append(enrolled(tmp_path, "gw-1"))
        if renewer.used and not seen:
            seen.append((now_s, renewer.used[0]))

    renewer.meanwhile = enrol_at
    renewer.run()
    assert [used.facts.serial for _, used in seen] == [fresh[0].facts.serial]
    assert at_s <= seen[0][0] <= at_s + 2 * 60
    assert len(renewer.renewals) == 1, "of the new one, once"


def test_a_cloud_that_refuses_a_revoked_device_hears_of_its_new_certificate_soon(tmp_path: Path) -> None:
    """In the pause after a refusal, too, which is five minutes."""
    enrolled(tmp_path, "gw-1")
    renewer = VirtualRenewer(BEGIN_S + 25 * DAY_S, lambda now_s: 0.0, state_dir=tmp_path)
    renewer.connects = lambda offset_s: bool(renewer.used)

    def enrol_at(now_s: float) -> None:
        if now_s >= BEGIN_S + 24 * DAY_S and not renewer.used:
            enrolled(tmp_path, "gw-1")

    renewer.meanwhile = enrol_at
    renewer.run()
    assert renewer.used


@pytest.mark.parametrize("damage", ["other name", "damaged"])
def test_what_cannot_be_used_leaves_the_certificate_at_hand(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is anything renewed over it, though the certificate is due on the way; it is said once."""
    enrolled(tmp_path, "gw-1")
    renewer = VirtualRenewer(BEGIN_S + 25 * DAY_S, lambda now_s: 0.0, state_dir=tmp_path)
    enrolled(tmp_path, "gw-2" if damage == "other name" else "gw-1")
    if damage == "damaged":
        (tmp_path / IDENTITY_FILE).write_bytes(b"?")
    left = (tmp_path / IDENTITY_FILE).read_bytes()
    renewer.run()
    assert not renewer.used
    assert not renewer.renewals
    assert (tmp_path / IDENTITY_FILE).read_bytes() == left
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "start it again" in said or "enrol again with a new token" in said


def test_an_identity_that_the_connections_do_not_take_is_tried_again(tmp_path: Path) -> None:
    """As one of which the certificate was written, and the authority's not yet."""
    enrolled(tmp_path, "gw-1")
    renewer = VirtualRenewer(BEGIN_S + DAY_S, lambda now_s: 0.0, state_dir=tmp_path)
    fresh = enrolled(tmp_path, "gw-1")
    taken: list[Identity] = []

    def take(found: Identity) -> None:
        if renewer.now_s < BEGIN_S + 600.0:
            raise OSError("half of it")
        taken.append(found)

    renewer._on_renewed = take
    renewer.run()
    assert [one.facts.serial for one in taken] == [fresh.facts.serial]
