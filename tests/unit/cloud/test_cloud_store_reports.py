"""Reports are counted once, whoever sends them however often."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from cloud_store_values import DEVICE, PROFILE, REFERENCE, SKETCH, report
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud.store import Store, sketch_of
from cloud.store import reports as stored_reports
from edgeloop.errors import TransientError
from edgeloop.sketch import LatencySketch


@pytest.fixture
def store(store: Store) -> Store:
    store.register_device(DEVICE, PROFILE.name, "", 1.0)
    return store


def test_a_report_is_counted_once(store: Store) -> None:
    assert store.insert_reports([report(0), report(1)], 1.0) == (2, 0)
    assert store.insert_reports([report(1, num_errors=99), report(2)], 2.0) == (1, 1)
    assert store.insert_reports([report(3), report(3)], 3.0) == (1, 1)
    assert store.insert_reports([report(0, boot_id="boot-2")], 4.0) == (1, 0)
    assert store.insert_reports([], 5.0) == (0, 0)
    assert [(w.boot_id, w.sequence, w.num_errors) for w in store.windows()] == [
        ("boot-1", 0, 2),
        ("boot-2", 0, 2),
        ("boot-1", 1, 2),
        ("boot-1", 2, 2),
        ("boot-1", 3, 2),
    ]


_KEYS = st.tuples(st.sampled_from(["gw-1", "gw-2"]), st.sampled_from(["b1", "b2"]), st.integers(0, 6))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(_KEYS, max_size=8), max_size=6))
def test_any_order_of_batches_and_repeats_stores_each_identity_once(
    store: Store, batches: list[list[tuple[str, str, int]]]
) -> None:
    store.register_device(replace(DEVICE, device_id="gw-2"), PROFILE.name, "", 1.0)
    store.prune_reports(1e12)  # the fixture is shared by all examples
    num_new = 0
    for batch in batches:
        rows = [report(n, device_id=device_id, boot_id=boot_id) for device_id, boot_id, n in batch]
        new, known = store.insert_reports(rows, 1.0)
        assert new + known == len(rows)
        num_new += new
    sent = {key for batch in batches for key in batch}
    stored = [(window.device_id, window.boot_id, window.sequence) for window in store.windows()]
    assert sorted(stored) == sorted(sent)
    assert num_new == len(sent)


def test_windows_are_selected_by_time_profile_and_device(store: Store) -> None:
    store.register_device(replace(DEVICE, device_id="gw-2"), "other", "", 1.0)
    store.insert_reports([report(n, device_id=device) for n in range(3) for device in ("gw-1", "gw-2")], 1.0)
    assert len(store.windows()) == 6
    assert [w.sequence for w in store.windows(profile=PROFILE.name, since_s=132.0)] == [1, 2]
    assert {w.device_id for w in store.windows(device_id="gw-2")} == {"gw-2"}
    assert store.windows(profile=PROFILE.name, device_id="gw-2") == []
    store.set_device_profile("gw-1", "other", "")
    assert len(store.windows(profile="other")) == 6


def test_sketches_come_back_as_they_were_measured(store: Store) -> None:
    store.insert_reports([report(0)], 1.0)
    (window,) = store.windows()
    assert (window.latency, window.reference) == (SKETCH, REFERENCE)
    assert sketch_of(window.latency).merge(sketch_of(window.latency)).count == 2 * SKETCH.count


def test_counting_samples_decodes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a controller asks of most windows of a large fleet."""
    decoded: list[bytes] = []
    whole = LatencySketch.from_bytes
    stored_reports._decoded.cache_clear()

    def counted(raw: bytes) -> LatencySketch:
        decoded.append(raw)
        return whole(raw)

    monkeypatch.setattr(LatencySketch, "from_bytes", counted)
    other = LatencySketch.of([1.0, 2.0, 4.5]).to_bytes()
    store.insert_reports([report(0)._replace(latency=other, num_samples=3)], 1.0)
    (window,) = store.windows()
    assert window.latency.count == 3
    assert decoded == []
    assert window.latency.quantile(0.5) == whole(other).quantile(0.5)
    assert decoded == [other]


def test_pruning_drops_what_ended_before(store: Store) -> None:
    store.insert_reports([report(n) for n in range(5)], 1.0)
    assert store.prune_reports(133.0) == 2
    assert [window.sequence for window in store.windows()] == [2, 3, 4]
    assert store.prune_reports(133.0) == 0


def test_two_writers_lose_and_double_nothing(store_url: str) -> None:
    """As two processes would: each store has an engine and a lock of its own."""
    stores = [Store(store_url) for _ in range(2)]
    stores[0].migrate()
    stores[0].register_device(DEVICE, PROFILE.name, "", 1.0)

    def write(which: int) -> int:
        mine = range(which * 100, which * 100 + 200)  # the middle hundred is written by both
        return sum(stores[which].insert_reports([report(n)], 1.0)[0] for n in mine)

    with ThreadPoolExecutor(2) as pool:
        written = list(pool.map(write, range(2)))
    assert sum(written) == 300
    assert [window.sequence for window in stores[1].windows()] == list(range(300))
    for store in stores:
        store.close()


def test_readers_do_not_wait_for_a_writer(store: Store) -> None:
    with store.transaction():
        store.insert_reports([report(0)], 1.0)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(store.windows).result(timeout=60) == []
    assert len(store.windows()) == 1


def test_a_database_that_stays_locked_is_a_transient_error(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud.store.base._BUSY_TIMEOUT_MS", 50)
    other = Store(store_url)
    with store.transaction():
        store.touch(DEVICE.device_id, 2.0)
        with pytest.raises(TransientError) as caught:
            other.insert_reports([report(0)], 1.0)
    assert caught.value.code == "store-busy"
    assert other.insert_reports([report(0)], 1.0) == (1, 0)
    other.close()
