"""Enrolments that share a transaction: each has its own outcome, and what is answered is in the database."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from cloud.audit import AuditLog
from cloud.domain.identities import AuditEntry
from cloud.enrolment import Enrolment, Issued, new_token, secret_hash
from cloud.pki.authority import Authority
from cloud.services.enrolment_writer import EnrolmentWriter
from cloud.store import Store
from edgeloop.errors import EdgeloopError, TransientError
from edgeloop.identity import certificate_request, new_private_key

Asked = tuple[str, bytes]


class Office:
    """A writer on a real database, with what a test does to its commits."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.authority = Authority.create("devices", time.time())[0]
        enrolment = Enrolment(store, self.authority, certificate_ttl_s=3600)
        self.batches: list[int] = []
        self.held = threading.Event()
        self.held.set()
        whole = enrolment.enrol_all

        def counted(asked: Sequence[Asked]) -> object:
            assert self.held.wait(60)
            self.batches.append(len(asked))
            return whole(asked)

        enrolment.enrol_all = counted  # type: ignore[assignment, method-assign]
        self.enrolment = enrolment

    def token(self, name: str) -> str:
        token, now_s = new_token(), time.time()
        self.store.save_identity(name, {}, now_s)
        self.store.add_token(secret_hash(token), name, now_s=now_s, expire_time_s=now_s + 3600)
        return token

    def enrol(self, *asked: Asked, first_alone: bool = False) -> list[Issued | BaseException]:
        """All at once; with ``first_alone`` the others arrive while the first is being written."""

        async def run() -> list[Issued | BaseException]:
            writer = EnrolmentWriter(self.store, self.enrolment, AuditLog(self.store))
            await writer.start()
            calls = []
            if first_alone:
                self.held.clear()
            for number, (token, request) in enumerate(asked):
                calls.append(asyncio.ensure_future(writer.enrol(token, request, "192.0.2.1")))
                if first_alone and number == 0:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0)
            self.held.set()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            await writer.stop()
            return list(outcomes)

        return asyncio.run(run())

    def audited(self) -> list[str]:
        return sorted(entry.target for entry in self.store.audit() if entry.outcome == "done")


@pytest.fixture
def office(store: Store) -> Office:
    return Office(store)


def request() -> bytes:
    return certificate_request(new_private_key(), "new")


def words(outcomes: list[Issued | BaseException]) -> list[str]:
    """Names of who was enrolled, codes of who was refused."""
    return [
        found.facts.name if isinstance(found, Issued) else getattr(found, "code", repr(found))
        for found in outcomes
    ]


def test_those_that_wait_for_the_disk_share_the_next_flush(office: Office) -> None:
    names = [f"gw-{number}" for number in range(12)]
    outcomes = office.enrol(*((office.token(name), request()) for name in names), first_alone=True)
    assert words(outcomes) == names
    assert office.batches == [1, 11]
    assert office.audited() == sorted(names)
    for found in outcomes:
        assert isinstance(found, Issued)
        assert office.authority.issued(found.certificate)
        record = office.store.certificate(found.facts.serial)
        assert record is not None
        assert (record.device_id, record.revoke_time_s) == (found.facts.name, 0.0)


def test_each_of_a_batch_has_its_own_outcome(office: Office) -> None:
    token, same_key, free = office.token("gw-1"), request(), office.token("gw-3")
    outcomes = office.enrol(
        (token, request()),
        (token, request()),
        (new_token(), request()),
        (office.token("gw-2"), same_key),
        (free, same_key),
        (office.token("gw-4"), b"no request"),
        (office.token("gw-5"), request()),
    )
    assert words(outcomes) == ["gw-1", "token-used", "token-unknown", "gw-2", "csr-replayed", "csr", "gw-5"]
    assert office.audited() == ["gw-1", "gw-2", "gw-5"]
    # Who was refused for a key spent no token.
    assert words(office.enrol((free, request()))) == ["gw-3"]


def test_enrolling_again_revokes_what_the_device_had_within_a_batch_too(office: Office) -> None:
    (first,) = office.enrol((office.token("gw-1"), request()))
    again, other = office.enrol((office.token("gw-1"), request()), (office.token("gw-2"), request()))
    assert isinstance(first, Issued)
    assert isinstance(again, Issued)
    assert isinstance(other, Issued)
    revoked = {record.serial for record in office.store.revoked_certificates(time.time())}
    assert revoked == {first.facts.serial}


def test_what_cannot_be_audited_was_not_enrolled(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [(office.token(f"gw-{number}"), request()) for number in range(3)]

    def full(*entries: AuditEntry) -> None:
        raise TransientError("the disk is full", code="store-busy")

    monkeypatch.setattr(office.store, "add_audit", full)
    assert words(office.enrol(*asked)) == ["store-busy"] * 3
    monkeypatch.undo()
    assert words(office.enrol(*asked)) == ["gw-0", "gw-1", "gw-2"]


def test_one_that_the_database_cannot_take_fails_alone(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [(office.token(name), request()) for name in ("gw-1", "gw-bad", "gw-2")]
    whole = office.store.add_audit

    def choosy(*entries: AuditEntry) -> None:
        if any(entry.target == "gw-bad" for entry in entries):
            raise ValueError("a bug")
        whole(*entries)

    monkeypatch.setattr(office.store, "add_audit", choosy)
    good, bad, other = office.enrol(*asked)
    assert words([good, other]) == ["gw-1", "gw-2"]
    assert isinstance(bad, ValueError)
    assert office.audited() == ["gw-1", "gw-2"]


def test_a_writer_that_stopped_refuses_for_now(office: Office) -> None:
    async def run() -> None:
        writer = EnrolmentWriter(office.store, office.enrolment, AuditLog(office.store))
        await writer.start()
        await writer.stop()
        with pytest.raises(EdgeloopError) as caught:
            await writer.enrol(office.token("gw-1"), request(), "")
        assert caught.value.code == "server-stopping"

    asyncio.run(run())
