"""Two control planes on one PostgreSQL: both serve, one acts, and after a kill -9 the other does."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_serve import DIGITS, FLEET, WAIT_S, Served, add_candidate, await_that, registration

from cloud.store import Store
from edgeloop import topics
from edgeloop.backoff import Backoff
from edgeloop.mqtt import MqttSession
from edgeloop.trust import key_ring, open_deployment
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1 import fleet_service_pb2, fleet_service_pb2_grpc

pytestmark = [pytest.mark.mosquitto, pytest.mark.timeout(420)]

DEVICES = [f"gw-{n}" for n in range(12)]
#: A lease of 9 s, and what noticing and starting takes on a busy machine.
TAKE_OVER_S = 60.0


@pytest.fixture
def planes(tmp_path: Path, postgres_url: str, mosquitto: Any) -> Iterator[tuple[Served, Served]]:
    """Two on one database, one registry, one director key and one broker."""
    shared = (
        *("--database-url", postgres_url, "--broker", f"127.0.0.1:{mosquitto.port}"),
        *("--registry-url", str(tmp_path / "registry"), "--director-dir", str(tmp_path / "director")),
    )
    first, second = Served(tmp_path / "a", *shared), Served(tmp_path / "b", *shared)
    yield first, second
    for plane in (first, second):
        if plane.process is not None and plane.process.poll() is None:
            plane.end(signal.SIGKILL)


def acts(plane: Served) -> bool:
    """Only who acts has a session with the broker."""
    info = plane.control.GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S)
    return bool(info.broker_connected)


def test_one_of_two_acts_and_a_kill_hands_over_without_a_second_generation(
    planes: tuple[Served, Served], tmp_path: Path, postgres_url: str, mosquitto: Any
) -> None:
    acting, waiting = planes
    acting.start()
    waiting.start()
    assert await_that(lambda: acts(acting))
    assert not acts(waiting)

    # People and devices may use either.
    waiting.apply(DIGITS, FLEET)
    fleet = fleet_service_pb2_grpc.FleetServiceStub(waiting.channel("fleet"))
    for device_id in DEVICES:
        request = fleet_service_pb2.RegisterRequest(registration=registration(device_id))
        assert fleet.Register(request, timeout=WAIT_S).profile == "gateway"
    store = Store(postgres_url)
    wanted: list[str] = []
    key = bytes.fromhex(acting.info["director_public_key"])
    heard: list[bytes] = []
    with MqttSession("127.0.0.1", mosquitto.port, "listener", backoff=Backoff(0.05, 0.3)) as listener:
        listener.subscribe(topics.deployment("gw-0"), lambda _, payload: heard.append(payload))
        assert listener.wait_connected(WAIT_S)
        # The kill comes at once, and after the devices were told.
        for round_number, delay_s in enumerate((0.0, 1.0)):
            digest = add_candidate(tmp_path, now_s=time.time(), database_url=postgres_url)
            wanted.append(digest)
            waiting.control.StartRollout(
                pb.StartRolloutRequest(profile="gateway", digest=digest, request_id=f"r{round_number}"),
                timeout=WAIT_S,
            )
            time.sleep(delay_s)
            acting.end(signal.SIGKILL)
            assert await_that(partial(acts, waiting), TAKE_OVER_S)
            assert await_that(partial(_all_told, store, digest))
            assert await_that(partial(_heard_last, heard, key, round_number + 1, digest))
            acting.start()
            acting, waiting = waiting, acting
            assert not acts(waiting)
    # One decision, one generation: nothing was issued twice, whoever did it.
    for device_id in DEVICES:
        newest = store.deployment(device_id)
        assert newest is not None
        assert (newest.generation, newest.digest) == (len(wanted), wanted[-1])
    store.close()


def _all_told(store: Store, digest: str) -> bool:
    return [deployment.digest for deployment in store.deployments()] == [digest] * len(DEVICES)


def _heard_last(heard: list[bytes], key: bytes, generation: int, digest: str) -> bool:
    told = [payload for payload in heard if payload]
    if not told:
        return False
    opened = open_deployment(told[-1], key_ring(key), device_id="gw-0", now_s=time.time())
    return (opened.generation, opened.digest) == (generation, digest)
