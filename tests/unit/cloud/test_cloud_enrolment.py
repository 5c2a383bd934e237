"""Enrolment, renewal and re-enrolment against a real database and a real authority, on a clock of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import CertificateSigningRequestBuilder, Name
from fresh_database import fresh_store

from cloud.domain.identities import CertificateRecord, IdentityState
from cloud.enrolment import Enrolment, Issued, check_device_name, new_token, secret_hash
from cloud.pki.authority import Authority
from cloud.revocation import RevocationWatch
from cloud.store import Store
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.identity import certificate_request, new_private_key, vouch

DAY_S = 86_400.0
TTL_S = 7 * DAY_S


class World:
    def __init__(self, store: Store) -> None:
        self.now_s = 1_800_000_000.0
        self.store = store
        self.authority = Authority.create("devices", self.now_s)[0]
        self.enrolment = Enrolment(
            store, self.authority, certificate_ttl_s=TTL_S, grace_s=30 * DAY_S, now_s=lambda: self.now_s
        )

    def token(self, name: str, ttl_s: float = 3600) -> str:
        token = new_token()
        self.store.save_identity(name, {}, self.now_s)
        expire_time_s = self.now_s + ttl_s
        self.store.add_token(secret_hash(token), name, now_s=self.now_s, expire_time_s=expire_time_s)
        return token

    def enrolled(self, name: str = "gw-1") -> tuple[bytes, Issued]:
        key = new_private_key()
        return key, self.enrolment.enrol(self.token(name), certificate_request(key, name))

    def re_enrol(self, key: bytes, issued: Issued, *, signer: bytes | None = None) -> Issued:
        request = certificate_request(new_private_key(), "x")
        pem = issued.certificate.public_bytes(Encoding.PEM)
        return self.enrolment.re_enrol(pem, request, vouch(signer or key, request))

    def state(self, name: str = "gw-1") -> IdentityState:
        identity = self.store.identity(name)
        assert identity is not None
        return identity.state(self.now_s)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    store = fresh_store(tmp_path / "edgeloop.db")
    yield World(store)
    store.close()


def refused(code: str, call: Callable[[], object]) -> str:
    with pytest.raises((RejectedError, ConfigError)) as caught:
        call()
    assert caught.value.code == code
    return str(caught.value)


def test_the_name_comes_from_the_token_and_never_from_the_request(world: World) -> None:
    token = world.token("gw-1")
    issued = world.enrolment.enrol(token, certificate_request(new_private_key(), "gw-2"))
    assert issued.facts.name == "gw-1"
    assert world.state() is IdentityState.VALID
    assert world.authority.issued(issued.certificate)
    assert issued.facts.not_after_s == world.now_s + TTL_S


def test_a_token_counts_once_even_with_a_new_key(world: World) -> None:
    token = world.token("gw-1")
    world.enrolment.enrol(token, certificate_request(new_private_key(), "x"))
    message = refused(
        "token-used", lambda: world.enrolment.enrol(token, certificate_request(new_private_key(), "x"))
    )
    assert "new one" in message


def test_tokens_that_are_unknown_expired_or_replaced_are_refused(world: World) -> None:
    request = certificate_request(new_private_key(), "x")
    refused("token-unknown", lambda: world.enrolment.enrol(new_token(), request))
    first, second = world.token("gw-1"), world.token("gw-1")
    refused("token-unknown", lambda: world.enrolment.enrol(first, request))
    world.now_s += 3600
    refused("token-expired", lambda: world.enrolment.enrol(second, request))
    assert world.state() is IdentityState.NONE


def test_a_replayed_request_is_refused_and_costs_no_token(world: World) -> None:
    request = certificate_request(new_private_key(), "x")
    world.enrolment.enrol(world.token("gw-1"), request)
    token = world.token("gw-2")
    refused("csr-replayed", lambda: world.enrolment.enrol(token, request))
    assert world.enrolment.enrol(token, certificate_request(new_private_key(), "x")).facts.name == "gw-2"


def test_requests_with_other_keys_or_damage_are_refused_and_cost_no_token(world: World) -> None:
    token = world.token("gw-1")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    wide = CertificateSigningRequestBuilder().subject_name(Name([])).sign(key, hashes.SHA256())
    good = certificate_request(new_private_key(), "x")
    # The last bytes are the signature.
    for request in (wide.public_bytes(Encoding.DER), b"", b"\0" * 5000, good[:-3] + b"\1\1\1"):
        refused("csr", lambda request=request: world.enrolment.enrol(token, request))  # type: ignore[misc]
    assert world.enrolment.enrol(token, good).facts.name == "gw-1"


def test_renewal_keeps_the_old_certificate_good_and_enrolling_again_revokes_it(world: World) -> None:
    _, first = world.enrolled()
    world.now_s += TTL_S * 2 / 3
    second = world.enrolment.renew(first.facts, certificate_request(new_private_key(), "x"))
    assert second.facts.not_after_s == world.now_s + TTL_S
    assert world.store.revoked_certificates(world.now_s) == []
    _, third = world.enrolled()
    revoked = {record.serial for record in world.store.revoked_certificates(world.now_s)}
    assert revoked == {first.facts.serial, second.facts.serial}
    assert third.facts.serial not in revoked


def test_a_device_that_was_away_gets_a_new_certificate_with_its_old_key(world: World) -> None:
    key, issued = world.enrolled()
    world.now_s += TTL_S + 20 * DAY_S
    assert world.state() is IdentityState.EXPIRED
    assert world.re_enrol(key, issued).facts.name == "gw-1"
    assert world.state() is IdentityState.VALID


def test_re_enrolment_needs_the_old_key_our_signature_and_some_haste(world: World) -> None:
    key, issued = world.enrolled()
    refused("signature", lambda: world.re_enrol(key, issued, signer=new_private_key()))
    stranger = Authority.create("devices", world.now_s)[0]
    foreign_key = issued.certificate.public_key()
    foreign = stranger.issue_client("gw-1", foreign_key, now_s=world.now_s, life_s=60)  # type: ignore[arg-type]
    refused("certificate-foreign", lambda: world.re_enrol(key, Issued(foreign, issued.facts)))
    world.now_s += TTL_S + 31 * DAY_S
    refused("certificate-too-old", lambda: world.re_enrol(key, issued))


def test_a_revoked_device_gets_nothing_until_it_is_enrolled_again(world: World) -> None:
    key, issued = world.enrolled()
    unused = world.token("gw-1")
    world.store.revoke_identity("gw-1", world.now_s)
    assert world.state() is IdentityState.REVOKED
    request = certificate_request(new_private_key(), "x")
    refused("certificate-revoked", lambda: world.enrolment.renew(issued.facts, request))
    refused("certificate-revoked", lambda: world.re_enrol(key, issued))
    refused("token-unknown", lambda: world.enrolment.enrol(unused, request))
    token = world.token("gw-1")
    assert world.state() is IdentityState.PENDING
    # The token lets it in; the certificate that was revoked stays so.
    refused("certificate-revoked", lambda: world.enrolment.renew(issued.facts, request))
    assert world.enrolment.enrol(token, request).facts.name == "gw-1"
    assert world.state() is IdentityState.VALID


def test_a_deleted_device_is_revoked_too(world: World) -> None:
    key, issued = world.enrolled()
    assert world.store.forget_device("gw-1", world.now_s)
    assert [item.serial for item in world.store.revoked_certificates(world.now_s)] == [issued.facts.serial]
    refused("certificate-unknown", lambda: world.re_enrol(key, issued))
    assert not world.store.forget_device("gw-1", world.now_s)


@pytest.mark.parametrize("name", ["edgeloop-control", "Edgeloop-x", "a/b", "+", ""])
def test_no_device_may_have_a_name_that_means_something_else(name: str) -> None:
    with pytest.raises(RejectedError):
        check_device_name(name)


def test_what_is_revoked_reaches_guard_list_and_broker_once(world: World, tmp_path: Path) -> None:
    from cryptography import x509

    heard: list[frozenset[str]] = []
    kicked: list[str] = []
    path = tmp_path / "devices.crl"
    watch = RevocationWatch(
        world.store,
        world.authority,
        path,
        on_serials=lambda serials: heard.append(frozenset(serials)),
        on_new=kicked.extend,
        now_s=lambda: world.now_s,
    )
    watch.look()
    _, issued = world.enrolled()
    world.store.revoke_identity("gw-1", world.now_s)
    watch.look()
    watch.look()
    assert heard == [frozenset(), {issued.facts.serial}]
    assert kicked == ["gw-1"]
    found = x509.load_pem_x509_crl(path.read_bytes())
    assert {f"{entry.serial_number:x}" for entry in found} == {issued.facts.serial}
    world.now_s += TTL_S  # expired certificates need no entry
    watch.look()
    assert list(x509.load_pem_x509_crl(path.read_bytes())) == []
    assert kicked == ["gw-1"]


def test_a_key_is_certified_once_even_if_two_calls_come_at_the_same_time(world: World) -> None:
    record = CertificateRecord(
        serial="1", device_id="a", key_digest="k" * 64, not_before_s=1.0, not_after_s=2.0
    )
    world.store.add_certificate(record)
    other = CertificateRecord(
        serial="2", device_id="b", key_digest="k" * 64, not_before_s=1.0, not_after_s=2.0
    )
    refused("csr-replayed", lambda: world.store.add_certificate(other))
