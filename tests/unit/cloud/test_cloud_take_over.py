"""What a control plane that took over finds and does, and what the one before it can do no more."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from memory_registry import Memory
from test_cloud_publisher import FakeBus, make_artifact, shipment

from cloud import tuf_root
from cloud.publisher import Publisher
from cloud.shipment import Shipment
from cloud.store import Store, lease_fence
from cloud.tuf_files import TufFiles
from cloud.tuf_repository import TufRepository
from edgeloop import topics
from edgeloop.errors import RejectedError, TransientError
from edgeloop.released import TIMESTAMP_FILE

WAIT_S = 60.0
NAME = "controller"
NOW_S = 1_800_000_000.0
DAY_S = 86_400.0


def take_over(store: Store, holder: str) -> Store:
    """The store as ``holder`` has it from now on, whoever held the lease before."""
    lease = store.claim_lease(NAME, holder, 1e-3)
    while lease is None:
        time.sleep(0.002)
        lease = store.claim_lease(NAME, holder, 1e-3)
    return store.fenced(lease_fence(NAME, lease.epoch))


@contextmanager
def publisher(bus: FakeBus, blobs: Memory, folder: Path, store: Store) -> Iterator[Publisher]:
    """Of one control plane, with a state folder of its own."""
    folder.mkdir(exist_ok=True)
    found = Publisher(bus=bus, blobs=blobs, state_path=folder / "published.json", shared=store)
    found.start()
    found.on_connected(True)
    yield found
    found.stop()


def ship(found: Publisher, *shipments: Shipment) -> None:
    found.set_desired({item.device_id: item for item in shipments})
    assert found.wait_settled(WAIT_S)


def naming(bus: FakeBus, artifact: tuple[str, str]) -> list[str]:
    return [topic for topic in bus.retained if artifact[0] in topic or artifact[1] in topic]


def test_what_another_control_plane_published_is_cleared_once_nobody_needs_it(
    store: Store, tmp_path: Path
) -> None:
    bus, blobs = FakeBus(), Memory()
    old, kept, new = (make_artifact(blobs, seed) for seed in (1, 2, 3))
    with publisher(bus, blobs, tmp_path / "a", take_over(store, "a")) as first:
        first.set_tuf({"1.root.json": b"root", "7.targets.json": b"old", TIMESTAMP_FILE: b"old"})
        ship(first, shipment("gw-1", old), shipment("gw-2", kept))
    with publisher(bus, blobs, tmp_path / "b", take_over(store, "b")) as second:
        second.set_tuf({"1.root.json": b"root", "8.targets.json": b"new", TIMESTAMP_FILE: b"new"})
        ship(second, shipment("gw-1", new), shipment("gw-2", kept))
        assert naming(bus, old) == []
        assert topics.tuf("7.targets.json") not in bus.retained
        assert naming(bus, kept)
        assert naming(bus, new)
    # And back again: what the second left is the first one's to clear.
    with publisher(bus, blobs, tmp_path / "a", take_over(store, "a")) as first:
        ship(first, shipment("gw-1", kept), shipment("gw-2", kept))
        assert naming(bus, new) == []
        assert naming(bus, kept)


def test_what_an_earlier_version_remembered_in_its_state_folder_is_cleared_once(
    store: Store, tmp_path: Path
) -> None:
    bus, blobs = FakeBus(), Memory()
    old, new = make_artifact(blobs, 1), make_artifact(blobs, 2)
    for number in range(3):
        bus.publish(topics.block(old[0], number), b"block", retain=True)
    bus.publish(topics.manifest(old[1]), b"manifest", retain=True)
    path = tmp_path / "a" / "published.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"version": 1, "artifacts": {old[0]: 3}, "manifests": [old[1]]}))
    for _ in range(2):
        with publisher(bus, blobs, tmp_path / "a", take_over(store, "a")) as found:
            ship(found, shipment("gw-1", new))
            assert naming(bus, old) == []
            assert not path.exists()
        num_cleared = sum(old[0] in topic and not size for topic, size in bus.log)
        assert num_cleared == 3


def test_who_lost_the_lease_publishes_nothing_that_it_cannot_write_down(store: Store, tmp_path: Path) -> None:
    bus, blobs = FakeBus(), Memory()
    first_artifact, late = make_artifact(blobs, 1), make_artifact(blobs, 2)
    with publisher(bus, blobs, tmp_path / "a", take_over(store, "a")) as first:
        ship(first, shipment("gw-1", first_artifact))
        take_over(store, "b")
        first.set_desired({"gw-1": shipment("gw-1", late)})
        assert not first.wait_settled(1.0)
        assert naming(bus, late) == []


def test_who_lost_the_lease_puts_no_deployment_over_that_of_who_acts_now(
    store: Store, tmp_path: Path
) -> None:
    bus, blobs = FakeBus(), Memory()
    artifact = make_artifact(blobs, 1)
    topic = topics.deployment("gw-1")
    with publisher(bus, blobs, tmp_path / "a", take_over(store, "a")) as first:
        ship(first, shipment("gw-1", artifact, b"generation 1"))
        with publisher(bus, blobs, tmp_path / "b", take_over(store, "b")) as second:
            ship(second, shipment("gw-1", artifact, b"generation 3"))
            # It had stood still, and goes on where it was: with an artifact that is there already.
            first.set_desired({"gw-1": shipment("gw-1", artifact, b"generation 2")})
            assert not first.wait_settled(1.0)
            assert bus.retained[topic] == b"generation 3"


def test_deployments_come_back_while_the_database_is_away(store: Store, tmp_path: Path) -> None:
    bus, blobs = FakeBus(), Memory()
    artifact = make_artifact(blobs, 1)
    acting = take_over(store, "a")
    with publisher(bus, blobs, tmp_path / "a", acting) as first:
        ship(first, shipment("gw-1", artifact))

        def away() -> None:
            raise TransientError("the database is away", code="store-busy")

        acting.check_fence = away  # type: ignore[method-assign]
        first.on_connected(False)
        bus.retained.clear()
        first.on_connected(True)
        assert first.wait_settled(WAIT_S)
        assert topics.deployment("gw-1") in bus.retained


def test_a_record_that_could_not_be_written_is_written_before_its_message_goes_out(
    store: Store, tmp_path: Path
) -> None:
    bus, blobs = FakeBus(), Memory()
    artifact = make_artifact(blobs, 1)
    acting = take_over(store, "a")
    whole, failures = acting.set_meta, [True, True]

    def away_at_first(key: str, value: str) -> None:
        assert naming(bus, artifact) == []
        if failures:
            failures.pop()
            raise TransientError("the database is away", code="store-busy")
        whole(key, value)

    acting.set_meta = away_at_first  # type: ignore[method-assign]
    with publisher(bus, blobs, tmp_path / "a", acting) as first:
        ship(first, shipment("gw-1", artifact))
    assert not failures
    assert naming(bus, artifact)
    assert artifact[0] in store.get_meta("published")


# -- TUF


@pytest.fixture
def repository(tmp_path: Path) -> Callable[[Store], TufRepository]:
    """Of one control plane; all have the same folder."""
    tuf_root.ensure(TufFiles(tmp_path), now_s=NOW_S)
    return lambda store: TufRepository(tmp_path, size_of=lambda _: 7, acting=store.transaction)


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in TufFiles(folder).metadata.iterdir()}


def version(files: dict[str, bytes]) -> int:
    found: int = json.loads(files[TIMESTAMP_FILE])["signed"]["version"]
    return found


def pair(number: int) -> tuple[str, str]:
    return f"{number:064x}", f"{number + 1000:064x}"


def test_who_lost_the_lease_neither_renews_nor_releases(
    store: Store, tmp_path: Path, repository: Callable[[Store], TufRepository]
) -> None:
    first = repository(take_over(store, "a"))
    first.release([pair(1)], NOW_S)
    second = repository(take_over(store, "b"))
    second.release([pair(1)], NOW_S)
    before = on_disk(tmp_path)

    # Its timestamp is due, or something new is to be released: neither is for it any more.
    for pairs, now_s in (([pair(1)], NOW_S + 2 * DAY_S), ([pair(2)], NOW_S)):
        with pytest.raises(RejectedError) as caught:
            first.release(pairs, now_s)
        assert caught.value.code == "lease-lost"
        assert on_disk(tmp_path) == before

    second.release([pair(1)], NOW_S + 2 * DAY_S)
    after = on_disk(tmp_path)
    assert after[TIMESTAMP_FILE] != before[TIMESTAMP_FILE]
    assert {name for name in after if after[name] != before.get(name)} == {TIMESTAMP_FILE}


def test_a_take_over_waits_until_what_is_being_written_is_whole(
    store: Store, tmp_path: Path, repository: Callable[[Store], TufRepository]
) -> None:
    acting = take_over(store, "a")
    first = repository(acting)
    seen: list[bool] = []
    rivals: list[threading.Thread] = []
    whole = TufFiles.write

    def hurried(files: TufFiles, name: str, raw: bytes) -> None:
        # Another tries while this one is in the middle of a release: it must not get the lease.
        claimed = threading.Event()

        def claim() -> None:
            take_over(store, "b")
            claimed.set()

        if not seen:
            rivals.append(threading.Thread(target=claim, daemon=True))
            rivals[0].start()
        seen.append(claimed.wait(0.2))
        whole(files, name, raw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TufFiles, "write", hurried)
        first.release([pair(1)], NOW_S)
    rivals[0].join(WAIT_S)  # it has the lease by then, and takes none any more
    assert seen == [False, False, False]
    whole_release = on_disk(tmp_path)
    repository(take_over(store, "b")).release([pair(1)], NOW_S)
    assert version(on_disk(tmp_path)) > version(whole_release)
