"""Who is there: what the broker says, what it forgot, and what could not be written down at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cloud_store_values import DEVICE
from fresh_database import fresh_store

from cloud.domain.devices import Device
from cloud.presence import UNHEARD_S, PresenceBook
from cloud.store import Store
from edgeloop import topics
from edgeloop.errors import TransientError

NOW_S = 1_800_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Three devices, registered, and connected as far as anybody knows."""
    store = fresh_store(tmp_path / "edgeloop.db")
    for name in ("gw-1", "gw-2", "gw-3"):
        store.register_device(replace(DEVICE, device_id=name), None, "", NOW_S)
        store.set_presence(name, True, NOW_S)
    yield store
    store.close()


def connected(store: Store) -> set[str]:
    return {device.device_id for device in store.devices() if device.connected}


def say(book: PresenceBook, name: str, payload: bytes = topics.ONLINE) -> None:
    book.heard(topics.presence(name), payload)


def test_a_device_of_which_a_broker_that_came_back_knows_nothing_is_away_in_the_end(store: Store) -> None:
    book = PresenceBook(store, forget_on_connect=False)
    book.on_connected(True)
    say(book, "gw-1")
    book.write(NOW_S + 1)
    store.touch("gw-2", NOW_S + 30)  # it reports, whatever became of its word on the broker
    book.write(NOW_S + UNHEARD_S)
    assert connected(store) == {"gw-1", "gw-2", "gw-3"}  # they may be on their way back
    assert book.write(NOW_S + 1 + UNHEARD_S)
    assert connected(store) == {"gw-1", "gw-2"}
    say(book, "gw-3")
    book.write(NOW_S + 2 + UNHEARD_S)
    assert connected(store) == {"gw-1", "gw-2", "gw-3"}
    # Only who is silent after the session came up is looked for, and once.
    assert not book.write(NOW_S + 10 * UNHEARD_S)


def test_a_broker_that_goes_again_takes_its_time_with_it(store: Store) -> None:
    book = PresenceBook(store, forget_on_connect=False)
    book.on_connected(True)
    book.write(NOW_S + 1)
    book.on_connected(False)
    book.write(NOW_S + 1 + 2 * UNHEARD_S)
    book.on_connected(True)
    book.write(NOW_S + 2 + 2 * UNHEARD_S)
    assert connected(store) == {"gw-1", "gw-2", "gw-3"}


def test_a_broker_that_forgets_with_every_restart_is_believed_at_once(store: Store) -> None:
    book = PresenceBook(store, forget_on_connect=True)
    book.on_connected(True)
    say(book, "gw-2")
    book.write(NOW_S + 1)
    assert connected(store) == {"gw-2"}
    say(book, "gw-2", topics.OFFLINE)
    say(book, "gw-2", b"something else")
    book.write(NOW_S + 2)
    assert connected(store) == set()


class AwayStore:
    """The database is away once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.is_away = True

    def set_presence(self, device_id: str, connected: bool, now_s: float) -> bool:
        if self.is_away:
            self.is_away = False
            raise TransientError("the database does not answer", code="store")
        return self._store.set_presence(device_id, connected, now_s)

    def device_ids(self) -> set[str]:
        return self._store.device_ids()

    def devices(self) -> list[Device]:
        return list(self._store.devices())


def test_what_could_not_be_written_is_written_the_next_time(store: Store) -> None:
    book = PresenceBook(AwayStore(store), forget_on_connect=False)
    book.on_connected(True)
    say(book, "gw-1", topics.OFFLINE)
    with pytest.raises(TransientError):
        book.write(NOW_S)
    say(book, "gw-2", topics.OFFLINE)
    book.write(NOW_S + 1)
    assert connected(store) == {"gw-3"}
