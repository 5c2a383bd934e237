"""Nothing of a device that was deleted stays on the broker, whoever is away meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cloud_store_values import DEVICE, INTENT, PROFILE
from memory_registry import Memory
from test_cloud_publisher import FakeBus, make_artifact, shipment
from test_cloud_take_over import WAIT_S, publisher, take_over

from cloud.departures import SETTLE_S, Departures
from cloud.domain.devices import HostedWorkload
from cloud.publisher import Publisher
from cloud.shipment import Shipment
from cloud.store import Store
from edgeloop import topics

NOW_S = 1_800_000_000.0


def of_device(bus: FakeBus, device_id: str) -> set[str]:
    return {topic for topic in bus.retained if f"/devices/{device_id}/" in topic}


def turn(departures: Departures, found: Publisher, shipments: list[Shipment], now_s: float) -> None:
    """As the control loop has it: look, say what should be there, clear."""
    left = departures.look()
    found.set_desired({item.topic: item for item in shipments})
    departures.clear(left, now_s)
    assert found.wait_settled(WAIT_S)


def hosting(store: Store, device_id: str, *workloads: str) -> None:
    """A device that was told of each of these."""
    hosted = tuple(HostedWorkload(workload=name, profile=PROFILE.name) for name in workloads)
    store.register_device(replace(DEVICE, device_id=device_id, hosted=hosted), PROFILE.name, "", NOW_S)
    for name in workloads:
        store.issue_deployment(replace(INTENT, device_id=device_id, workload=name), NOW_S)


def test_all_that_a_device_was_told_goes_also_when_the_broker_and_the_control_plane_were_away(
    store: Store, tmp_path: Path
) -> None:
    bus, blobs = FakeBus(), Memory()
    artifact = make_artifact(blobs, 1)
    hosting(store, "gone", "digits", "sounds")
    both = [replace(shipment("gone", artifact), workload=name) for name in ("digits", "sounds")]
    stays = shipment("stays", artifact)
    first = take_over(store, "a")
    with publisher(bus, blobs, tmp_path / "a", first) as found:
        bus.publish(topics.presence("gone"), topics.ONLINE, retain=True)
        departures = Departures(first, found.clear)
        turn(departures, found, [*both, stays], NOW_S)
        assert len(of_device(bus, "gone")) == 3
        found.on_connected(False)
        assert store.forget_device("gone", NOW_S)
        left = departures.look()
        found.set_desired({stays.topic: stays})
        departures.clear(left, NOW_S + 1.0)
        assert not found.wait_settled(0.1)
    assert len(of_device(bus, "gone")) == 3
    second = take_over(store, "b")
    with publisher(bus, blobs, tmp_path / "b", second) as found:
        departures = Departures(second, found.clear)
        turn(departures, found, [stays], NOW_S + 5.0)
        assert of_device(bus, "gone") == set()
        assert of_device(bus, "stays") == {stays.topic}
        # Its session is cut off a little later, and the broker retains its will.
        bus.publish(topics.presence("gone"), topics.OFFLINE, retain=True)
        turn(departures, found, [stays], NOW_S + SETTLE_S / 2)
        assert of_device(bus, "gone") == {topics.presence("gone")}
        assert store.departures()
        turn(departures, found, [stays], NOW_S + SETTLE_S)
        assert of_device(bus, "gone") == set()
        assert store.departures() == {}
        num_sent = len(bus.log)
        turn(departures, found, [stays], NOW_S + 2 * SETTLE_S)
        assert len(bus.log) == num_sent


def test_a_device_that_came_back_under_its_name_keeps_what_it_is_told_now(
    store: Store, tmp_path: Path
) -> None:
    bus, blobs = FakeBus(), Memory()
    artifact = make_artifact(blobs, 1)
    hosting(store, "gw-1", "digits", "sounds")
    store.forget_device("gw-1", NOW_S)
    store.register_device(replace(DEVICE, device_id="gw-1"), PROFILE.name, "", NOW_S)
    for name in ("digits", "sounds"):
        bus.publish(topics.workload_deployment("gw-1", name), b"old", retain=True)
    acting = take_over(store, "a")
    told = shipment("gw-1", artifact, b"new")
    with publisher(bus, blobs, tmp_path / "a", acting) as found:
        departures = Departures(acting, found.clear)
        for now_s in (NOW_S, NOW_S + SETTLE_S):
            turn(departures, found, [told], now_s)
            assert of_device(bus, "gw-1") == {told.topic}
            assert bus.retained[told.topic] == b"new"
        assert store.forget_device("gw-1", NOW_S + SETTLE_S)
        turn(departures, found, [shipment("other", artifact)], NOW_S + 2 * SETTLE_S)
        assert of_device(bus, "gw-1") == set()


def test_a_device_that_is_not_known_leaves_nothing_to_look_after(store: Store) -> None:
    assert not store.forget_device("nobody", NOW_S)
    assert store.departures() == {}
