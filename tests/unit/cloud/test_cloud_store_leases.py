"""One acts at a time, and who was replaced can write nothing."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import MagicMock

import pytest
import sqlalchemy as sa
from cloud_store_values import DECISION, STATE

from cloud.store import Store, lease_fence
from edgeloop.errors import RejectedError


@pytest.fixture
def other(store: Store, store_url: str) -> Iterator[Store]:
    """Another process's view of the same database."""
    other = Store(store_url)
    yield other
    other.close()


def test_a_lease_has_one_holder_until_it_is_given_back(store: Store, other: Store) -> None:
    assert store.lease("controller") is None
    mine = store.claim_lease("controller", "a", 60.0)
    assert mine is not None
    assert (mine.holder, mine.epoch) == ("a", 1)
    assert other.claim_lease("controller", "b", 60.0) is None
    assert other.claim_lease("something else", "b", 60.0) is not None
    renewed = store.renew_lease("controller", mine, 120.0)
    assert renewed is not None
    assert renewed.epoch == 1
    assert renewed.expire_s > mine.expire_s
    store.release_lease("controller", renewed)
    theirs = other.claim_lease("controller", "b", 60.0)
    assert theirs is not None
    assert theirs.epoch == 2
    assert store.renew_lease("controller", renewed, 60.0) is None
    store.release_lease("controller", renewed)  # late, and without effect
    assert store.lease("controller") == theirs


def test_a_lease_that_ran_out_is_taken_over(store: Store, other: Store) -> None:
    mine = store.claim_lease("controller", "a", 0.0)
    assert mine is not None
    theirs = other.claim_lease("controller", "b", 60.0)
    assert theirs is not None
    assert theirs.epoch == 2
    assert store.renew_lease("controller", mine, 60.0) is None


def test_a_holder_that_was_restarted_goes_on_at_once_as_somebody_new(store: Store) -> None:
    before = store.claim_lease("controller", "a", 60.0)
    after = store.claim_lease("controller", "a", 60.0)
    assert before is not None
    assert after is not None
    assert after.epoch == before.epoch + 1
    assert store.renew_lease("controller", before, 60.0) is None


def test_of_many_that_claim_at_once_one_gets_it(store: Store, store_url: str) -> None:
    stores = [Store(store_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        claimed = list(pool.map(lambda n: stores[n].claim_lease("controller", f"plane-{n}", 60.0), range(4)))
    (winner,) = [lease for lease in claimed if lease is not None]
    assert store.lease("controller") == winner
    for opened in stores:
        opened.close()


def test_who_was_replaced_writes_nothing(store: Store, other: Store) -> None:
    mine = store.claim_lease("controller", "a", 0.0)
    assert mine is not None
    acting = store.fenced(lease_fence("controller", mine.epoch))
    acting.set_meta("note", "mine")
    assert other.claim_lease("controller", "b", 60.0) is not None
    with pytest.raises(RejectedError) as caught:
        acting.set_meta("note", "too late")
    assert caught.value.code == "lease-lost"
    with pytest.raises(RejectedError):
        acting.commit_decision("d1", DECISION, STATE, 1.0)
    assert store.get_meta("note") == "mine"
    assert store.decisions() == []
    # What does not need the lease (reports, registrations, people) goes on through the store itself.
    store.set_meta("note", "by a servicer")


#: What needs no lease: taking it, giving it back, and the schema, which each control plane sees to first.
_UNFENCED = {"claim_lease", "renew_lease", "release_lease", "migrate"}


def test_no_write_of_a_store_with_a_fence_gets_past_it(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is added to the store later: each change begins with the fence, in its own transaction."""
    mine = store.claim_lease("controller", "a", 0.0)
    assert mine is not None
    acting = store.fenced(lease_fence("controller", mine.epoch))
    assert other.claim_lease("controller", "b", 60.0) is not None
    statements: list[str] = []

    def heard(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement.lstrip().partition(" ")[0].upper())

    sa.event.listen(store._engine, "before_cursor_execute", heard)
    changed: dict[str, list[str]] = {}
    refused: set[str] = set()
    for name, method in inspect.getmembers(acting, inspect.ismethod):
        if name.startswith("_") or name in _UNFENCED or name in ("close", "fenced", "transaction"):
            continue
        statements.clear()
        given = [
            MagicMock()
            for parameter in inspect.signature(method).parameters.values()
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        keywords = {
            parameter.name: MagicMock()
            for parameter in inspect.signature(method).parameters.values()
            if parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY
        }
        try:
            method(*given, **keywords)
        except RejectedError as error:
            refused.update([name] if error.code == "lease-lost" else [])
        except Exception:  # noqa: BLE001 - mocks are no values; what matters is which statements went out
            pass
        found = [word for word in statements if word in ("INSERT", "UPDATE", "DELETE")]
        if found:
            changed[name] = found
    sa.event.remove(store._engine, "before_cursor_execute", heard)
    assert changed == {}
    expected = {"set_meta", "update_job", "create_job", "set_current", "set_presence", "prune_decisions"}
    assert expected | {"save_candidate", "forget_device", "set_device_labels"} <= refused


def test_taking_over_waits_for_the_write_that_is_under_way(store: Store, other: Store) -> None:
    mine = store.claim_lease("controller", "a", 0.0)
    assert mine is not None
    acting = store.fenced(lease_fence("controller", mine.epoch))
    seen: list[str] = []

    def take_over() -> None:
        assert other.claim_lease("controller", "b", 60.0) is not None
        seen.append(other.get_meta("note"))

    with acting.transaction():
        thread = threading.Thread(target=take_over)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        acting.set_meta("note", "committed first")
    thread.join(60)
    assert seen == ["committed first"]


def test_what_transactions_read_is_still_so_when_they_write(store: Store, other: Store) -> None:
    """Two people, or a person and the controller, change the same thing through two control planes."""
    store.set_meta("count", "0")

    def count(which: Store) -> None:
        for _ in range(25):
            with which.transaction():
                which.set_meta("count", str(int(which.get_meta("count")) + 1))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(count, (store, other)))
    assert store.get_meta("count") == "50"
